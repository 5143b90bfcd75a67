"""A pipeline on the networks of a source, rewritten as an export does it, but neither traced nor
written: a model of real size is ready in seconds, and needs no ONNX."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdrt.bundle import Baked, Bundle, Component, Dtype, Manifest, Precision, TensorInfo
from kdrt.denoise.cuda_graphs import CudaGraphLevel
from kdrt.pipeline.pipeline import Pipeline
from kdrt_bench.networks import PlainUNet
from kdrt_engines import Engine
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportUNet
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
    """

    bundle: Bundle
    engines: Mapping[str, Engine]
    plain: nn.Module

    def pipeline(
        self, cuda_graph: CudaGraphLevel | None, unet: nn.Module | None = None
    ) -> Pipeline:
        """A pipeline on it, with another network as its UNet if one is given."""
        engines = dict(self.engines)
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
) -> Unexported:
    """Put the networks of a source on a device.

    Args:
        source: as :func:`kdrt_export.sources.open_source` takes it.
        folder: gets tokenizers and embedding tables.
        precision: a key of ``PRECISIONS``.
        device: where they run.
        random_weights: of the architecture alone, with seed 0.
        perturbed: add a UNet for perturbed-attention guidance.

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
    plain: nn.Module | None = None
    for part in walk.parts():
        network = part.component.to(device)
        if part.name == "unet" and isinstance(network, ExportUNet):
            names = [tensor.name for tensor in network.spec.inputs]
            plain = PlainUNet(copy.deepcopy(network.unet), names).to(part.dtype).eval()
        network.rewrite()
        network.cast(part.dtype)
        engines[part.name] = TorchEngine(network, network.spec, device)
        components[part.name] = Component(
            onnx=f"onnx/{part.name}/model.onnx",
            inputs=tuple(map(_info, network.spec.inputs)),
            outputs=tuple(map(_info, network.spec.outputs)),
            parameters=sum(each.numel() for each in network.parameters()),
        )
    assert plain is not None
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
        variants=walk.variants,
        pag_layers=walk.perturbed,
        tools={},
    )
    return Unexported(Bundle(folder, manifest), engines, plain.requires_grad_(False))


def _baked(walk: Walk) -> Baked:
    options: dict[str, Any] = {"vae": None, "preview_decoder": None, "weights": "float"}
    return Baked(fused_qkv=True, freeu=True, loras=walk.baked_loras, **options)


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=cast(Dtype, tensor.dtype), shape=tensor.shape)
