"""Whether attention became fused kernels, on which the speed of a UNet depends."""

from __future__ import annotations

from kdrt.backends.records import EngineRecord
from kdrt.bundle import Manifest


def fusion_warning(manifest: Manifest, record: EngineRecord) -> str | None:
    """The warning for a UNet whose attention did not become fused kernels; else None."""
    built, key = record.built, record.key
    if key.component != "unet" or not built.attention_sites:
        return None
    if built.fused_attention is None:
        return "the builder's log did not say whether the UNet's attention was fused"
    sites = built.attention_sites * len(key.profiles)
    if built.fused_attention >= sites:
        return None
    advice = ""
    if key.dtype == "float32":
        quantised = "" if manifest.quantization is None else ", quantise that"
        advice = (
            f": only half precision fuses; export it with `{manifest.export_command} "
            f"--precision fp16`{quantised} and build again"
        )
    return (
        f"only {built.fused_attention} of {sites} attentions of the UNet became fused kernels; "
        f"this engine will be slow and need much memory{advice}"
    )
