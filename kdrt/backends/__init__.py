"""Which engine runs which component of a bundle, and how it is loaded.

Its files:

    choice          the engine to use, and where it runs
    loading         loads the components
    loader          the contract of what loads them
    onnxruntime     loads with ONNX Runtime
    ort_cache       keeps the graphs that it optimised
    openvino        loads with OpenVINO
    openvino_cache  keeps the networks that it compiled
    inductor        loads with what Inductor compiled of PyTorch programs
    inductor_cache  keeps that
    kept            where and how such networks are kept
    tensorrt        loads built TensorRT engines
    torch_programs  loads exported PyTorch programs
    fallback        a second engine where the first refuses
    stages          the order in which components take part in an image
    offload         components loaded stage by stage
    engine_files    built engine files and their checks
    records         what is written beside a built engine
    network_hash    the hash of a network's graphs and weights
    profiles        the sizes an engine is built for
    refit_setting   how often changed weights are compared with ONNX Runtime
    tuned           the engines that measured fastest here
    tuned_loader    loads with those
    machine         what derived files depend on here
    commands        the commands that messages name
    trust           what a user trusts that others built
    doctor          what this machine has
"""
