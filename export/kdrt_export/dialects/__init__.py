"""One traced network, several ONNX files.

What is traced holds *markers*, nodes of the domain ``kdrt`` (see `kdrt_export.onnx.ops`), where
the readers of ONNX want different things. Each dialect replaces them:

    standard      ONNX's own operators, which every reader knows; TensorRT finds attention in them
    onnxruntime   ONNX Runtime's fused operators, in the order its kernels like
    cpu           those, and sums in the order that suits its kernels for CPUs

A pass is a function that takes a graph, changes it in place, and says how often; one file each.
"""
