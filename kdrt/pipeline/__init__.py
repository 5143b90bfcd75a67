"""The object a user holds.

Its files:

    pipeline        the object: it makes images
    signatures      how it is called, and the types of what it returns
    loading         opens a bundle
    result          images in the making, and made
    metadata        how an image was made, as it is stored in the file
    encoding        the prompts of a job as conditioning
    controls        what controls are told of a job's images
    prepare         a job and its conditioning as a sampling run
    image_to_image  where a run begins that begins with an image
    second_pass     where the second pass of a request begins
    adapters        LoRAs, textual inversions, variants and image prompts of a pipeline
    service         warm-up, cancelling, closing
    calls           one call at a time
    call_state      which thread runs it, and whose code is running
    progress        the progress bar
    memory          what loading a bundle will take
    memory_check    images that no memory is enough for
    activations     what its networks need at least while they run
"""
