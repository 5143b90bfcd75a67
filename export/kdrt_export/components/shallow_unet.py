"""The outermost layers of a UNet, for the evaluations between two full ones.

DeepCache (Ma et al. 2023, arXiv:2312.00858): from one step to the next the deep features of a UNet
change little, so most steps can take those of a step before. This is branch 0, the shortest way
through the network that still sees the sample:

    conv_in ──────────────────────────────────┐
       └─ … everything else … ─ deep feature ─┴─ last layer of the last up block ─ conv_out
"""

from __future__ import annotations

import copy
from types import MappingProxyType

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from kdrt.bundle.components import DEEP_FEATURE
from kdrt_engines.spec import EngineSpec
from kdrt_export.components import ExportUNet
from kdrt_export.rewrites.fused_qkv import rewrite_attention
from kdrt_export.rewrites.transformer import rewrite_transformers
from kdrt_export.rewrites.up_block import FREEU_BLOCKS, ExportUpBlock


class ExportShallowUNet(ExportUNet):
    """What of a UNet follows from its sample and its deep feature.

    Inputs: those of :class:`ExportUNet` that the layers take (no encoder_hidden_states where they
    have no attention, no freeu beyond the first two up blocks), then deep_feature [B,D,h,w].
    Output: noise_pred [B,C,h,w]. Its weights are copies with the names they have in the whole UNet.

    It is verified against the whole: on a deep feature and the very inputs that it comes from, the
    prediction is that of the untouched UNet.
    """

    neutral = MappingProxyType({})  # there is little FreeU in it, if any
    varying = (*ExportUNet.varying, DEEP_FEATURE)

    def __init__(
        self, unet: UNet2DConditionModel, *, fuse_qkv: bool = True, time_ids: int = 6
    ) -> None:
        # A list hides the whole from the module tree.
        self._whole: list[ExportUNet] = []
        super().__init__(unet, fuse_qkv=fuse_qkv, time_ids=time_ids)
        self._whole.append(
            ExportUNet(unet, fuse_qkv=fuse_qkv, time_ids=time_ids, deep_feature=True)
        )
        self.unet = _outermost(unet)

    def make_spec(self, dtype: str) -> EngineSpec:
        whole = super().make_spec(dtype)
        last = len(self.unet.up_blocks) - 1
        unused = set() if last < FREEU_BLOCKS else {"freeu"}
        if getattr(self.unet.up_blocks[last], "attentions", None) is None:
            unused.add("encoder_hidden_states")
        inputs = [tensor for tensor in whole.inputs if tensor.name not in unused]
        return EngineSpec((*inputs, self.deep_feature_spec(dtype)), whole.outputs)

    def example_inputs(self, dims: dict[str, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Before :meth:`rewrite` with the deep feature that belongs to them."""
        if not self._whole:
            return super().example_inputs(dims, seed)
        (whole,) = self._whole
        inputs = whole.example_inputs(dims, seed)
        named = dict(zip([tensor.name for tensor in whole.spec.inputs], inputs, strict=True))
        self._expected, named[DEEP_FEATURE] = whole.reference(*inputs)
        return tuple(named[tensor.name] for tensor in self.spec.inputs)

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the whole UNet predicted for the last example inputs."""
        return (self._expected,)

    def rewrite(self) -> None:
        self._whole.clear()
        rewrite_attention(self.unet, fuse=self.fuse_qkv)
        rewrite_transformers(self.unet)
        last = len(self.unet.up_blocks) - 1
        self.unet.up_blocks[last] = ExportUpBlock(self.unet.up_blocks[last], last)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        unet = self.unet
        named = dict(zip([tensor.name for tensor in self.spec.inputs], inputs, strict=True))
        sample = named["sample"]
        embedding = self._embed_time(sample.dtype, named["timestep"], named)
        told = (embedding, named.get("encoder_hidden_states"), named.get("freeu"))
        hidden = unet.up_blocks[-1].last_layer(named[DEEP_FEATURE], [unet.conv_in(sample)], *told)
        prediction: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return prediction


def _outermost(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy with nothing where the layers were that are not needed."""
    last = unet.up_blocks[-1]
    attentions = getattr(last, "attentions", None) or []
    skipped = [
        *unet.down_blocks,
        *([] if unet.mid_block is None else [unet.mid_block]),
        *unet.up_blocks[:-1],
        *last.resnets[:-1],
        *attentions[:-1],
    ]
    return copy.deepcopy(unet, {id(module): nn.Identity() for module in skipped})
