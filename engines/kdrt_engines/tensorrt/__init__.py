"""TensorRT and TensorRT-RTX: two flavours of one library, one implementation for both.

Its files:

    flavour        the table of their differences, and which GPUs each serves
    build          builds an engine file in a process of its own
    worker         that process
    job            the messages between the two
    evidence       what the builder's log says of an engine
    engine_file    the header of an engine file
    engine         runs an engine
    gpu            the GPU it runs on
    scratch        the memory it needs while it runs
    runtime_cache  kernels that TensorRT-RTX compiled, kept
    log            why something failed
    validation     whether a loaded engine is the one its record describes
    refit          changes the weights of an engine that was built for it
    refit_check    compares a refittable engine with ONNX Runtime
    refit_result   what is recorded of that
"""
