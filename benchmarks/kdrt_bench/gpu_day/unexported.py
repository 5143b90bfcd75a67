"""A pipeline on the networks of a source, rewritten as an export does it, but neither traced nor
written: a model of real size is ready in seconds, and needs no ONNX."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ControlNetModel
from torch import nn

from kdrt.bundle import (
    Baked,
    Bundle,
    Component,
    ControlFacts,
    Dtype,
    Manifest,
    Precision,
    TensorInfo,
)
from kdrt.bundle.components import CONTROL_COMPONENT, CONTROL_HINT
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.pipeline.pipeline import Pipeline
from kdrt_bench.networks import PlainUNet
from kdrt_engines import Engine
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportComponent, ExportUNet
from kdrt_export.components.controlnet import ExportControlHint, ExportControlNet
from kdrt_export.control import CONTROL
from kdrt_export.lora import LorasToBake
from kdrt_export.options import PRECISIONS
from kdrt_export.report import Silent
from kdrt_export.sources import open_source
from kdrt_export.walk import Walk


@dataclass(frozen=True)
class Unexported:
    """A model on a device.

    Attributes:
        bundle: its facts; there are no files of networks.
        engines: by component.
        plain: the UNet as diffusers has it, with the same weights.
        controlnet: a ControlNet likewise, where one was asked for.
    """

    bundle: Bundle
    engines: Mapping[str, Engine]
    plain: PlainUNet
    controlnet: ControlNetModel | None = None

    def pipeline(
        self,
        cuda_graph: CudaGraphLevel | None,
        unet: nn.Module | None = None,
        others: Mapping[str, Engine] | None = None,
    ) -> Pipeline:
        """A pipeline on it, with another network as its UNet if one is given, and with other
        engines by component."""
        engines = {**self.engines, **(others or {})}
        if unet is not None:
            engines["unet"] = TorchEngine(unet, engines["unet"].spec, engines["unet"].device)
        return Pipeline(self.bundle, engines, engines.__getitem__, cuda_graph=cuda_graph)


def unexported(
    source: str,
    folder: Path,
    *,
    precision: str,
    device: torch.device,
    random_weights: bool,
    perturbed: bool = False,
    controlled: bool = False,
) -> Unexported:
    """Put the networks of a source on a device.

    Args:
        source: as :func:`kdrt_export.sources.open_source` takes it.
        folder: gets tokenizers and embedding tables.
        precision: a key of ``PRECISIONS``.
        device: where they run.
        random_weights: of the architecture alone, with seed 0.
        perturbed: add a UNet for perturbed-attention guidance.
        controlled: add a ControlNet, called ``edges``, and the UNet that takes what it gives.

    Raises:
        ExportError: the source cannot be loaded.
    """
    opened = open_source(source, random_weights=random_weights)
    walk = Walk(
        source=opened,
        folder=folder,
        dtype=PRECISIONS[precision],
        fuse_qkv=True,
        loras=LorasToBake((), strict=False, allow_pickle=False),
        report=Silent(),
        safety_checker=False,
        pag_layers=("mid",) if perturbed else (),
    )
    engines: dict[str, Engine] = {}
    components: dict[str, Component] = {}
    plain: PlainUNet | None = None
    controlnet: ControlNetModel | None = None

    def add(name: str, network: ExportComponent, dtype: torch.dtype) -> None:
        network.to(device).rewrite()
        network.cast(dtype)
        engines[name] = TorchEngine(network, network.spec, device)
        components[name] = Component(
            onnx=f"onnx/{name}/model.onnx",
            inputs=tuple(map(_info, network.spec.inputs)),
            outputs=tuple(map(_info, network.spec.outputs)),
            parameters=sum(each.numel() for each in network.parameters()),
        )

    for part in walk.parts():
        network = part.component.to(device)
        if part.name == "unet" and isinstance(network, ExportUNet):
            names = [tensor.name for tensor in network.spec.inputs]
            plain = PlainUNet(copy.deepcopy(network.unet), names).to(part.dtype).eval()
            if controlled:
                made = _controlnet(network.unet, walk.latents.scale)
                controlnet = copy.deepcopy(made).to(device, part.dtype).eval()
                for name, one in _controlled(network, made).items():
                    add(name, one, part.dtype)
        add(part.name, network, part.dtype)
    assert plain is not None
    variants = dict(walk.variants)
    if controlled:
        variants[CONTROL] = {"unet": f"unet-{CONTROL}"}
    manifest = Manifest(
        family=opened.family,
        name=source,
        source=opened.origin,
        revision=None,
        precision=cast(Precision, precision),
        components=components,
        scheduler=walk.scheduler,
        text_encoders=tuple(walk.encoders),
        latents=walk.latents,
        zeros_for_empty_negative=opened.zeros_for_empty_negative,
        default_guidance_scale=opened.default_guidance_scale,
        baked=_baked(walk),
        variants=variants,
        controls={EDGES: ControlFacts(kind="controlnet", source="random", channels=3)}
        if controlled
        else {},
        pag_layers=walk.perturbed,
        tools={},
    )
    return Unexported(Bundle(folder, manifest), engines, plain.requires_grad_(False), controlnet)


EDGES = "edges"
"""The name of the ControlNet."""


def outlines() -> torch.Tensor:
    """An image for it, ``[3, H, W]``: a white square on black."""
    image = torch.zeros(3, 64, 64)
    image[:, 16:48, 16:48] = 1
    image[:, 18:46, 18:46] = 0
    return image


def _controlnet(unet: Any, scale: int) -> ControlNetModel:
    """A ControlNet with the weights of a UNet, for images of ``scale`` pixels a latent. What a new
    one has of zeros is drawn, or it would give nothing."""
    widths = (16, 32, 96, 256)[: scale.bit_length()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # its embedding of the image is drawn
        made = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths)
    generator = torch.Generator().manual_seed(0)
    ends = [made.controlnet_mid_block, *made.controlnet_down_blocks]
    for layer in (*ends, made.controlnet_cond_embedding.conv_out):
        weight = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data.copy_(weight / weight[0].numel() ** 0.5)
    return made.to(unet.device)


def _controlled(unet: ExportUNet, controlnet: ControlNetModel) -> dict[str, ExportComponent]:
    """A ControlNet in its two networks, and the UNet for it."""
    fuse, ids = unet.fuse_qkv, unet.time_ids
    name = CONTROL_COMPONENT + EDGES
    return {
        # First: the other takes its part out of the network.
        name + CONTROL_HINT: ExportControlHint(controlnet),
        name: ExportControlNet(controlnet, fuse_qkv=fuse, time_ids=ids),
        f"unet-{CONTROL}": ExportUNet(
            copy.deepcopy(unet.unet), fuse_qkv=fuse, time_ids=ids, control=True
        ),
    }


def _baked(walk: Walk) -> Baked:
    options: dict[str, Any] = {"vae": None, "preview_decoder": None, "weights": "float"}
    return Baked(fused_qkv=True, freeu=True, loras=walk.baked_loras, **options)


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=cast(Dtype, tensor.dtype), shape=tensor.shape)
