"""The object a user holds.

Its files:

    pipeline     loads, and makes images
    result       images in the making, and made
    metadata     how an image was made, as it is stored in the file
    prepare      a job and its conditioning as a sampling run; image_to_image: one that begins
                 with an image
    adapters     LoRAs, textual inversions, variants and image prompts of a pipeline
    service      warm-up, cancelling, closing
    calls, call  one call at a time
    memory       what loading a bundle will take
    activations  what its networks need at least while they run
"""
