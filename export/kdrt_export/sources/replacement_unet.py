"""Another UNet in place of a model's own (``--unet``): distilled ones are shared without the rest,
such as SDXL Lightning (Lin et al. 2024, arXiv:2402.13929) and Hyper-SD (Ren et al. 2024,
arXiv:2404.13686)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from kdrt_export.errors import UnsupportedModelError
from kdrt_export.families import Architecture
from kdrt_export.sources.base import Source
from kdrt_export.sources.checkpoint_file import as_trained, read_header
from kdrt_export.sources.layouts import unet_tensors
from kdrt_export.sources.part import SCHEDULER, PartPlace
from kdrt_export.sources.reading import read_json
from kdrt_export.sources.weights import Weights

UNET = PartPlace("UNet", "unet", "ByteDance/SDXL-Lightning:sdxl_lightning_4step_unet.safetensors")
_HINT = "it is incomplete, or not for this base model"


def replace_unet(opened: Source, source: str, *, allow_pickle: bool = False) -> None:
    """Give a model another UNet, and the scheduler that says how that one was trained.

    Args:
        opened: the model.
        source: see :func:`replacement_unet`.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: see :func:`replacement_unet`.
        UnsupportedModelError: it was trained in a way that does not go with the model.
    """
    path = UNET.find(source, allow_pickle=allow_pickle)
    own = opened.config("unet")
    opened.replacements["unet"] = replacement_unet(str(path), own, allow_pickle=allow_pickle)
    opened.scheduler = _scheduler(path, opened)


def replacement_unet(
    source: str, own: Mapping[str, Any], *, allow_pickle: bool = False
) -> Weights[UNet2DConditionModel]:
    """Find a UNet by itself.

    Args:
        source: a folder of a ``UNet2DConditionModel`` or of a pipeline with one, a checkpoint file
            of either layout, a hub id, or ``owner/name:path`` for a file on the hub.
        own: the configuration of the model's own UNet, which a checkpoint file is read as: such
            files hold weights alone.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: it means nothing, cannot be read, or is of another architecture.
    """
    path = UNET.find(source, allow_pickle=allow_pickle)
    if path.is_dir():
        return UNET.from_folder(UNet2DConditionModel, path, allow_pickle=allow_pickle)
    tensors = unet_tensors(path, own)
    return Weights(UNet2DConditionModel, {**own, **_told(tensors)}, tensors, path.name, _HINT)


def _scheduler(path: Path, opened: Source) -> dict[str, Any]:
    """The pipeline's, where the UNet is a pipeline's; else the model's own, with what the UNet's
    file says of its training."""
    if path.is_dir():
        file = path / SCHEDULER
        alone = (path / "config.json").is_file() or not file.is_file()
        return opened.scheduler if alone else read_json(file, f"{path} has no scheduler")
    vae = dict(opened.config("vae"))
    model = Architecture(opened.family, {}, vae, (), scheduler=opened.scheduler)
    trained = as_trained(model, read_header(path), path.name)
    if trained.vae is not vae and vae.get("latents_mean") is None:
        raise UnsupportedModelError(
            f"{path.name} wants latents of the statistics in its edm_mean and edm_std, which the "
            "base model's VAE does not have; give a base model trained like it (Playground v2.5)"
        )
    return trained.scheduler


def _told(tensors: Mapping[str, Any]) -> dict[str, int]:
    """What the tensors say of a UNet that is inpainting's or takes its guidance scale, where its
    base model's is not or does not."""
    places = {
        "in_channels": "conv_in.weight",
        "time_cond_proj_dim": "time_embedding.cond_proj.weight",
    }
    return {
        setting: tensors[name].shape[1]
        for setting, name in places.items()
        if name in tensors and tensors[name].ndim > 1
    }
