"""Where a model comes from: the demo, a hub id, a diffusers folder, a checkpoint file, or chance.

A :class:`Source` hands out one float32 network at a time, so that an export never holds two.
"""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from kdrt.image_input import CLIP_MEAN, CLIP_STD
from kdrt_export.checkpoint_file import detect, read_header, write_config
from kdrt_export.clip_vocabulary import tokenizer_for
from kdrt_export.errors import SourceError, UnsupportedModel
from kdrt_export.families import DEFAULT_GUIDANCE, KNOWN_MODELS, Architecture, Family

if TYPE_CHECKING:
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

_PIPELINES: dict[str, Family] = {
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
_PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_DOWNLOAD = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]

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

    @abstractmethod
    def unet(self) -> UNet2DConditionModel: ...

    @abstractmethod
    def vae(self) -> AutoencoderKL: ...

    @abstractmethod
    def text_encoder(self, index: int) -> TextModel: ...

    @abstractmethod
    def tokenizer(self, index: int) -> CLIPTokenizer: ...

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


def open_source(
    source: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> Source:
    """Find what ``source`` means.

    Args:
        source: ``demo``, a short name of ``KNOWN_MODELS``, a hub id ``owner/name``, a diffusers
            folder, or a single-file checkpoint.
        revision: branch, tag or commit of a hub id.
        allow_pickle: accept pickled weights (read with ``weights_only``).
        config: a diffusers folder that says what a single-file checkpoint is, where that cannot
            be told from the file.
        random_weights: the architecture of a short name or folder with weights drawn from ``seed``.

    Raises:
        SourceError: it means nothing, or cannot be read or downloaded.
        UnsupportedModel: it is no Stable Diffusion 1, 2 or XL text-to-image model.
    """
    path = Path(source).expanduser()
    if random_weights:
        return _random_source(source, path, seed)
    if source == "demo":
        return FolderSource(demo_folder(), name="demo", origin="demo")
    if source and path.is_dir():
        return FolderSource(path, name=path.resolve().name, origin=path.name, pickles=allow_pickle)
    if path.is_file():
        return SingleFileSource(path, allow_pickle=allow_pickle, config=config)
    known = KNOWN_MODELS.get(source)
    repo = known.repo if known else source
    if repo.count("/") != 1 or path.suffix in {".safetensors", *_PICKLES}:
        raise SourceError(
            f"'{source}' is no file, no folder and no known model; give demo, "
            f"{', '.join(KNOWN_MODELS)}, a hub id (owner/name), a diffusers folder or a "
            "checkpoint file"
        )
    folder = download(repo, revision)
    opened = FolderSource(folder, name=source if known else repo, origin=repo, pickles=allow_pickle)
    opened.revision = folder.name
    opened.guidance_scale = known.guidance_scale if known else None
    return opened


def demo_folder() -> Path:
    """The demo model that ships with kdrt, as a diffusers folder."""
    folder = Path(str(resources.files("kdrt.demo") / "model"))
    if not (folder / "model_index.json").is_file():
        raise SourceError("this installation of kdrt lacks the demo model's weights; reinstall it")
    return folder


def download(repo: str, revision: str | None, **options: Any) -> Path:
    """Fetch a hub repository's safetensors and configurations (through the hub's own cache).

    ``options`` are huggingface_hub's: ``cache_dir``, ``token``, ``local_files_only``, ….
    """
    return download_files(repo, _DOWNLOAD, revision, **options)


def download_files(
    repo: str, patterns: list[str], revision: str | None = None, **options: Any
) -> Path:
    """Fetch the files of a hub repository that match ``patterns``; the folder they lie in."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, **options))
    except HfHubHTTPError as error:
        raise SourceError(
            f"the hub has no readable '{repo}' (revision {revision or 'main'}); check the name, "
            "accept the model's licence on its page and log in with `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise SourceError(
            f"'{repo}' is not in the local hub cache and the hub cannot be reached; connect to the "
            "network or give a local folder or checkpoint file"
        ) from error


class FolderSource(Source):
    """A folder as ``save_pretrained`` writes it."""

    def __init__(self, path: Path, *, name: str, origin: str, pickles: bool = False) -> None:
        self.path, self.name, self.origin, self.pickles = path, name, origin, pickles
        index = _read_json(path / "model_index.json", f"{path} is no diffusers folder")
        pipeline = index.get("_class_name", "?")
        if pipeline not in _PIPELINES:
            raise UnsupportedModel(
                f"{path} holds a {pipeline}; kdrt exports Stable Diffusion 1, 2 and XL "
                "text-to-image pipelines"
            )
        self.family = _PIPELINES[pipeline]
        self.pipeline_class = pipeline
        self.zeros_for_empty_negative = bool(
            index.get("force_zeros_for_empty_prompt", self.family == "sdxl")
        )
        self.is_refiner = self.family == "sdxl" and bool(index.get("requires_aesthetics_score"))
        scheduler = path / "scheduler" / "scheduler_config.json"
        self.scheduler = _read_json(scheduler, f"{path} has no scheduler")

    def unet(self) -> UNet2DConditionModel:
        return _frozen(self._diffusers(UNet2DConditionModel, "unet"))

    def vae(self) -> AutoencoderKL:
        return _frozen(self._diffusers(AutoencoderKL, "vae"))

    def text_encoder(self, index: int) -> TextModel:
        kind = CLIPTextModelWithProjection if index else CLIPTextModel
        return _frozen(self._load(kind, f"text_encoder{_suffix(index)}", dtype=torch.float32))

    def tokenizer(self, index: int) -> CLIPTokenizer:
        return self._load(CLIPTokenizer, f"tokenizer{_suffix(index)}", weights=False)

    def safety_checker(self) -> StableDiffusionSafetyChecker | None:
        from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

        if not (self.path / "safety_checker").is_dir():
            return None
        reading = self.path / "feature_extractor" / "preprocessor_config.json"
        if reading.is_file():
            _check_clip_input(_read_json(reading, f"{self.path} is incomplete"))
        return _frozen(
            self._load(StableDiffusionSafetyChecker, "safety_checker", dtype=torch.float32)
        )

    def _diffusers(self, kind: Any, subfolder: str) -> Any:
        return self._load(kind, subfolder, torch_dtype=torch.float32)

    def _load(self, kind: Any, subfolder: str, *, weights: bool = True, **options: Any) -> Any:
        folder = self.path / subfolder
        if not folder.is_dir():
            raise SourceError(f"{self.path} is incomplete: it has no folder '{subfolder}'")
        if weights:
            if list(folder.glob("*.fp16.safetensors")) and not _plain_weights(folder):
                options["variant"] = "fp16"
            elif not self.pickles and not list(folder.glob("*.safetensors")):
                raise SourceError(
                    f"{folder} has no .safetensors weights; pickled weights can run code when "
                    "opened: convert them, or allow them with --allow-pickle"
                )
            options["use_safetensors"] = None if self.pickles else True
        try:
            return kind.from_pretrained(str(folder), local_files_only=True, **options)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SourceError(f"cannot load {subfolder} from {self.path}: {reason}") from error


class SingleFileSource(Source):
    """A checkpoint as shared by the community: one file, converted by diffusers."""

    def __init__(self, path: Path, *, allow_pickle: bool, config: Path | None) -> None:
        if path.suffix in _PICKLES and not allow_pickle:
            raise SourceError(
                f"{path.name} is a pickle, which can run code when opened: get a .safetensors "
                "file, or allow it with --allow-pickle (weights_only)"
            )
        if path.suffix not in {".safetensors", *_PICKLES}:
            raise SourceError(f"{path.name} is no checkpoint; .safetensors or .ckpt is needed")
        self.name, self.origin = path.stem, path.name
        if config is not None:
            described = FolderSource(config, name=path.stem, origin=path.name)
            self.kind, self.remark = described.kind, ""
            self.is_refiner, self.family = described.is_refiner, described.family
            self.scheduler = described.scheduler
            self.pipeline = _convert(path, described.pipeline_class, config)
        else:
            kind = detect(read_header(path), path.name)
            self.kind, self.remark = kind.label, kind.remark
            self.is_refiner = kind.architecture.is_refiner
            self.family = kind.architecture.family
            self.scheduler = kind.architecture.scheduler
            with tempfile.TemporaryDirectory() as folder:
                write_config(kind, Path(folder))
                self.pipeline = _convert(path, kind.pipeline, Path(folder))
        self.zeros_for_empty_negative = self.family == "sdxl"

    def unet(self) -> UNet2DConditionModel:
        return _frozen(self._take("unet"))

    def vae(self) -> AutoencoderKL:
        return _frozen(self._take("vae"))

    def text_encoder(self, index: int) -> TextModel:
        return _frozen(self._take(f"text_encoder{_suffix(index)}"))

    def tokenizer(self, index: int) -> CLIPTokenizer:
        return getattr(self.pipeline, f"tokenizer{_suffix(index)}")

    def _take(self, name: str) -> Any:
        network = getattr(self.pipeline, name)
        setattr(self.pipeline, name, None)
        return network


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
        self.architecture, self.seed, self._tokenizers = architecture, seed, tokenizers
        self.name, self.origin = f"{name}-random", f"{name} with random weights, seed {seed}"
        self.family = architecture.family
        self.is_refiner = architecture.is_refiner
        self.scheduler = architecture.scheduler
        self.zeros_for_empty_negative = self.family == "sdxl"

    def unet(self) -> UNet2DConditionModel:
        return _frozen(self._seeded(lambda: UNet2DConditionModel(**self.architecture.unet)))

    def vae(self) -> AutoencoderKL:
        return _frozen(self._seeded(lambda: AutoencoderKL(**self.architecture.vae)))

    def text_encoder(self, index: int) -> TextModel:
        place = self.encoder_indices.index(index)
        config = CLIPTextConfig(**self.architecture.text_encoders[place])
        kind = CLIPTextModelWithProjection if index else CLIPTextModel
        return _frozen(self._seeded(lambda: kind(config)))

    def tokenizer(self, index: int) -> CLIPTokenizer:
        if self._tokenizers is not None:
            return self._tokenizers(index)
        place = self.encoder_indices.index(index)
        return tokenizer_for(self.architecture.text_encoders[place])

    def _seeded(self, make: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return make()


def _convert(path: Path, pipeline: str, config: Path) -> Any:
    """The pipeline of a checkpoint, of the diffusers class of that name."""
    import diffusers

    options = {}
    if "XL" not in pipeline:
        options = {"safety_checker": None, "feature_extractor": None}
    try:
        return getattr(diffusers, pipeline).from_single_file(
            str(path),
            config=str(config),
            local_files_only=True,
            torch_dtype=torch.float32,
            **options,
        )
    except Exception as error:  # diffusers raises whatever the file's content leads it to
        text = str(error).strip()
        reason = text.splitlines()[0] if text else type(error).__name__
        raise SourceError(
            f"cannot read {path.name}: {reason}; where it is of another architecture, say which "
            "with --config and a diffusers folder of the same kind"
        ) from error


def _random_source(source: str, path: Path, seed: int) -> Source:
    if source in KNOWN_MODELS:
        return RandomSource(KNOWN_MODELS[source].architecture, name=source, seed=seed)
    folder = demo_folder() if source == "demo" else path
    if not folder.is_dir():
        raise SourceError(
            f"there is no architecture '{source}' to give random weights; there are "
            f"{', '.join(KNOWN_MODELS)}, demo, and those of diffusers folders"
        )
    opened = FolderSource(folder, name=folder.name, origin=folder.name)

    def config(name: str) -> dict[str, Any]:
        raw = _read_json(folder / name / "config.json", f"{folder} has no {name}")
        # Weights are drawn in float32, in whatever precision the folder's are stored.
        ignored = {"dtype", "torch_dtype"}
        return {k: v for k, v in raw.items() if k not in ignored and not k.startswith("_")}

    encoders = tuple(config(f"text_encoder{_suffix(i)}") for i in opened.encoder_indices)
    architecture = Architecture(
        opened.family,
        config("unet"),
        config("vae"),
        encoders,
        opened.is_refiner,
        opened.scheduler,
    )
    return RandomSource(
        architecture,
        name=source if source == "demo" else path.name,
        seed=seed,
        tokenizers=opened.tokenizer if any(folder.glob("tokenizer*")) else None,
    )


def _check_clip_input(config: dict[str, Any]) -> None:
    """Pictures reach a safety checker as CLIP reads them, and no other way."""
    for key, expected in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD)):
        value = config.get(key, expected)
        if max(abs(a - b) for a, b in zip(value, expected, strict=True)) > 1e-3:
            raise UnsupportedModel(
                f"this model's feature extractor has {key} {value}, where CLIP has "
                f"{list(expected)}; leave the checker out with --no-safety-checker"
            )


def _suffix(index: int) -> str:
    return f"_{index + 1}" if index else ""


def _frozen(network: Any) -> Any:
    return network.eval().requires_grad_(False)


def _plain_weights(folder: Path) -> bool:
    return any(".fp16." not in file.name for file in folder.glob("*.safetensors"))


def _read_json(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{otherwise}: {path.name} is missing") from error
    except ValueError as error:
        raise SourceError(f"{otherwise}: {path.name} is not JSON") from error
