"""ControlNets (Zhang et al. 2023, arXiv:2302.05543) in two networks: what follows from the image
alone, once an image, and the rest, at every step."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import nn

from kdrt_engines.dtypes import DTYPES
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent
from kdrt_export.components.conditioning import context_of, embed_time, example_time
from kdrt_export.components.residuals import Residuals
from kdrt_export.components.unet import context_width
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.rewrites.fused_qkv import rewrite_attention
from kdrt_export.rewrites.transformer import rewrite_transformers


class ExportControlHint(ExportComponent):
    """What a ControlNet makes of its image.

    Input: image [B,c,8*h,8*w], usually of 3 channels from 0 to 1. Output: hint [B,C,h,w], which
    belongs to the first convolution's result.

    Args:
        controlnet: the network; its embedding of the image is this one's.
    """

    def __init__(self, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.embedding = controlnet.controlnet_cond_embedding
        self.channels: int = self.embedding.conv_in.in_channels
        self.scale: int = 2 ** (len(self.embedding.blocks) // 2)
        self.reversed: bool = controlnet.config.controlnet_conditioning_channel_order == "bgr"
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        image = ("B", self.channels, f"{self.scale}*h", f"{self.scale}*w")
        hint = ("B", self.embedding.conv_out.out_channels, "h", "w")
        return EngineSpec((TensorSpec("image", dtype, image),), (TensorSpec("hint", dtype, hint),))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        (image,) = inputs
        return (self.embedding(image.flip(1) if self.reversed else image),)

    def rewrite(self) -> None:
        pass  # traced as it is

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        return torch.rand(shape, generator=generator).to(DTYPES[tensor.dtype].torch)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        embedding = self.embedding
        if self.reversed:
            image = image.flip(1)
        hidden = F.silu(embedding.conv_in(image))
        for block in embedding.blocks:
            hidden = F.silu(block(hidden))
        hint: torch.Tensor = embedding.conv_out(hidden)
        return hint


class ExportControlNet(ExportComponent):
    """The rest of a ControlNet.

    Inputs: sample [B,C,h,w], timestep [B] float32, encoder_hidden_states [B,L,D] (not for those
    that do not attend to the prompt), for SDXL text_embeds [B,P] and time_ids [B,6] float32, hint
    [B,C0,h,w], scales [B,n+1] float32: a factor for each of the n down residuals and one for the
    middle's. Outputs: down_residual_0 … down_residual_(n-1) and mid_residual, those of
    :class:`Residuals`. A network that gives means over the image (``global_pool_conditions``) gives
    them at every place.

    Args:
        controlnet: the network, whose embedding of the image is replaced, in place: that is
            :class:`ExportControlHint`, which is made first.
        fuse_qkv: concatenate attention projections.
        time_ids: how many numbers of size conditioning it takes.
    """

    varying: Collection[str] = ("sample", "timestep", "scales")

    def __init__(
        self, controlnet: ControlNetModel, *, fuse_qkv: bool = True, time_ids: int = 6
    ) -> None:
        super().__init__()
        _refuse_unsupported(controlnet)
        controlnet.controlnet_cond_embedding = nn.Identity()
        self.controlnet = controlnet
        self.residuals = Residuals.of(controlnet)
        self.pools: bool = controlnet.config.global_pool_conditions
        self.fuse_qkv, self.time_ids = fuse_qkv, time_ids
        self.has_added = controlnet.config.addition_embed_type == "text_time"
        attends = any(getattr(m, "is_cross_attention", False) for m in controlnet.modules())
        self.context_width = context_width(controlnet) if attends else None
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        net = self.controlnet
        inputs = [
            TensorSpec("sample", dtype, ("B", net.conv_in.in_channels, "h", "w")),
            TensorSpec("timestep", "float32", ("B",)),
        ]
        if self.context_width is not None:
            context = ("B", "L", self.context_width)
            inputs.append(TensorSpec("encoder_hidden_states", dtype, context))
        if self.has_added:
            ids = self.time_ids * net.config.addition_time_embed_dim
            pooled = net.add_embedding.linear_1.in_features - ids
            if pooled < 1:
                raise UnsupportedModelError(
                    f"a ControlNet with projection_class_embeddings_input_dim={pooled + ids} has "
                    "no room for a prompt beside its size conditioning; is it for another family?"
                )
            inputs.append(TensorSpec("text_embeds", dtype, ("B", pooled)))
            inputs.append(TensorSpec("time_ids", "float32", ("B", self.time_ids)))
        inputs.append(TensorSpec("hint", dtype, ("B", net.conv_in.out_channels, "h", "w")))
        inputs.append(TensorSpec("scales", "float32", ("B", len(self.residuals.skips) + 1)))
        return EngineSpec(tuple(inputs), tuple(self.residuals.control_specs(dtype)))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip([tensor.name for tensor in self.spec.inputs], inputs, strict=True))
        hint = named["hint"]
        if self.controlnet.config.controlnet_conditioning_channel_order == "bgr":
            hint = hint.flip(1)  # the network takes it for the image and turns it back
        added = {name: named[name] for name in ("text_embeds", "time_ids") if name in named}
        down, middle = self.controlnet(
            named["sample"],
            named["timestep"],
            named.get("encoder_hidden_states"),
            controlnet_cond=hint,
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        scaled = zip((*down, middle), named["scales"].unbind(1), strict=True)
        dims = dict(zip("BChw", named["sample"].shape, strict=True))
        shapes = [tensor.resolve(dims) for tensor in self.spec.outputs]
        return tuple(
            (residual * scale[:, None, None, None]).expand(shape)
            for (residual, scale), shape in zip(scaled, shapes, strict=True)
        )

    def rewrite(self) -> None:
        rewrite_attention(self.controlnet, fuse=self.fuse_qkv)
        rewrite_transformers(self.controlnet)

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        time = example_time(tensor, shape, generator)
        if time is not None:
            return time
        if tensor.name == "scales":
            return torch.rand(shape, generator=generator)
        return super().example_input(tensor, shape, generator)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        net = self.controlnet
        named = dict(zip([tensor.name for tensor in self.spec.inputs], inputs, strict=True))
        sample, context = named["sample"], named.get("encoder_hidden_states")
        time_ids = self.time_ids if self.has_added else None
        embedding = embed_time(net, sample.dtype, named["timestep"], named, time_ids)
        hidden = net.conv_in(sample) + named["hint"]
        skips = [hidden]
        for block in net.down_blocks:
            hidden, produced = block(hidden, embedding, **context_of(block, context))
            skips.extend(produced)
        if net.mid_block is not None:
            hidden = net.mid_block(hidden, embedding, **context_of(net.mid_block, context))
        layers = [*net.controlnet_down_blocks, net.controlnet_mid_block]
        given = [layer(each) for layer, each in zip(layers, [*skips, hidden], strict=True)]
        scales = named["scales"].to(sample.dtype)
        return tuple(
            self._pooled(residual) * scales[:, index, None, None, None]
            for index, residual in enumerate(given)
        )

    def _pooled(self, residual: torch.Tensor) -> torch.Tensor:
        if not self.pools:
            return residual
        return residual.mean(dim=(2, 3), keepdim=True).expand_as(residual)


def _refuse_unsupported(controlnet: Any) -> None:
    allowed: dict[str, tuple[object, ...]] = {
        "addition_embed_type": (None, "text_time"),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    }
    for key, values in allowed.items():
        if controlnet.config[key] not in values:
            raise UnsupportedModelError(
                f"a ControlNet with {key}={controlnet.config[key]!r} cannot be exported yet"
            )
    unknown = sorted(
        {*controlnet.config.down_block_types} - {"DownBlock2D", "CrossAttnDownBlock2D"}
    )
    if unknown:
        raise UnsupportedModelError(
            f"a ControlNet with {', '.join(unknown)} cannot be exported yet"
        )
