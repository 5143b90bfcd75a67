"""Adapters: small files that change what a model makes.

An export bakes LoRAs in with the code that is here: all of ``lora_…`` but ``lora`` itself knows
nothing of engines or bundles.

Its files:

    lora               the LoRAs of one pipeline
    lora_file          LoRA files, in every spelling that diffusers and ComfyUI read
    lora_keys          the names of their tensors
    lora_metadata      what peft says beside them
    lora_parts         the parts of one layer
    lora_kinds         the kinds that they make, checked
    lora_layer         what they add to a weight
    lora_changes       what they make of a weight
    lora_rotations     how they rotate a weight
    lora_names         the weights they mean
    lora_merge         weights with LoRAs added
    lora_block_weights the numbers of ``lbw=``
    lora_facts         what a file is, for people to read
    embedding_file     files of textual inversion
    textual_inversion  learned tokens, taught to text encoders
    tensor_file        what files of both have in common
    ip_adapter         images as prompts
    image_prompt       what a request gives for them
    image_scale        how much they count, transformer by transformer
    image_mask         where they count
    warning            AdapterWarning
    variants           other components of a bundle in the place of one
    unet_features      what the UNets of a bundle can do
"""
