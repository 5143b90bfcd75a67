"""A diffusers folder: on disk, or a repository of the hub that has the form of one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPConfig, CLIPTextConfig, CLIPTokenizer

from kdrt.images.input import CLIP_MEAN, CLIP_STD
from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.families import Architecture, Family
from kdrt_export.scheduler import DISCRETE
from kdrt_export.sources.base import FileSource, suffix, text_config, text_model
from kdrt_export.sources.hub import Choose
from kdrt_export.sources.reading import read_json, refused
from kdrt_export.sources.tokenizer_files import read_tokenizer
from kdrt_export.sources.weight_files import choose_weights, is_checkpoint, read_folder
from kdrt_export.sources.weights import Weights

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

PIPELINES: dict[str, Family] = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionKDiffusionPipeline": "sd",
    "LatentConsistencyModelPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLKDiffusionPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "safety_checker": ("StableDiffusionSafetyChecker",),
}
"""What each part of a pipeline must be."""
_WEIGHTS = ("text_encoder", "text_encoder_2", "unet", "vae", "safety_checker")
_TEXTS = ("tokenizer", "tokenizer_2", "feature_extractor", "scheduler", *_WEIGHTS)


class FolderSource(FileSource):
    """A folder as ``save_pretrained`` writes it."""

    def __init__(self, path: Path, *, name: str, origin: str, pickles: bool = False) -> None:
        super().__init__()
        self.path, self.name, self.origin, self.pickles = path, name, origin, pickles
        self._index = read_json(path / "model_index.json", f"{path} is no diffusers folder")
        pipeline = self._index.get("_class_name", "?")
        if not isinstance(pipeline, str) or pipeline not in PIPELINES:
            said = pipeline if isinstance(pipeline, str) else f"custom pipeline {pipeline}"
            raise UnsupportedModelError(
                f"{path} holds a {said}; kdrt exports Stable Diffusion 1, 2 and XL "
                "text-to-image pipelines"
            )
        self.family = PIPELINES[pipeline]
        self.pipeline_class = pipeline
        self.zeros_for_empty_negative = self._flag(
            "force_zeros_for_empty_prompt", self.family == "sdxl"
        )
        self.is_refiner = self.family == "sdxl" and self._flag("requires_aesthetics_score", False)
        scheduler = path / "scheduler" / "scheduler_config.json"
        self.scheduler = read_json(scheduler, f"{path} has no scheduler")
        # diffusers goes by the class of the index; a file from elsewhere is its owner's word.
        named = [self.scheduler.get("_class_name"), self._named("scheduler")]
        classes = [each for each in named if each is not None]
        if classes:
            special = [each for each in classes if each not in DISCRETE]
            self.scheduler["_class_name"] = [*special, *classes][0]

    def config(self, part: Literal["unet", "vae"]) -> Mapping[str, Any]:
        return self._json(part, "config.json")

    def weights(self, part: str) -> Weights[Any]:
        folder = self._folder(part)
        kind, config = self._described(part)
        tensors = read_folder(folder, allow_pickle=self.pickles)
        return Weights(kind, config, tensors, str(folder))

    def check(self, *, safety_checker: bool = True) -> None:
        super().check(safety_checker=safety_checker)
        if safety_checker and self._has_safety_checker():
            self.weights("safety_checker").check()

    def text_config(self, index: int) -> CLIPTextConfig:
        """The configuration of a text encoder."""
        part = f"text_encoder{suffix(index)}"
        return text_config(self._json(part, "config.json"), str(self.path / part / "config.json"))

    def tokenizer(self, index: int) -> CLIPTokenizer:
        part = f"tokenizer{suffix(index)}"
        return read_tokenizer(self._folder(part))

    def safety_checker(self) -> StableDiffusionSafetyChecker | None:
        if not self._has_safety_checker():
            return None
        network: StableDiffusionSafetyChecker = self.make("safety_checker")
        return network

    def _has_safety_checker(self) -> bool:
        return (self.path / "safety_checker").is_dir()

    def architecture(self) -> Architecture:
        """The configurations of its networks, without their weights."""
        return Architecture(
            self.family,
            dict(self.config("unet")),
            dict(self.config("vae")),
            tuple(self.text_config(index).to_dict() for index in self.encoder_indices),
            self.is_refiner,
            self.scheduler,
        )

    def _described(self, part: str) -> tuple[type[nn.Module], Any]:
        """The class and the configuration of a part."""
        if part == "unet":
            return UNet2DConditionModel, self.config("unet")
        if part == "vae":
            return AutoencoderKL, self.config("vae")
        if part == "safety_checker":
            return self._described_checker()
        index = int(part.endswith("_2"))
        return text_model(index), self.text_config(index)

    def _described_checker(self) -> tuple[type[nn.Module], CLIPConfig]:
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        reading = self.path / "feature_extractor" / "preprocessor_config.json"
        if reading.is_file():
            _check_clip_input(read_json(reading, f"{self.path} is incomplete"))
        raw = self._json("safety_checker", "config.json")
        with refused(f"{self.path}/safety_checker/config.json describes no safety checker"):
            return StableDiffusionSafetyChecker, CLIPConfig.from_dict(raw)

    def _json(self, part: str, name: str) -> dict[str, Any]:
        return read_json(self._folder(part) / name, f"{self.path / part} is incomplete")

    def _folder(self, part: str) -> Path:
        """The folder of a part, which must be of a class that is exported."""
        folder = self.path / part
        if not folder.is_dir():
            raise SourceError(f"{self.path} is incomplete: it has no folder '{part}'")
        named = self._named(part)
        if named is not None and named not in _CLASSES[part]:
            raise UnsupportedModelError(
                f"the {part} of {self.path} is a {named}, by its model_index.json; kdrt exports "
                f"{' or '.join(_CLASSES[part])}"
            )
        return folder

    def _named(self, part: str) -> Any:
        """The class that the index gives a part, if any."""
        entry = self._index.get(part)
        return entry[-1] if isinstance(entry, list) and entry else None

    def _flag(self, key: str, default: bool) -> bool:
        value = self._index.get(key, default)
        if not isinstance(value, bool):
            raise SourceError(
                f"{self.path / 'model_index.json'} has {key} {value!r}; it must be true or false"
            )
        return value


def pipeline_files(*, allow_pickle: bool, without: Collection[str] = ()) -> Choose:
    """Picks what is used of a repository in the form of a diffusers folder.

    Args:
        allow_pickle: take pickled weights where there are no others.
        without: parts whose weights are not used.
    """

    def choose(names: Collection[str]) -> Collection[str]:
        if "model_index.json" not in names:
            files = [name for name in names if is_checkpoint(name) and "/" not in name]
            hint = f"; for a file of it say owner/name:{files[0]}" if files else ""
            raise SourceError(f"it is no diffusers folder: model_index.json is missing{hint}")
        chosen = ["model_index.json"]
        parts: dict[str, list[str]] = {}
        for name in names:
            part, _, rest = name.partition("/")
            parts.setdefault(part, []).append(rest)
            if part in _TEXTS and rest.endswith((".json", ".txt")) and ".index." not in rest:
                chosen.append(name)
        for part in _WEIGHTS:
            if part in parts and part not in without:
                files_of = choose_weights(parts[part], part, allow_pickle=allow_pickle)
                chosen += [f"{part}/{name}" for name in files_of]
        return chosen

    return choose


def _check_clip_input(config: dict[str, Any]) -> None:
    """Images reach a safety checker as CLIP reads them, and no other way."""
    for key, expected in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        value = config.get(key, expected)
        with refused(f"this model's feature extractor has {key} {value!r}, not three numbers"):
            far = max(abs(a - b) for a, b in zip(value, expected, strict=True)) > 1e-3
        if far:
            raise UnsupportedModelError(
                f"this model's feature extractor has {key} {value}, where CLIP has "
                f"{list(expected)}; leave the checker out with --no-safety-checker"
            )
