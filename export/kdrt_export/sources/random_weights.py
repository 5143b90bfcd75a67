"""An architecture with random weights, for benchmarks and tests at real sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import psutil
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from kdrt_export.errors import SourceError
from kdrt_export.families import Architecture
from kdrt_export.sources.base import Source, text_config, text_model
from kdrt_export.sources.clip_vocabulary import tokenizer_for
from kdrt_export.sources.reading import refused
from kdrt_export.sources.weights import build

Network = TypeVar("Network", bound=nn.Module)

_MAX_LAYERS = 1000


class RandomSource(Source):
    """A real architecture with random weights.

    Args:
        architecture: its configurations.
        name: what it is of.
        seed: of the weights.
        tokenizers: gives its own by index; without it they are CLIP's.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        name: str,
        seed: int,
        tokenizers: Callable[[int], CLIPTokenizer] | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.seed, self._tokenizers = architecture, seed, tokenizers
        self.name, self.origin = f"{name}-random", f"{name} with random weights, seed {seed}"
        self.family = architecture.family
        self.is_refiner = architecture.is_refiner
        self.scheduler = architecture.scheduler
        self.zeros_for_empty_negative = architecture.zeros_for_empty_negative

    def config(self, part: Literal["unet", "vae"]) -> Mapping[str, Any]:
        return self.architecture.unet if part == "unet" else self.architecture.vae

    def make(self, part: str) -> Any:
        if part == "unet":
            return self._drawn(UNet2DConditionModel, self.architecture.unet, "the UNet")
        if part == "vae":
            return self._drawn(AutoencoderKL, self.architecture.vae, "the VAE")
        index = int(part.endswith("_2"))
        raw = self.architecture.text_encoders[self.encoder_indices.index(index)]
        return self._drawn(text_model(index), text_config(raw, self.name), "the text encoder")

    def tokenizer(self, index: int) -> CLIPTokenizer:
        if self._tokenizers is not None:
            return self._tokenizers(index)
        return tokenizer_for(self.architecture.text_encoders[self.encoder_indices.index(index)])

    def _drawn(self, kind: type[Network], config: Any, what: str) -> Network:
        sizes = build(kind, config, what, most=_MAX_LAYERS)
        needed = 4 * sum(parameter.numel() for parameter in sizes.parameters())
        total = psutil.virtual_memory().total
        if needed > total:
            raise SourceError(
                f"{what} would take {needed / 1e9:,.0f} GB, and this computer has "
                f"{total / 1e9:,.0f} GB of memory"
            )
        with torch.random.fork_rng(devices=[]), refused(f"{what} cannot be made"):
            torch.manual_seed(self.seed)
            made: Any = kind
            model = made.from_config(config) if isinstance(config, dict) else made(config)
        return model.eval().requires_grad_(False)
