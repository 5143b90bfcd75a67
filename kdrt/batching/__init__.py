"""In-flight batching: requests of many callers share every evaluation.

Its files:

    batcher      the object a user holds: submit requests, get handles
    handle       a submitted request: its steps, and its images when they are made
    order        the same for the thread that makes it
    passes       what the passes of an order begin with
    image_class  which images can share a UNet run
    loop         the thread that owns the engines
    messages     what that thread is told by others
    shared       where the images that share are, with the UNet as it is now
    alone        the runs of requests that cannot share, a step at a time
    pace         how far the host may be ahead of a GPU
    scheduler    which images run in the next evaluation
    decoding     finished images become pixels
    observer     who is told of all that, for metrics
"""
