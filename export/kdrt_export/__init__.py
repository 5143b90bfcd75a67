"""The export stage: from a Stable Diffusion checkpoint to a bundle of verified ONNX networks.

``stage`` is the whole path; ``sources`` loads checkpoints, ``families`` knows what they contain,
``components`` are the modules that are traced, ``rewrites`` change them first, ``trace`` writes
ONNX, ``verify`` compares it with eager PyTorch. The runtime never imports this package.
"""
