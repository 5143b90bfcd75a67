"""What every source of a model has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from kdrt_export.errors import UnsupportedModelError
from kdrt_export.families import DEFAULT_GUIDANCE, Family
from kdrt_export.sources.reading import refused
from kdrt_export.sources.weights import Weights

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

TextModel: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


class Source(ABC):
    """A model to export. Networks come in float32, in evaluation mode, without gradients."""

    name: str
    origin: str
    family: Family
    revision: str | None = None
    guidance_scale: float | None = None
    zeros_for_empty_negative: bool = False
    kind: str = ""
    """What it is, for people: ``SDXL inpainting``; empty where nothing is known but the family."""
    remark: str = ""
    """What could not be told for certain."""
    is_refiner: bool = False
    """SDXL's refiner: the second text encoder alone, and an aesthetic score for a target size."""
    scheduler: dict[str, Any]
    """The scheduler's configuration, only with the keys its file really holds."""

    def __init__(self) -> None:
        self.replacements: dict[str, Weights[Any]] = {}
        """Networks to take in place of the model's own, by part: ``unet``, ``vae``."""

    @abstractmethod
    def config(self, part: Literal["unet", "vae"]) -> Mapping[str, Any]:
        """The configuration of the model's own UNet or VAE, as diffusers has it."""

    @abstractmethod
    def tokenizer(self, index: int) -> CLIPTokenizer: ...

    @abstractmethod
    def make(self, part: str) -> Any:
        """A network of the model's own by the name of its folder in a pipeline: ``unet``,
        ``text_encoder_2``."""

    def unet(self) -> UNet2DConditionModel:
        network: UNet2DConditionModel = self._network("unet")
        return network

    def vae(self) -> AutoencoderKL:
        network: AutoencoderKL = self._network("vae")
        return network

    def text_encoder(self, index: int) -> TextModel:
        network: TextModel = self._network(f"text_encoder{suffix(index)}")
        return network

    def _network(self, part: str) -> Any:
        weights = self.replacements.get(part)
        return self.make(part) if weights is None else weights.network()

    def check(self, *, safety_checker: bool = True) -> None:
        """See that every network is whole, and every tokenizer, before any is used.

        Args:
            safety_checker: whether it will be used.

        Raises:
            SourceError: one is not.
        """
        for weights in self.replacements.values():
            weights.check()

    def safety_checker(self) -> StableDiffusionSafetyChecker | None:
        """The safety checker, where the model comes with one."""
        return None

    @property
    def text_encoders(self) -> int:
        return len(self.encoder_indices)

    @property
    def encoder_indices(self) -> tuple[int, ...]:
        """Which of the two places for text encoders are taken: 0, 1 or both."""
        if self.is_refiner:
            return (1,)
        return (0, 1) if self.family == "sdxl" else (0,)

    @property
    def default_guidance_scale(self) -> float:
        return DEFAULT_GUIDANCE[self.family] if self.guidance_scale is None else self.guidance_scale


class FileSource(Source):
    """A source with its weights in files."""

    @abstractmethod
    def weights(self, part: str) -> Weights[Any]:
        """What a network of its own is made of; see :meth:`make`."""

    def make(self, part: str) -> Any:
        return self.weights(part).network()

    def check(self, *, safety_checker: bool = True) -> None:
        super().check(safety_checker=safety_checker)
        for index in self.encoder_indices:
            self.weights(f"text_encoder{suffix(index)}").check()
            self.tokenizer(index)
        for part in ("vae", "unet"):
            if part not in self.replacements:
                self.weights(part).check()


def text_model(index: int) -> type[TextModel]:
    """The class of the first or the second text encoder."""
    return CLIPTextModelWithProjection if index else CLIPTextModel


def text_config(raw: Mapping[str, Any], where: str) -> CLIPTextConfig:
    """The configuration of a text encoder.

    Args:
        raw: what its file holds; of a whole CLIP, the half for text counts.
        where: the file, for messages.

    Raises:
        SourceError: it is damaged.
        UnsupportedModelError: it is of another kind than CLIP.
    """
    half = raw.get("text_config")
    raw = half if isinstance(half, Mapping) and half else raw
    kind = raw.get("model_type", "clip_text_model")
    if kind not in ("clip", "clip_text_model"):
        raise UnsupportedModelError(f"{where} is of a model of type '{kind}'; kdrt exports CLIP's")
    # Weights are read and drawn in float32, in whatever precision they are stored.
    kept = {key: value for key, value in raw.items() if key not in ("dtype", "torch_dtype")}
    with refused(f"{where} describes no CLIP text encoder"):
        return CLIPTextConfig.from_dict(kept)


def suffix(index: int) -> str:
    """What stands behind the names of the first or the second text encoder and its tokenizer."""
    return f"_{index + 1}" if index else ""
