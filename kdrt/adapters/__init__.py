"""Adapters: small files that change what a model makes.

``lora_file`` reads LoRAs in every spelling diffusers and ComfyUI read (``lora_keys`` the names of
tensors, ``lora_metadata`` the alphas, ``lora_layer`` the parts of one layer), ``lora_names`` finds
the weights they mean, ``lora_merge`` adds them up, and ``lora`` keeps those of one pipeline. All
but the last know nothing of engines or bundles: an export bakes LoRAs in with the same code.
``embedding_file`` reads textual inversions, ``textual_inversion`` teaches them to text encoders.
What files of both have in common is in ``tensor_file``.

Imported by ``kdrt.pipeline.pipeline`` and by ``kdrt_export``.
"""
