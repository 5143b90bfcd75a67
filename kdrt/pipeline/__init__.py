"""The object a user holds.

Its files:

    pipeline     loads, and makes images
    prepare      from a job to what the denoiser is given
    result       images in the making, and made
    metadata     how an image was made, as it is stored in the file
    prepare      a job and its conditioning as a sampling run
    adapters     LoRAs, textual inversions, variants and image prompts of a pipeline
    service      warm-up, cancelling, closing
    calls, call  one call at a time
    memory       what loading a bundle will take
    activations  what its networks need at least while they run
"""
