"""Layers with an adapter of LyCORIS' own, every parameter random, and the files they write."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

MODULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoCon": (LoConModule, {}),
    "LoCon, Tucker": (LoConModule, {"use_tucker": True}),
    "rs-LoRA": (LoConModule, {"rs_lora": True}),
    "LoHa": (LohaModule, {}),
    "LoHa, Tucker": (LohaModule, {"use_tucker": True}),
    "LoKr": (LokrModule, {}),
    "LoKr, both in two": (LokrModule, {"decompose_both": True}),
    "LoKr, whole": (LokrModule, {"full_matrix": True, "lora_dim": 10000}),
    "LoKr, Tucker": (LokrModule, {"use_tucker": True}),
    "GLoRA": (GLoRAModule, {}),
    "OFT": (DiagOFTModule, {"constraint": 0}),
    "BOFT": (ButterflyOFTModule, {"constraint": 0, "lora_dim": 6}),
    "(IA)³ of outputs": (IA3Module, {}),
    "(IA)³ of inputs": (IA3Module, {"train_on_input": True}),
    "whole difference": (FullModule, {}),
}
"""By kind, the module and its settings."""

AT_FULL_STRENGTH: dict[str, tuple[Any, dict[str, Any]]] = {
    "OFT, rescaled": (DiagOFTModule, {"constraint": 0.01, "rescaled": True}),
    "BOFT, rescaled": (ButterflyOFTModule, {"constraint": 0.01, "rescaled": True, "lora_dim": 6}),
    **{
        f"DoRA of {axis}, {name}": (module, {"weight_decompose": True, "wd_on_out": by_row})
        for axis, by_row in (("rows", True), ("columns", False))
        for name, module in (("LoCon", LoConModule), ("LoHa", LohaModule), ("LoKr", LokrModule))
    },
}
"""Those that LyCORIS does not turn off at scale 0, as kdrt does; they agree at 1."""


@dataclass(frozen=True)
class AdaptedLayer:
    """A layer, the file of its adapter, and the layer as LyCORIS runs it."""

    layer: nn.Module
    file: dict[str, Tensor]
    adapted: nn.Module


def adapted_layer(
    kind: str, layer: nn.Module, *, rank: int, alpha: float, scale: float, seed: int = 0
) -> AdaptedLayer:
    """``layer`` as it is, and with an adapter of a kind as ``unet.layer``, in kohya's spelling."""
    adapted = copy.deepcopy(layer)
    file = adapt("lora_unet_layer", adapted, kind, rank=rank, alpha=alpha, scale=scale, seed=seed)
    return AdaptedLayer(layer, file, adapted)


def adapt(
    name: str, layer: nn.Module, kind: str, *, rank: int, alpha: float, scale: float, seed: int = 0
) -> dict[str, Tensor]:
    """Put an adapter of a kind on a layer, in place.

    Returns:
        What LyCORIS would save of it, its keys beginning with ``name``.
    """
    module_class, settings = (MODULES | AT_FULL_STRENGTH)[kind]
    usual: dict[str, Any] = {"lora_dim": rank, "alpha": alpha}
    adapter = module_class(name, layer, multiplier=scale, **usual | settings).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.4)
    file = {f"{name}.{part}": value.detach().clone() for part, value in _saved(adapter).items()}
    adapter.apply_to()
    return file


def _saved(adapter: Any) -> dict[str, Tensor]:
    if isinstance(adapter, FullModule):
        return {"diff": adapter.weight, "diff_b": adapter.bias}
    state: dict[str, Tensor] = adapter.state_dict()
    return state


def adapted_norm(layer: nn.Module, *, scale: float) -> AdaptedLayer:
    """A norm whose weight and bias LyCORIS changes."""
    adapted = copy.deepcopy(layer)
    adapter = NormModule("lora_unet_layer", adapted, multiplier=scale).eval()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    file = {f"lora_unet_layer.{n}": p.detach().clone() for n, p in adapter.named_parameters()}
    adapter.apply_to()
    return AdaptedLayer(layer, file, adapted)
