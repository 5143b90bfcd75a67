"""What a single-file checkpoint is, told from the names and shapes of its tensors alone.

diffusers asks the hub what a model is. The few facts that are missing in a file (architecture,
scheduler, vocabulary) are the same for all models of a family, so they are kept here
(:mod:`kdrt_export.families`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from kdrt_export.errors import SourceError, UnsupportedModelError
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


def is_marker(name: str) -> bool:
    """Whether a tensor says how a model was trained, and is none of a network's."""
    return name in ("v_pred", "ztsnr", *_LATENT_STATISTICS) or name.startswith(f"{_EDM_VELOCITY}.")


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
        remark: what could not be told for certain, and how to say it; empty otherwise.
    """

    label: str
    architecture: Architecture
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
        state = by_name(content)
        shapes = {n: tuple(t.shape) for n, t in state.items() if isinstance(t, torch.Tensor)}
        step = content.get("global_step")

        def read(name: str) -> torch.Tensor:
            whole = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            tensor: torch.Tensor = by_name(whole)[name]
            return tensor

        return Header(
            shapes,
            global_step=step if isinstance(step, int) else None,
            markers=_values(shapes, read),
        )
    except Exception as error:  # a damaged file raises one of many types
        raise SourceError(f"{path.name} is damaged or holds more than weights") from error


def by_name(content: Any) -> Any:
    """The tensors by name in what a pickle holds, where trainers lay them in further dictionaries;
    such can also hold themselves."""
    for _ in range(8):
        if not (isinstance(content, Mapping) and "state_dict" in content):
            break
        content = content["state_dict"]
    return content


def detect(header: Header, name: str) -> CheckpointKind:
    """Tell what a checkpoint is.

    Raises:
        UnsupportedModelError: it is no Stable Diffusion 1, 2 or XL model.
    """
    kind = _of_architecture(header, name)
    trained = as_trained(kind.architecture, header, name)
    if not trained.scheduler.get("_class_name", "").startswith("EDM"):
        return replace(kind, architecture=trained)
    return replace(kind, label=f"{kind.label} EDM", architecture=trained, remark="")


def _of_architecture(header: Header, name: str) -> CheckpointKind:
    if not header.has(_UNET):
        raise UnsupportedModelError(
            f"{name} holds no Stable Diffusion UNet (a LoRA or a VAE alone?); give a full "
            "checkpoint, or its base model with --lora, --vae or --unet and this file"
        )
    if _FIRST_CONVOLUTION not in header.shapes:
        raise UnsupportedModelError(
            f"{name} has another architecture than Stable Diffusion 1, 2 and XL"
        )
    if header.has("conditioner.embedders.1."):
        kind = CheckpointKind("SDXL", SDXL)
        return _with_channels(kind, header, name)
    if _CROSS_ATTENTION not in header.shapes:  # there are none so early in SDXL
        if header.has("conditioner.embedders.0.model."):
            return CheckpointKind("SDXL refiner", SDXL_REFINER)
        if header.has("conditioner.embedders.0."):
            raise UnsupportedModelError(f"{name} is an SDXL model without its second text encoder")
        if header.has(f"{_UNET}label_emb."):
            raise UnsupportedModelError(
                f"{name} holds no text encoder; if it is SDXL's UNet alone, export it on its base "
                f"model: kdrt export sdxl --unet {name}"
            )
    width = header.shapes.get(_CROSS_ATTENTION, (0, 0))[-1]
    if width == 1024:
        return _with_channels(_sd2(header), header, name)
    if width == 768:
        kind = CheckpointKind("Stable Diffusion 1", SD15)
        return _with_channels(kind, header, name)
    raise UnsupportedModelError(
        f"{name} has cross-attention of width {width}; Stable Diffusion 1 has 768, 2 has 1024"
    )


def _sd2(header: Header) -> CheckpointKind:
    prediction = _stated_prediction(header)
    remark = ""
    if prediction is None:
        # Inpainting was only ever made from the base model; SD Turbo predicts noise, and is the one
        # with its text encoder in SDXL's place.
        noise = (
            header.global_step == _SD20_STEPS
            or _channels(header) == 9
            or header.has("conditioner.")
        )
        prediction = "epsilon" if noise else "v_prediction"
        if not noise:
            remark = (
                "nothing in a Stable Diffusion 2 file says what it predicts: taken for a 768 "
                "pixel model, which predicts v; for a 512 pixel base model export it with "
                "--prediction-type epsilon"
            )
    architecture = SD20 if prediction == "epsilon" else SD21
    return CheckpointKind("Stable Diffusion 2", architecture, remark)


def _stated_prediction(header: Header) -> str | None:
    """What the file says: its author in words, by the convention of modelspec, or ``v_pred``. Words
    that mean nothing here are left as they are, to be refused unless the user knows better."""
    stated = header.metadata.get("modelspec.prediction_type", "").strip().lower()
    if stated:
        return "v_prediction" if stated in ("v", "v-prediction") else stated
    return "v_prediction" if "v_pred" in header.shapes else None


def as_trained(architecture: Architecture, header: Header, name: str) -> Architecture:
    """The same with what a file says of its training, of whatever family it is.

    Raises:
        UnsupportedModelError: that is damaged, or of no use here.
    """
    if any(marker in header.shapes for marker in _LATENT_STATISTICS):
        vae = {**architecture.vae, **_latent_statistics(architecture, header, name)}
        return replace(architecture, scheduler=_PLAYGROUND, vae=vae)
    if header.has(_EDM_VELOCITY):
        stated = {key: header.markers.get(f"{_EDM_VELOCITY}.{key}") for key in _RANGE}
        given = {key: values[0] for key, values in stated.items() if values}
        return replace(architecture, scheduler=_COSXL | given)
    scheduler = dict(architecture.scheduler)
    if prediction := _stated_prediction(header):
        scheduler["prediction_type"] = prediction
    if "ztsnr" in header.shapes:
        scheduler["rescale_betas_zero_snr"] = True
    return replace(architecture, scheduler=scheduler)


def _latent_statistics(architecture: Architecture, header: Header, name: str) -> dict[str, Any]:
    """What Playground v2.5 scales its latents by."""
    mean, std = (header.markers.get(marker, ()) for marker in _LATENT_STATISTICS)
    channels = architecture.vae.get("latent_channels", 4)
    if (
        not len(mean) == len(std) == channels
        or not all(map(math.isfinite, mean))
        or not all(0 < value < math.inf for value in std)
    ):
        raise UnsupportedModelError(
            f"{name} was trained in the EDM formulation, but its edm_mean and edm_std are not "
            f"{channels} finite numbers each, the latter above 0; is it damaged?"
        )
    return {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}


def _with_channels(kind: CheckpointKind, header: Header, name: str) -> CheckpointKind:
    """The same for inpainting, whose UNet sees mask and masked image too."""
    channels = _channels(header)
    if channels == 4:
        return kind
    if channels != 9:
        raise UnsupportedModelError(
            f"this UNet takes {channels} channels ({name}); kdrt exports text-to-image models (4) "
            "and inpainting models (9)"
        )
    unet = {**kind.architecture.unet, "in_channels": 9}
    return replace(
        kind,
        label=f"{kind.label} inpainting",
        architecture=replace(kind.architecture, unet=unet),
    )


def _channels(header: Header) -> int:
    return header.shapes[_FIRST_CONVOLUTION][1]


def _values(
    shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], torch.Tensor]
) -> dict[str, tuple[float, ...]]:
    """The numbers of the :data:`_MARKERS` there are; what is no marker's size is left out."""
    small = [name for name in _MARKERS if 0 < math.prod(shapes.get(name, (0,))) <= 64]
    return {name: tuple(read(name).double().flatten().tolist()) for name in small}
