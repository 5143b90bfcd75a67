"""OpenVINO.

Its files:

    quiet     OpenVINO, imported without its telemetry
    config    on which device, in which precision
    engine    the engine and its bindings
    tensors   torch tensors as OpenVINO's, in the same memory
    devices   Intel GPUs and NPUs of this machine, found without OpenVINO
"""
