"""Changes to a network before it is traced, one idea a file.

Each keeps the numbers: its test compares it with the original on random weights and inputs.
They apply in a fixed order: merge LoRA, fuse QKV, FreeU.

Its files:

    fused_qkv     attention with fused projections
    freeu         FreeU without an FFT, its strengths as inputs
    image_prompt  where a UNet attends to images, and how much
    transformer   the transformer between the convolutions
    up_block      the UNet's up blocks
"""
