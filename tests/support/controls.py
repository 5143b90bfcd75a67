"""A tiny model with an IP-Adapter, a ControlNet and a T2I-Adapter, exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

from kdrt_export.stage import export
from tests.support.ip_adapter import write_adapter
from tests.support.tiny_networks import controlnet, t2i_adapter, unet

ADDED = ("-control", "canny_edges", "canny_edges-hint", "lines")
"""How the components end that come with the controls."""


@dataclass(frozen=True)
class Controls:
    """Where all lies; ``controlnet`` and ``adapter`` as an export is told of them."""

    folder: Path
    bundle: Path

    @property
    def controlnet(self) -> str:
        return str(self.folder / "Canny_Edges")

    @property
    def adapter(self) -> str:
        return f"{self.folder / 'sketch.safetensors'}:lines"


def export_controls(model: Path, folder: Path) -> Controls:
    """Export a Stable Diffusion of tiny networks with all of them; beside is a ``sdxl`` that does
    not fit."""
    made = Controls(folder, folder / "bundles" / "sd")
    controlnet("sd").save_pretrained(folder / "Canny_Edges")
    controlnet("sdxl").save_pretrained(folder / "sdxl")
    # In its authors' layout, which is that of the inner module of diffusers' for a light one.
    state = t2i_adapter("sd", adapter_type="light_adapter", channels=[16, 32]).state_dict()
    original = {name.removeprefix("adapter."): tensor for name, tensor in state.items()}
    save_file(original, folder / "sketch.safetensors")
    export(
        str(model),
        made.bundle,
        ip_adapter=str(write_adapter(folder / "ip", unet("sd"))),
        controlnets=[made.controlnet],
        t2i_adapters=[made.adapter],
    )
    return made
