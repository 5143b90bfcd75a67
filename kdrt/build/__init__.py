"""Building engines for a target.

Its files:

    engines    bundle → TensorRT engine files
    keys       which engines a build makes
    cost       memory and time of a build
    fusion     whether attention was fused
    targets    which flavour of TensorRT builds for which GPUs
    quantized  which GPUs quantised networks are built for
    gpu_names  GPUs by name
    sizes      the sizes that networks mostly run at
    tune       the fastest engine of this machine
    refit      engines whose weights a LoRA may change
"""
