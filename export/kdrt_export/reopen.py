"""A UNet of a bundle as diffusers' network again, from its weights file and the configuration that
the bundle keeps: what is added to a bundle later is traced and verified with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from torch import nn

from kdrt.bundle import Manifest, config_file
from kdrt_engines.onnx_weights import stored_weights
from kdrt_export.errors import ExportError, SourceError
from kdrt_export.ip_adapter import share_among_images
from kdrt_export.sources.reading import read_json, refused
from kdrt_export.sources.weights import Weights

_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_kv_ip": ("to_k_ip", "to_v_ip"),
}
"""Projections that are one in a bundle, and what they are in diffusers."""


def check_reopens(manifest: Manifest, folder: Path) -> None:
    """Whether the UNets of a bundle can be opened again, as far as no weight tells.

    Raises:
        ExportError: they cannot; says why, and what to do.
    """
    if manifest.quantization is not None:
        raise ExportError(
            f"'{manifest.name}' is quantised, and its UNet cannot be made again from that; add to "
            f"'{manifest.quantization.made_from}', which it was made from, and quantise the result"
        )
    if manifest.baked.weights == "int8":
        raise ExportError(
            f"the weights of '{manifest.name}' are int8, from which its UNet cannot be made "
            f"again; export the model again with `{manifest.export_command} --controlnet SOURCE`, "
            "without --weights int8"
        )
    if not (folder / config_file("unet")).is_file():
        raise ExportError(
            f"'{manifest.name}' is a bundle of an earlier version, which kept no configuration of "
            f"its UNet; export the model again with `{manifest.export_command} --controlnet SOURCE`"
        )


def unet_config(folder: Path) -> dict[str, Any]:
    """diffusers' configuration of a bundle's UNet.

    Raises:
        SourceError: it cannot be read.
    """
    return read_json(folder / config_file("unet"), "the bundle's UNet cannot be made again")


def reopen_unet(folder: Path, manifest: Manifest, component: str = "unet") -> UNet2DConditionModel:
    """The network of a component: float32, in evaluation mode, without gradients.

    Args:
        folder: of the bundle, whose files are those of the manifest.
        manifest: its manifest.
        component: ``unet``, or the one with an IP-Adapter.

    Raises:
        ExportError: see :func:`check_reopens`.
        SourceError: the weights are not those of such a network.
    """
    check_reopens(manifest, folder)
    stored = stored_weights(folder / manifest.components[component].onnx)
    tensors = _unfused({name.removeprefix("unet."): w.mapped() for name, w in stored.items()})
    images = {name: tensors.pop(name) for name in list(tensors) if _of_image(name)}
    hint = "it was exported in a way that cannot be undone: export the model again"
    where = f"{component} of '{manifest.name}'"
    unet = Weights(UNet2DConditionModel, unet_config(folder), tensors, where, hint).network()
    if images:
        with refused(f"the IP-Adapter of '{manifest.name}' cannot be made again"):
            _attach_images(unet, images, manifest)
    return unet


def _of_image(name: str) -> bool:
    return ".to_k_ip." in name or ".to_v_ip." in name


def _unfused(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors by diffusers' names: fused projections are cut into equal parts."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        attention, _, projection = module.rpartition(".")
        number = ""
        if projection.isdigit():  # there is one for each IP-Adapter
            number = f".{projection}"
            attention, _, projection = attention.rpartition(".")
        parts = _FUSED.get(projection)
        if parts is None:
            made[name] = tensor
        else:
            for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
                made[f"{attention}.{part}{number}.{kind}"] = rows
    return made


def _attach_images(
    unet: UNet2DConditionModel, tensors: Mapping[str, torch.Tensor], manifest: Manifest
) -> None:
    """Give the UNet an IP-Adapter's attention to images, as diffusers' loader does."""
    if not manifest.ip_attentions:
        raise SourceError("it is of an earlier kdrt; export the model again")
    processors: dict[str, Any] = dict(unet.attn_processors)
    for path in processors:
        site = path.removesuffix(".processor")
        if f"{site}.to_k_ip.0.weight" not in tensors:
            continue
        rows, columns = tensors[f"{site}.to_k_ip.0.weight"].shape
        tokens = [facts.tokens for facts in manifest.ip_adapters.values()]
        processor = IPAdapterAttnProcessor2_0(rows, columns, num_tokens=tokens)
        for part in ("to_k_ip", "to_v_ip"):
            for adapter, linear in enumerate(getattr(processor, part)):
                linear.weight = nn.Parameter(tensors[f"{site}.{part}.{adapter}.weight"].float())
        processors[path] = processor
    unet.set_attn_processor(processors)
    share_among_images(unet, [facts.images for facts in manifest.ip_adapters.values()])
    unet.encoder_hid_proj = nn.Identity()
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    unet.eval().requires_grad_(False)
