"""A MODEL of ComfyUI that runs on a kdrt engine."""

from __future__ import annotations

from typing import Any, NoReturn

import comfy.model_base
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models
import torch
from torch import Tensor

from kdrt import BundleError, InvalidRequestError, Pipeline
from kdrt.bundle import Manifest, config_file
from kdrt.bundle.store import read_json
from kdrt.denoise.bound_unet import is_inpainting
from kdrt_engines import EngineSpec

from .unet import EngineUNet

_FAMILIES = {
    0: (comfy.supported_models.SD15, comfy.model_base.BaseModel),
    6: (comfy.supported_models.SDXL, comfy.model_base.SDXL),
    5: (comfy.supported_models.SDXLRefiner, comfy.model_base.SDXLRefiner),
}
"""ComfyUI's configuration and model, by how many numbers the size conditioning has."""

_PREDICTIONS = {
    "epsilon": (comfy.model_base.ModelType.EPS, comfy.model_sampling.EPS),
    "v_prediction": (comfy.model_base.ModelType.V_PREDICTION, comfy.model_sampling.V_PREDICTION),
    "sample": (comfy.model_base.ModelType.EPS, comfy.model_sampling.X0),
}
"""How a prediction is read, by `kdrt.bundle.PredictionType`."""

_BAKE = ", or bake LoRAs into the bundle with `kdrt export … --lora FILE:SCALE`"


def engine_model(pipeline: Pipeline, *, whole_timesteps: bool) -> EnginePatcher:
    """A MODEL around the UNet of a pipeline.

    Args:
        pipeline: an open one.
        whole_timesteps: give the UNet the nearest training timestep, as ComfyUI does; else one
            between two of them, as kdrt does.

    Raises:
        InvalidRequestError: a model that ComfyUI would call in a way which this one does not
            understand.
    """
    manifest = pipeline.bundle.manifest
    engine = pipeline.engines["unet"]
    unet = EngineUNet(pipeline)
    if manifest.scheduler.edm is not None:
        raise InvalidRequestError(
            f"'{manifest.name}' cannot be a MODEL: it is in the EDM formulation, which this node "
            "does not know; use the node 'kdrt image'"
        )
    has_sizes = engine.spec.has_input("time_ids")
    numbers = engine.spec.input("time_ids").shape[-1] if has_sizes else 0
    config_class, model_class = _FAMILIES[int(numbers)]
    # Nodes that patch layers look for model_channels, and fail without it before we can refuse.
    config = config_class({"disable_unet_model_creation": True, "model_channels": 0})
    config.latent_format.scale_factor = _scaling_factor(pipeline, config.latent_format.scale_factor)

    model_type, prediction = _PREDICTIONS[manifest.scheduler.prediction_type]
    model = model_class(config, model_type)
    model.diffusion_model = unet
    timesteps = comfy.model_sampling.ModelSamplingDiscrete
    sampling = type(
        "Sampling", (timesteps if whole_timesteps else BetweenTimesteps, prediction), {}
    )
    model.model_sampling = sampling(config)
    model.model_sampling.set_sigmas(torch.tensor(pipeline.noise_schedule.sigmas))
    if is_inpainting(engine.spec):
        _check_inpainting(manifest, engine.spec)
        model.set_inpaint()
    model.state_dict_for_saving = _refuse_saving
    return EnginePatcher(model, engine.device, engine.device)


class BetweenTimesteps(comfy.model_sampling.ModelSamplingDiscrete):
    """Timesteps between those of the training, linear in the logarithm of σ."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """Fractional timesteps, float32, as many as ``sigma`` has noise levels."""
        table: Tensor = self.log_sigmas.double()
        levels = sigma.to(table).log()
        high = torch.searchsorted(table, levels).clamp(1, len(table) - 1)
        low = high - 1
        between = (levels - table[low]) / (table[high] - table[low])
        return (low + between).clamp(0, len(table) - 1).to(sigma.device, torch.float32)


class EnginePatcher(comfy.model_patcher.ModelPatcher):
    """ComfyUI's handle of a MODEL, which refuses to change weights: in an engine there are none
    to change. ComfyUI's own would pass over every weight that it does not find, without a word."""

    def add_patches(self, patches: Any, strength_patch: float = 1.0, *others: Any) -> list[str]:
        """A LoRA, or a part of a merge; a strength of 0 is nothing."""
        if strength_patch != 0:
            raise _no_weights("a LoRA or a merge", _BAKE)
        return []

    def add_hook_patches(self, hook: Any, patches: Any, *others: Any) -> list[str]:
        """A LoRA that is scheduled or belongs to a part of the conditioning."""
        raise _no_weights("a hook with a LoRA", _BAKE)

    def add_weight_wrapper(self, name: str, function: Any) -> None:
        raise _no_weights("a weight wrapper")

    def get_key_patches(self, filter_prefix: str | None = None) -> dict[str, Any]:
        """The weights, for a merge."""
        raise _no_weights("a merge")

    def add_object_patch(self, name: str, obj: Any) -> None:
        """Something in the model replaced; all but the UNet may be."""
        if name.startswith("diffusion_model"):
            raise _no_weights(f"a patch of '{name}'")
        super().add_object_patch(name, obj)


def _no_weights(what: str, instead: str = "") -> InvalidRequestError:
    return InvalidRequestError(
        f"{what} needs the weights of the UNet, and this MODEL is a built engine: take it away"
        f"{instead}"
    )


def _refuse_saving(*arguments: object, **options: object) -> NoReturn:
    """In place of the model's own method, which would write a file without a UNet."""
    raise _no_weights("saving a checkpoint")


def _scaling_factor(pipeline: Pipeline, usual: float) -> float:
    """What ComfyUI multiplies the VAE's latents with.

    Raises:
        InvalidRequestError: latents have a mean of their own too.
    """
    try:
        vae = read_json(pipeline.bundle.file(config_file("vae")))
    except BundleError:  # bundles may do without the configurations
        return usual
    if any(vae.get(name) is not None for name in ("shift_factor", "latents_mean")):
        raise InvalidRequestError(
            f"'{pipeline.bundle.manifest.name}' cannot be a MODEL: its VAE shifts latents, which "
            "this node does not know; use the node 'kdrt image'"
        )
    return float(vae.get("scaling_factor", usual))


def _check_inpainting(manifest: Manifest, unet: EngineSpec) -> None:
    """Whether the UNet sees a mask and the masked image, in this order."""
    (sample, latents) = unet.input("sample").shape[1], manifest.latents.channels
    if sample != 2 * latents + 1:
        raise InvalidRequestError(
            f"'{manifest.name}' cannot be a MODEL: its UNet sees {sample} channels, and those of "
            f"inpainting models are {2 * latents + 1}; use the node 'kdrt image'"
        )
