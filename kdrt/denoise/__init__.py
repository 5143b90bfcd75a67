"""The denoiser: ``(x, σ) → denoised``, and what runs a plan with it.

Its files:

    denoiser     guidance and scaling around a UNet: the one thing a sampler knows
    bound_unet   a UNet bound to one batch: where its halves lie, how it is fed
    shortcuts    evaluations that do less: guidance interval, deep cache
    inpaint      a denoiser that knows part of the image
    freeu        FreeU's published factors
    cuda_graphs  a step or a whole loop captured once and replayed
    denoising    keeps the buffers of the last sizes, and samples
"""
