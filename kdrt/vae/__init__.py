"""Between latents and pixels.

Its files:

    vae      decoder and encoder of a pipeline, with one setting of slices and tiles
    coder    one half of the VAE, run in slices of the batch and in tiles
    tiling   overlapping tiles
    preview  a first look at latents while they are sampled
"""
