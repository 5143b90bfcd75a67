"""What a single-file checkpoint is, told from the names and shapes of its tensors alone.

diffusers converts the weights but asks the hub what the model is. The few facts that are missing in
a file — architecture, scheduler, vocabulary — are the same for all models of a family, so they are
kept here (:mod:`kdrt_export.families`), and :func:`write_config` writes them as the folder that
diffusers reads instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig

from kdrt_export.clip_vocabulary import tokenizer_for
from kdrt_export.errors import SourceError, UnsupportedModel
from kdrt_export.families import SD15, SD20, SD21, SDXL, SDXL_REFINER, Architecture

_UNET = "model.diffusion_model."
_FIRST_CONVOLUTION = f"{_UNET}input_blocks.0.0.weight"
_CROSS_ATTENTION = f"{_UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
_EDM_VELOCITY = "edm_vpred"
_RANGE = ("sigma_min", "sigma_max")
_LATENT_STATISTICS = ("edm_mean", "edm_std")
_MARKERS = (*_LATENT_STATISTICS, *(f"{_EDM_VELOCITY}.{key}" for key in _RANGE))
"""Tensors of a few numbers that say how a model was trained: the conventions of ComfyUI."""

_PLAYGROUND: dict[str, Any] = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "prediction_type": "epsilon",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
}
"""The scheduler of Playground v2.5."""

_COSXL: dict[str, Any] = {
    "_class_name": "EDMEulerScheduler",
    "prediction_type": "v_prediction",
    "sigma_min": 0.002,
    "sigma_max": 120.0,
    "sigma_data": 1.0,
    "sigma_schedule": "exponential",
}
"""The scheduler of CosXL, as diffusers documents it."""

_SD20_STEPS = 875_000
"""``global_step`` of Stable Diffusion 2 base, the one place where a file says that it predicts
noise; community files have none."""


@dataclass(frozen=True)
class Header:
    """Names and shapes of a checkpoint's tensors, and what its author wrote besides; ``markers``
    are the values of the few tensors that tell of its training."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    global_step: int | None = None
    markers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.shapes)


@dataclass(frozen=True)
class CheckpointKind:
    """What a checkpoint is.

    Attributes:
        label: for people: ``"SDXL inpainting"``.
        architecture: of its networks, with its scheduler.
        pipeline: the diffusers class that loads it.
        remark: what could not be told for certain, and how to say it; empty otherwise.
    """

    label: str
    architecture: Architecture
    pipeline: str
    remark: str = ""


def read_header(path: Path) -> Header:
    """Read names and shapes, and no weights where the format allows that.

    Raises:
        SourceError: the file is damaged, or holds more than weights.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                markers = _values(shapes, file.get_tensor)
                return Header(shapes, file.metadata() or {}, markers=markers)
        content = torch.load(path, map_location="meta", weights_only=True)
        state = content.get("state_dict", content)
        shapes = {n: tuple(t.shape) for n, t in state.items() if isinstance(t, torch.Tensor)}
        step = content.get("global_step")

        def read(name: str) -> torch.Tensor:
            whole = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            tensor: torch.Tensor = whole.get("state_dict", whole)[name]
            return tensor

        return Header(
            shapes,
            global_step=step if isinstance(step, int) else None,
            markers=_values(shapes, read),
        )
    except Exception as error:  # a damaged file raises one of many types
        raise SourceError(f"{path.name} is damaged or holds more than weights") from error


def detect(header: Header, name: str) -> CheckpointKind:
    """Tell what a checkpoint is.

    Raises:
        UnsupportedModel: it is no Stable Diffusion 1, 2 or XL model.
    """
    return _as_trained(_of_architecture(header, name), header, name)


def _of_architecture(header: Header, name: str) -> CheckpointKind:
    if not header.has(_UNET):
        raise UnsupportedModel(
            f"{name} holds no Stable Diffusion UNet (a LoRA or a VAE alone?); give a full "
            "checkpoint"
        )
    if _FIRST_CONVOLUTION not in header.shapes:
        raise UnsupportedModel(f"{name} has another architecture than Stable Diffusion 1, 2 and XL")
    if header.has("conditioner.embedders.1."):
        kind = CheckpointKind("SDXL", SDXL, "StableDiffusionXLPipeline")
        return _with_channels(kind, header, name)
    if header.has("conditioner.embedders.0.model."):
        return CheckpointKind("SDXL refiner", SDXL_REFINER, "StableDiffusionXLImg2ImgPipeline")
    if header.has("conditioner.embedders.0."):
        raise UnsupportedModel(f"{name} is an SDXL model without its second text encoder")
    width = header.shapes.get(_CROSS_ATTENTION, (0, 0))[-1]
    if width == 1024:
        return _with_channels(_sd2(header), header, name)
    if width == 768:
        kind = CheckpointKind("Stable Diffusion 1", SD15, "StableDiffusionPipeline")
        return _with_channels(kind, header, name)
    raise UnsupportedModel(
        f"{name} has cross-attention of width {width}; Stable Diffusion 1 has 768, 2 has 1024"
    )


def write_config(kind: CheckpointKind, folder: Path) -> None:
    """Write what diffusers reads besides the weights: a pipeline's folder without them."""
    architecture = kind.architecture
    xl = architecture.family == "sdxl"
    index: dict[str, Any] = {
        "_class_name": kind.pipeline,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": [
            "diffusers",
            architecture.scheduler.get("_class_name", "EulerDiscreteScheduler"),
        ],
    }
    _write(folder / "unet" / "config.json", _named("UNet2DConditionModel", architecture.unet))
    _write(folder / "vae" / "config.json", _named("AutoencoderKL", architecture.vae))
    scheduler = _named(index["scheduler"][1], architecture.scheduler)
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    places = ("_2",) if architecture.is_refiner else ("", "_2")
    for place, config in zip(places, architecture.text_encoders, strict=False):
        model = "CLIPTextModelWithProjection" if place else "CLIPTextModel"
        index[f"text_encoder{place}"] = ["transformers", model]
        index[f"tokenizer{place}"] = ["transformers", "CLIPTokenizer"]
        CLIPTextConfig(**config).save_pretrained(folder / f"text_encoder{place}")
        tokenizer_for(config).save_pretrained(folder / f"tokenizer{place}")
    if architecture.is_refiner:
        index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
        index["requires_aesthetics_score"] = True
    if not xl:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    _write(folder / "model_index.json", index)


