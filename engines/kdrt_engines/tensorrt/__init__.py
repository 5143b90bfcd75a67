"""TensorRT and TensorRT-RTX: two flavours of one library, one implementation for both.

Its files:

    flavour        the table of their differences, and which GPUs each serves
    build          builds an engine file in a process of its own (worker, job); evidence is what
                   the builder's log says of it
    engine_file    the header of an engine file
    engine         runs an engine (gpu, scratch, runtime_cache, log)
    validation     whether a loaded engine is the one its record describes
    refit          changes the weights of an engine that was built for it
    refit_check    compares a refittable engine with ONNX Runtime (refit_result)
"""
