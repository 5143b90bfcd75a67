"""Several processes of one machine behind one server, such as one for each of its GPUs.

The front process has the socket, the interfaces and the queue (`kdrt.serve.remote`). Each worker
process has an `ImageService`, and knows nothing of HTTP. They are started as programs of their own,
never forked: PyTorch and ONNX Runtime have threads, which a fork does not copy.

Its files:

    specs     which workers there are: devices, threads, environment
    messages  what the front and a worker tell each other
    channel   messages over a pair of pipes
    process   a worker, as it is in its own process
    worker    a worker, as the front sees it
    keeper    sees to it that a worker runs
    pool      all workers, and which of them makes a request
    figures   metrics of all processes
"""
