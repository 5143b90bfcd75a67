"""One traced network, several ONNX files.

What is traced holds *markers*, nodes of the domain ``kdrt`` (see `kdrt_export.onnx.ops`), where
the readers of ONNX want different things. Each dialect replaces them:

    standard      ONNX's own operators, which every reader knows; TensorRT finds attention in them
    onnxruntime   ONNX Runtime's fused operators, in the order its kernels like
    cpu           those, and sums in the order that suits its kernels for CPUs

A pass is a function that takes a graph, changes it in place, and says how often; one file each.

Its files:

    build              the dialects, as rows of passes
    graphs             what the passes share
    attention          attention, spelled out or as one operator
    bias_gelu          a bias and GELU as one operator
    group_norm         group norms
    split_projections  projections that are computed apart
    optional_steps     steps that an input turns off
    invariants         what follows from inputs that rarely change
    convolutions       which convolutions the next two change, and their filters
    upsampling         convolutions after upsampling, computed before it
    winograd           convolutions with half the multiplications
"""
