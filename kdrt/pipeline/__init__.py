"""The object a user holds.

Its files:

    pipeline     loads, and makes images
    prepare      from a job to what the denoiser is given
    result       images in the making, and made
    metadata     how an image was made, as it is stored in the file
    adapter_api  LoRAs, variants and learned tokens of a pipeline
    calls        one call at a time
    memory       what loading a bundle will take
    activations  what its networks need at least while they run
"""
