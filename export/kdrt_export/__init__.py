"""The export stage: from a Stable Diffusion checkpoint to a bundle of verified ONNX networks.

The runtime never imports this package.

Its files:

    stage             the whole export: source → bundle
    add               more for a bundle that is there
    options           options that have a fixed set of values
    families          the models it knows by name
    sources           loads checkpoints
    walk              from a source to the components that are exported of it
    components        the modules that are traced
    component_export  one component: rewritten, traced, verified
    rewrites          change the networks before they are traced
    onnx              writes ONNX
    dialects          one ONNX file for each reader
    quantize          networks in fewer bits
    recording         an engine that keeps what goes through it
    programs          exported PyTorch programs
    verify            compares an exported network with eager PyTorch
    keep_fp32         what stays in float32 of a network in float16
    float32_search    finds what has to
    graph_inspection  what is in the graph of a network, and what is wrong with it
    compare           finds the layer where two engines or bundles begin to differ
    lora              LoRAs baked in
    control           ControlNets and T2I-Adapters, and the UNet that takes their residuals
    upscaler          networks that enlarge images
    reopen            a bundle's UNet as diffusers' network again
    ip_adapter        IP-Adapter as a variant of the UNet
    tokenizers        tokenizers and token embeddings
    scheduler         what a scheduler file says of the training
    configs           the configurations of the networks
    freed_memory      what was freed, back to the system
    report            progress of an export
    errors            exceptions of the export
    demo              the demo model
"""
