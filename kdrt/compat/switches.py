"""diffusers' switches for memory and attention, which engines do not have."""

from __future__ import annotations

from typing import Any


class MemorySwitches:
    """These methods are accepted and have no effect: engines stay on their device and have their
    own attention. To save memory, use ``kdrt.load(…, low_vram=True)`` and
    :class:`kdrt.compat.vae.VaeMixin`."""

    hf_device_map: None = None

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """No effect."""

    enable_sequential_cpu_offload = enable_model_cpu_offload
    enable_group_offload = enable_model_cpu_offload
    maybe_free_model_hooks = enable_model_cpu_offload
    remove_all_hooks = enable_model_cpu_offload
    reset_device_map = enable_model_cpu_offload
    enable_attention_slicing = enable_model_cpu_offload
    disable_attention_slicing = enable_model_cpu_offload
    set_attention_slice = enable_model_cpu_offload
    enable_xformers_memory_efficient_attention = enable_model_cpu_offload
    disable_xformers_memory_efficient_attention = enable_model_cpu_offload
    enable_lora_hotswap = enable_model_cpu_offload
    set_lora_device = enable_model_cpu_offload
    set_use_memory_efficient_attention_xformers = enable_model_cpu_offload
