"""What a user asks for, and what it means for one model.

Its files:

    fields             the fields of a request, listed once
    field              what is known of a field besides its type
    text_forms         values as text, on a command line and in an image
    unet_features      what the UNet must be able to do
    complete           names and ranges checked, defaults filled in
    recipes            the settings of few-step models, by name
    resolve            request → job: all that depends on the model
    job                a request resolved for one model
    prompts            the prompts, for every text encoder
    grid               steps and schedule → σ
    seeds              a seed for each image
    size_conditioning  SDXL's six numbers
    init_image         an image to begin with
    hires              a second pass at a larger size
    guidance_method    how the results with and without the prompt are combined
    perturbed_attention  guidance away from results without structure
    controls           control images, for ControlNets and T2I-Adapters
    regions            prompts for parts of an image
    images_to_make     what the images of both are brought to
    shortcuts          a guidance interval and a deep cache
    memory             what a request takes at least
    snapshot           what is kept of a job for the text of its images
    record             what an image's text tells of a request
    recorded           a request again from that text
    web_ui             what other programs' settings mean here
    signature          the fields for editors and ``help``
    schema             the fields as JSON
"""
