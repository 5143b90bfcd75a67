"""The file that stable-diffusion.cpp reads, from a model's own modules."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from kdrt_bench.errors import BenchmarkError, PeerUnavailableError
from kdrt_bench.jobs import Model
from kdrt_bench.networks import source_of
from kdrt_bench.networks_kept import kept
from kdrt_export.sources import Source

if TYPE_CHECKING:
    from kdrt_bench.peers.base import Peer

_BUILT_IN = {"sd": (320, 640, 1280, 1280), "sdxl": (320, 640, 1280)}
"""Channels of the UNets that it has, by family: it reads no configuration."""

_FILE = "model.gguf"


def check_architecture(model: Model) -> None:
    """See that it has the architecture of a model.

    Raises:
        PeerUnavailableError: it has not.
    """
    source = source_of(model)
    channels = tuple(source.config("unet")["block_out_channels"])
    if channels != _BUILT_IN[source.family]:
        raise PeerUnavailableError(
            "stable-diffusion.cpp has the sizes of Stable Diffusion and SDXL built in, and "
            f"'{model.name}' has a UNet of another"
        )


def ggml_file(peer: Peer, weights: str) -> Path:
    """The model with weights of a type of ggml, as its own converter makes it: that in f32 from
    what diffusers and transformers write, the others from that in f32."""

    def make(folder: Path) -> None:
        if weights != "f32":
            _convert(ggml_file(peer, "f32"), folder / _FILE, weights)
            return
        with tempfile.TemporaryDirectory(dir=folder.parent) as plain:
            _write_diffusers(Path(plain), source_of(peer.model))
            _convert(Path(plain), folder / _FILE, weights)

    return kept(peer.model.cache / "ggml" / weights, make) / _FILE


def _convert(source: Path, target: Path, weights: str) -> None:
    import stable_diffusion_cpp

    kind = stable_diffusion_cpp.GGMLType[f"SD_TYPE_{weights.upper()}"]
    # Under the names of a checkpoint file, by which it knows what not to quantize.
    made = stable_diffusion_cpp.convert(
        str(source).encode(), b"", str(target).encode(), kind, b"", True
    )
    if not made:
        raise BenchmarkError(f"stable-diffusion.cpp could not convert the model to {weights}")


def _write_diffusers(folder: Path, source: Source) -> None:
    """The weights in a diffusers folder, under the names that files from the hub have."""
    source.unet().save_pretrained(folder / "unet", max_shard_size="1TB")
    source.vae().save_pretrained(folder / "vae", max_shard_size="1TB")
    for index in range(source.text_encoders):
        target = folder / f"text_encoder{'_2' if index else ''}"
        target.mkdir()
        states = source.text_encoder(index).state_dict()
        save_file(
            {_published(name): value.contiguous() for name, value in states.items()},
            target / "model.safetensors",
        )


def _published(name: str) -> str:
    """Published files have a prefix that today's transformers leaves out without a projection."""
    return name if name.startswith("text_") else f"text_model.{name}"
