"""A UNet for perturbed-attention guidance (Ahn et al. 2024, arXiv:2403.17377).

In the rows of the batch that an input names, the chosen self-attentions are the identity map: what
they would attend to is replaced by each place's own value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock

from kdrt.bundle.components import PAG_INPUT
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components.unet import ExportUNet
from kdrt_export.errors import ExportError
from kdrt_export.rewrites.transformer import Perturbed

_OLD_NAMES = ((r"\b(down|up)\.block_", r"\1_blocks."), (r"\battentions_", "attentions."))
"""diffusers' first spelling, as in ``down.block_1.attentions_0``, as patterns of its second."""


def self_attentions(unet: UNet2DConditionModel, layers: Sequence[str]) -> tuple[str, ...]:
    """The self-attentions that some names stand for.

    Args:
        unet: the untouched network.
        layers: parts of the names of its modules, or patterns of such: ``mid``, ``down_blocks.1``,
            ``up_blocks.(0|1).attentions.0``; as of diffusers' ``pag_applied_layers``.

    Returns:
        Names of modules, in the order of the network.

    Raises:
        ExportError: a name stands for none, or is no pattern.
    """
    present = [
        f"{name}.attn1" if name else "attn1"
        for name, module in unet.named_modules()
        if isinstance(module, BasicTransformerBlock) and not module.attn1.is_cross_attention
    ]
    found: set[str] = set()
    for layer in layers:
        pattern = layer
        for old, new in _OLD_NAMES:
            pattern = re.sub(old, new, pattern)
        try:
            matching = [name for name in present if re.search(pattern, name)]
        except re.error as error:
            raise ExportError(f"'{layer}' is no name of layers, nor a pattern: {error}") from error
        if not matching or not pattern:
            blocks = dict.fromkeys(name.partition(".attentions")[0] for name in present)
            raise ExportError(
                f"there is no self-attention in '{layer}' of this UNet; --pag-layers takes parts "
                f"of names, such as {', '.join(blocks) or 'none here'}"
            )
        found.update(matching)
    return tuple(name for name in present if name in found)


class ExportPerturbedUNet(ExportUNet):
    """:class:`ExportUNet` with one more input, pag_rows [B] float32: 1 where a row is perturbed,
    else 0.

    Args:
        unet: the network.
        layers: names of its self-attentions; see :func:`self_attentions`.
        fuse_qkv, time_ids: see :class:`ExportUNet`.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        layers: Sequence[str],
        *,
        fuse_qkv: bool = True,
        time_ids: int = 6,
    ) -> None:
        self.layers = tuple(layers)
        super().__init__(unet, fuse_qkv=fuse_qkv, time_ids=time_ids)

    def make_spec(self, dtype: str) -> EngineSpec:
        plain = super().make_spec(dtype)
        rows = TensorSpec(PAG_INPUT, "float32", ("B",))
        return EngineSpec((*plain.inputs, rows), plain.outputs)

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        if tensor.name == PAG_INPUT:
            return (torch.arange(shape[0]) % 2 == 0).float()  # the first, and every other
        return super().example_input(tensor, shape, generator)

    def _reference_of_image(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        is_perturbed = bool(inputs[-1].item())
        attentions: list[Any] = [self.unet.get_submodule(name) for name in self.layers]
        processors = [attention.processor for attention in attentions]
        for attention in attentions if is_perturbed else ():
            attention.processor = _identity
        try:
            return super()._reference_of_image(*inputs)
        finally:
            for attention, processor in zip(attentions, processors, strict=True):
                attention.processor = processor

    def rewrite(self) -> None:
        super().rewrite()
        for name in self.layers:
            self.unet.get_submodule(name).can_be_perturbed = True

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *rest: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        context: Any = Perturbed(encoder_hidden_states, rest[-1])
        return super().forward(sample, timestep, context, *rest)


def _identity(attention: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    """A processor of diffusers' ``Attention`` whose attention map is the identity."""
    values: torch.Tensor = attention.to_out[0](attention.to_v(hidden_states))
    return values
