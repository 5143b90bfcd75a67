"""What a user asks for, and what it means for one model.

Its files:

    request            the fields of a request, and the resolved job
    resolve            request → job: every check and every default
    grid               steps and schedule → σ
    seeds              a seed for each image
    size_conditioning  SDXL's six numbers
    init_image         an image to begin with
    memory             what a request takes at least
"""
