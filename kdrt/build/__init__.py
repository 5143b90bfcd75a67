"""Building engines for a target.

Its files:

    engines  bundle → TensorRT engine files
    keys     which engines a build makes
    cost     memory and time of a build
    fusion   whether attention was fused
    targets  GPUs by name and compute capability
    refit    engines whose weights a LoRA may change
"""
