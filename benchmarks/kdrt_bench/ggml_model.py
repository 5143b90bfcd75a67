"""What stable-diffusion.cpp reads, from a model's own modules."""

from __future__ import annotations

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


def ggml_model(peer: Peer, weights: str) -> Path:
    """The model as stable-diffusion.cpp loads it: a diffusers folder in f32, or a file that its own
    converter made of that, with the weights that it quantizes in another type of ggml."""

    def write(folder: Path) -> None:
        _write_diffusers(folder, source_of(peer.model))

    def convert(folder: Path) -> None:
        import stable_diffusion_cpp

        made = stable_diffusion_cpp.convert(
            str(ggml_model(peer, "f32")).encode(),
            b"",
            str(folder / _FILE).encode(),
            stable_diffusion_cpp.GGMLType[f"SD_TYPE_{weights.upper()}"],
            b"",
            # Under the names of a checkpoint file, by which it knows what not to quantize.
            True,
        )
        if not made:
            raise BenchmarkError(f"stable-diffusion.cpp could not convert the model to {weights}")

    place = peer.model.cache / "ggml" / weights
    return kept(place, write) if weights == "f32" else kept(place, convert) / _FILE


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
