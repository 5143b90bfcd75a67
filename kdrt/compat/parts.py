"""The parts of a drop-in pipeline by diffusers' names, and what may take their place."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NoReturn

from kdrt.bundle import Manifest
from kdrt.compat.config import Config
from kdrt.compat.grid import TrainingTable
from kdrt.compat.scheduler_view import SchedulerView
from kdrt.compat.text_views import inner
from kdrt.compat.unet_view import UNetView
from kdrt.compat.vae_view import VaeView
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline

_CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "scheduler": ("diffusers", "LMSDiscreteScheduler"),
    "safety_checker": ("stable_diffusion", "StableDiffusionSafetyChecker"),
    "feature_extractor": ("transformers", "CLIPImageProcessor"),
}
_NEEDED = ("unet", "vae")
_NETWORKS = (
    *_NEEDED,
    *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    *("feature_extractor", "image_encoder"),
)


class PartsMixin:
    """For a class with a ``pipeline`` and a ``scheduler``.

    Assigning a part is checked: another scheduler decides the default grid from then on, as it
    did; networks are engines and cannot be replaced. None in place of a text encoder or tokenizer
    has no effect, as there is no module to be freed.
    """

    pipeline: Pipeline
    scheduler: Any

    @property
    def name_or_path(self) -> str:
        """What the model was opened from."""
        raise NotImplementedError

    watermark: None = None
    feature_extractor: None = None
    image_encoder: None = None

    @property
    def unet(self) -> UNetView:
        """The configuration, dtype and switches of the UNet."""
        return UNetView(self.pipeline)

    @property
    def vae(self) -> VaeView:
        """The configuration, dtype and switches of the VAE, with its encoder and decoder."""
        return VaeView(self.pipeline)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, as the constructor of the original took them."""
        return {name: getattr(self, name) for name in self._part_names()}

    @property
    def config(self) -> Config:
        """The pipeline's configuration: the classes that its parts stand for, and its flags."""
        manifest = self.pipeline.bundle.manifest
        parts = {name: _CLASSES[name] for name in self._part_names()}
        for name in ("safety_checker", "feature_extractor"):
            if name in parts and self.pipeline.safety_checker is None:
                parts[name] = (None, None)  # type: ignore[assignment]
        flags = (
            {"requires_safety_checker": self.pipeline.safety_checker is not None}
            if manifest.family == "sd"
            else {"force_zeros_for_empty_prompt": manifest.zeros_for_empty_negative}
        )
        return Config(
            _class_name=type(self).__name__, _name_or_path=self.name_or_path, **parts, **flags
        )

    @cached_property
    def k_diffusion_model(self) -> TrainingTable:
        """The ``sigmas`` and ``log_sigmas`` of k-diffusion's denoiser."""
        return TrainingTable.from_facts(self.pipeline.bundle.manifest.scheduler)

    def _part_names(self) -> list[str]:
        return part_names(self.pipeline.bundle.manifest)

    def __setattr__(self, name: str, value: object) -> None:
        if name == "scheduler":
            _check_scheduler(value)
        elif name in _NETWORKS:
            if not self._is_own(name, value):
                _refuse(name)
            return
        try:
            super().__setattr__(name, value)
        except AttributeError as error:
            raise InvalidRequestError(
                f"{name} is read from the model, and cannot be set"
            ) from error

    def __delattr__(self, name: str) -> None:
        if name in _NEEDED or name == "scheduler":
            _refuse(name)
        if name not in _NETWORKS:
            super().__delattr__(name)

    def _is_own(self, name: str, value: object) -> bool:
        """Whether assigning ``value`` changes nothing."""
        if value is None:
            return name not in _NEEDED
        return inner(value) is inner(getattr(self, name, None))


def part_names(manifest: Manifest) -> list[str]:
    """The names of the components of a model's family, in the order of the originals."""
    if manifest.family == "sdxl":
        return [name for name in _CLASSES if name not in ("safety_checker", "feature_extractor")]
    return [name for name in _CLASSES if not name.endswith("_2")]


def _refuse(name: str) -> NoReturn:
    raise InvalidRequestError(
        f"{name} cannot be replaced: networks run as exported engines, which need no torch.compile."
        " For another network save the changed pipeline with diffusers' save_pretrained, and open "
        "that folder with from_pretrained"
    )


def _check_scheduler(value: object) -> None:
    if isinstance(value, SchedulerView):
        return
    if not callable(getattr(value, "set_timesteps", None)) or not hasattr(value, "sigmas"):
        raise InvalidRequestError(
            f"scheduler must have set_timesteps and sigmas, as diffusers' LMSDiscreteScheduler and "
            f"EulerDiscreteScheduler, and {type(value).__name__} has not; what steps is chosen "
            "with set_scheduler"
        )
