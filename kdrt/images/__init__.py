"""Pixels on their way in and out.

Its files:

    files       opening image files
    init_image  the images that image to image and inpainting begin with
    control     an image that says where things are, and how it is used
    processors  from pictures to such images
    input       images and masks as users have them, as tensors
    masks       masks inverted, grown and blurred
    masked_part the masked part of an image, cut out and put back
    under_mask  the colours around a mask, under it
    upscaling   ways to enlarge an image between two passes
    upscaler    a network that enlarges images, in tiles
    output      PIL, NumPy or torch images, and files with their metadata
    sheet       several images on one sheet, with labels
    infotext    the text format of the AUTOMATIC1111 web UI, read
    metadata    what image files of this and other programs say of themselves
    safety      the safety checker
    region      a prompt for a part of an image
"""
