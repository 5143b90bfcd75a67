"""Images over HTTP: the interfaces that clients have, on in-flight batching.

The service itself, from `settings` to `errors`, knows nothing of HTTP: one process, several, and a
cluster use the same. `app` puts it behind the interfaces, each of which is a file with a router.

Its files:

    settings    what an operator chooses
    limits      what a stranger may ask for
    service     several models: load, warm up, submit, drain
    model       a model that is served: its queue, and the version of its bundle that is current
    version     a bundle as it was opened: its pipeline and its batcher
    residency   which models are in memory, and which make way: the rules
    residents   loads and unloads by these rules, and lets requests wait for it
    turn        the right to one request to a loaded model
    footprint   what a model takes of memory
    fingerprint  whether a bundle's files are those that were opened
    reload      replaces bundles that were exported again
    queue       images that wait and run, and how fast they are made
    replica     a service that is somewhere else: what is asked of it, and what comes back
    remote      a service whose images are made by replicas
    looks       looks at unfinished images, of which one may fail
    submission  a request that was accepted
    metrics     what Prometheus is told
    residency_metrics  the same of models that come and go
    errors      what goes wrong, and what a client is told of it
    server      the process: socket, signals, shutdown
    connections those that stand still, and how many there may be
    app         the application: routers, middleware
    context     what every request has: an id, a line in the log, an answer whatever happens
    gate        who is let in: keys, hosts, the size of bodies
    auth        keys
    bodies      what a client sent, checked
    images      images in and out
    control_images  control images in
    intake      from what a client sent to a submission
    responses   JSON, errors, server-sent events, results for as long as the client is there
    log         lines with the id of their request
    native      ``/v1/generate``, with every field of a request
    workers     several processes of one machine behind one server
    openai      OpenAI's images API
    a1111       the AUTOMATIC1111 web UI's API
    kserve      health and metadata of KServe's v2 protocol
    playground  ``/``: a page for people, whose files are in page/
    api_docs    ``/docs``: the interfaces for people
    health      ``/healthz``, ``/readyz``, ``/metrics``
    ray         the same on a Ray cluster
    triton      a bundle as a model of NVIDIA's Triton
"""
