"""The rewritten networks of a checkpoint as engines, without an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportTextEncoder, ExportUNet, ExportVaeDecoder
from kdrt_export.sources import open_source


def torch_engines(checkpoint: Path) -> dict[str, Any]:
    """The rewritten networks as engines, without fused projections."""
    source = open_source(str(checkpoint))
    components: dict[str, Any] = {
        "unet": ExportUNet(source.unet(), fuse_qkv=False),
        "vae_decoder": ExportVaeDecoder(source.vae(), fuse_qkv=False),
    }
    for index in range(source.text_encoders):
        components[f"text_encoder{'_2' if index else ''}"] = ExportTextEncoder(
            source.text_encoder(index), normalize=source.family == "sd", fuse_qkv=False
        )
    engines = {}
    for name, component in components.items():
        component.rewrite()
        engines[name] = TorchEngine(component.requires_grad_(True), component.spec)
    return engines
