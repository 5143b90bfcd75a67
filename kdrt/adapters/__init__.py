"""Adapters: small files that change what a model draws.

``lora_file`` reads LoRAs in every spelling diffusers reads, ``lora_names`` finds the weights they
mean, ``lora_merge`` adds them up, and ``lora`` keeps those of one pipeline. The first three know
nothing of engines or bundles: an export bakes LoRAs in with the same code.

Imported by ``kdrt.pipeline`` and by ``kdrt_export``.
"""
