"""Building engines for a target.

Its files:

    engines  bundle → TensorRT engine files
    targets  GPUs by name and compute capability
    refit    engines whose weights a LoRA may change
"""
