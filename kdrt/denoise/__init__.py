"""The denoiser: ``(x, σ) → denoised``, and what runs a plan with it.

Its files:

    inputs            what a run is made from: plan, first latents, noise, the denoiser's inputs
    denoising         samples runs, and keeps the buffers of the last sizes
    in_flight         images of different runs, taken further together
    flight_states     what takes each of them further after an evaluation
    conditioning_store  what the UNet is told of each
    row_denoiser      their denoiser, which gathers what the UNet is told of each
    denoiser          the UNet of a run and all around it: the one thing a sampler knows
    bound_unet        a UNet bound to one batch: where its rows and halves lie, how they are written
    parts             which rows of the UNet an image has, and what it made of them
    controls          ControlNets and T2I-Adapters around it
    progress          how far a run is, for what works in some of the steps
    scaling           from a noise level to the numbers with which the UNet is called
    guidance          from its predictions to the denoised images
    guidance_methods  other ways to combine them
    perturbed_attention  guidance away from results without the structure of self-attention
    regional          prompts for parts of an image
    known_region      repainting a part of an image with any UNet
    shortcuts         evaluations that do less: guidance interval, deep cache
    freeu             FreeU's published factors
    cuda_graphs       a step or a whole loop captured once and replayed
    graph_level       the level: off, step or loop
"""