def _sd2(header: Header) -> CheckpointKind:
    prediction = _stated_prediction(header)
    remark = ""
    if prediction is None:
        # Inpainting was only ever made from the base model.
        noise = header.global_step == _SD20_STEPS or _channels(header) == 9
        prediction = "epsilon" if noise else "v_prediction"
        if not noise:
            remark = (
                "nothing in a Stable Diffusion 2 file says what it predicts: taken for a 768 "
                "pixel model, which predicts v; for a 512 pixel base model export it with "
                "--prediction-type epsilon"
            )
    architecture = SD20 if prediction == "epsilon" else SD21
    return CheckpointKind("Stable Diffusion 2", architecture, "StableDiffusionPipeline", remark)


def _stated_prediction(header: Header) -> str | None:
    """What the file says: its author in words, by the convention of modelspec, or ``v_pred``."""
    stated = header.metadata.get("modelspec.prediction_type", "").lower()
    known = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
    return known.get(stated) or ("v_prediction" if "v_pred" in header.shapes else None)


def _as_trained(kind: CheckpointKind, header: Header, name: str) -> CheckpointKind:
    """The same with what the file says of its training, of whatever family it is."""
    architecture = kind.architecture
    if any(marker in header.shapes for marker in _LATENT_STATISTICS):
        scheduler, vae = _PLAYGROUND, architecture.vae | _latent_statistics(kind, header, name)
    elif header.has(_EDM_VELOCITY):
        stated = {key: header.markers.get(f"{_EDM_VELOCITY}.{key}") for key in _RANGE}
        scheduler = _COSXL | {key: values[0] for key, values in stated.items() if values}
        vae = architecture.vae
    else:
        scheduler = dict(architecture.scheduler)
        if prediction := _stated_prediction(header):
            scheduler["prediction_type"] = prediction
        if "ztsnr" in header.shapes:
            scheduler["rescale_betas_zero_snr"] = True
        return replace(kind, architecture=replace(architecture, scheduler=scheduler))
    return replace(
        kind,
        label=f"{kind.label} EDM",
        architecture=replace(architecture, scheduler=scheduler, vae=vae),
        remark="",
    )


def _latent_statistics(kind: CheckpointKind, header: Header, name: str) -> dict[str, Any]:
    """What Playground v2.5 scales its latents by."""
    mean, std = (header.markers.get(marker, ()) for marker in _LATENT_STATISTICS)
    channels = kind.architecture.vae["latent_channels"]
    if (
        not len(mean) == len(std) == channels
        or not all(map(math.isfinite, mean))
        or not all(0 < value < math.inf for value in std)
    ):
        raise UnsupportedModel(
            f"{name} was trained in the EDM formulation, but its edm_mean and edm_std are not "
            f"{channels} finite numbers each, the latter above 0; is it damaged?"
        )
    return {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}


def _with_channels(kind: CheckpointKind, header: Header, name: str) -> CheckpointKind:
    """The same for inpainting, whose UNet sees mask and masked picture too."""
    channels = _channels(header)
    if channels == 4:
        return kind
    if channels != 9:
        raise UnsupportedModel(
            f"this UNet takes {channels} channels ({name}); kdrt exports text-to-image models (4) "
            "and inpainting models (9)"
        )
    unet = {**kind.architecture.unet, "in_channels": 9}
    return replace(
        kind,
        label=f"{kind.label} inpainting",
        architecture=replace(kind.architecture, unet=unet),
        pipeline=kind.pipeline.replace("Pipeline", "InpaintPipeline"),
    )


def _channels(header: Header) -> int:
    return header.shapes[_FIRST_CONVOLUTION][1]


def _values(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], torch.Tensor]
) -> dict[str, tuple[float, ...]]:
    """The numbers of the :data:`_MARKERS` there are; what is no marker's size is left out."""
    small = [name for name in _MARKERS if 0 < math.prod(shapes.get(name, (0,))) <= 64]
    return {name: tuple(read(name).double().flatten().tolist()) for name in small}


def _named(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"_class_name": kind, **config}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
