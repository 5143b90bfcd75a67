"""The UNet, and which of diffusers' UNets can be exported."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.utils.hooks import RemovableHandle

from kdrt.bundle.components import DEEP_FEATURE
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components.base import ExportComponent
from kdrt_export.components.conditioning import context_of, embed_time, example_time
from kdrt_export.components.residuals import Residuals
from kdrt_export.components.sizes import sides
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.rewrites.fused_qkv import rewrite_attention
from kdrt_export.rewrites.image_prompt import ImagePrompt, image_attentions
from kdrt_export.rewrites.transformer import rewrite_transformers
from kdrt_export.rewrites.up_block import rewrite_up_blocks


def call_unet(
    unet: nn.Module, named: Mapping[str, torch.Tensor], **added: Any
) -> tuple[torch.Tensor, ...]:
    """What a ``UNet2DConditionModel`` makes of the inputs of its component, by name; ``added`` goes
    where its conditions beside the prompt do."""
    residuals = Residuals.as_diffusers(named)
    added |= {name: named[name] for name in ("text_embeds", "time_ids") if name in named}
    outputs: tuple[torch.Tensor, ...] = unet(
        named["sample"],
        named["timestep"],
        named["encoder_hidden_states"],
        timestep_cond=named.get("timestep_cond"),
        added_cond_kwargs=added or None,
        return_dict=False,
        **residuals,
    )
    return outputs


class ExportUNet(ExportComponent):
    """``UNet2DConditionModel`` with FreeU strengths as an input and skips at any size.

    Inputs: sample [B,C,h,w], timestep [B] float32 (fractional), encoder_hidden_states [B,L,D],
    for SDXL text_embeds [B,P] and time_ids [B,6] float32 (its refiner: [B,5]), for distilled
    models timestep_cond [B,K], with IP-Adapters for S images their tokens one after the other,
    ip_hidden_states [B,N,D], and ip_scale [B,S,A] and ip_mask [B,S·K,h,w], float32, as
    :class:`kdrt_export.rewrites.image_prompt.ImagePrompt` has them, freeu [B,4] float32, a row
    (b1, b2, s1, s2) for each image; for ``control`` those of
    :class:`kdrt_export.components.residuals.Residuals`. Output: noise_pred [B,C,h,w], and for
    ``deep_feature`` what comes to the last layer of the last up block, deep_feature [B,D,h,w].

    Args:
        unet: the network; for ``ip_tokens`` with the adapters' attention processors.
        fuse_qkv: concatenate attention projections.
        ip_tokens: how many tokens IP-Adapters make of each of S images.
        time_ids: how many numbers of size conditioning it takes.
        deep_feature: hand it out, for
            :class:`kdrt_export.components.shallow_unet.ExportShallowUNet`.
        control: take what ControlNets and T2I-Adapters give.
    """

    neutral = MappingProxyType({"freeu": (1.0, 1.0, 1.0, 1.0)})
    varying: Collection[str] = ("sample", "timestep")

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        fuse_qkv: bool = True,
        ip_tokens: Sequence[int] = (),
        time_ids: int = 6,
        deep_feature: bool = False,
        control: bool = False,
    ) -> None:
        super().__init__()
        self.time_ids = time_ids
        self.deep_feature = deep_feature
        _refuse_unsupported(unet)
        self.residuals = Residuals.of(unet) if control else None
        if self.residuals is not None:
            self.varying = (*self.varying, *self.residuals.names)
        self.unet = unet
        self.context_width = context_width(unet)
        self.usual_height = latent_size(unet)[0]
        smallest = 2 ** (len(unet.config.block_out_channels) - 1)
        self.multiples = MappingProxyType({"h": smallest, "w": smallest})
        self.ip_tokens = tuple(ip_tokens)
        self.attentions = image_attentions(unet)
        self._levels = sorted({attention.level for attention in self.attentions})
        self.fuse_qkv = fuse_qkv
        self.has_added = unet.config.addition_embed_type == "text_time"
        self.cond_dim: int | None = unet.config.time_cond_proj_dim
        self.spec = self.make_spec("float32")

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # diffusers has one set of FreeU strengths for a whole batch, so it runs image by image.
        has_rows = [tensor.shape[0] == "B" for tensor in self.spec.inputs]
        images = [
            self._reference_of_image(
                *(t[row : row + 1] if own else t for t, own in zip(inputs, has_rows, strict=True))
            )
            for row in range(len(inputs[0]))
        ]
        return tuple(torch.cat(outputs) for outputs in zip(*images, strict=True))

    def _reference_of_image(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """:meth:`reference` for a batch of one."""
        named = dict(zip([t.name for t in self.spec.inputs], inputs, strict=True))
        ((b1, b2, s1, s2),) = named["freeu"].tolist()
        self.unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
        added: dict[str, Any] = {}
        if self.ip_tokens:
            tokens = named["ip_hidden_states"].split(self.ip_tokens, dim=1)
            added["image_embeds"] = list(tokens)
            self._weigh_images(ImagePrompt(tokens, named["ip_scale"], named["ip_mask"]))
        deep: list[torch.Tensor] = []
        hook = _before_last_layer(self.unet).register_forward_hook(
            # A transformer returns a tuple of one, a residual block its tensor. diffusers' FreeU
            # then scales that in place.
            lambda _module, _inputs, out: deep.append(
                (out[0] if isinstance(out, tuple) else out).clone()
            )
        )
        hooks: list[RemovableHandle] = [hook]
        if self.unet.mid_block is None:
            # diffusers' FreeU scales the backbone in place, which without a middle block is the
            # newest skip too; FreeU is defined on the two apart.
            hooks.append(
                self.unet.up_blocks[0].register_forward_pre_hook(
                    lambda _m, args, named: (
                        args,
                        {**named, "hidden_states": named["hidden_states"].clone()},
                    ),
                    with_kwargs=True,
                )
            )
        result = call_unet(self.unet, named, **added)
        for hook in hooks:
            hook.remove()
        self.unet.disable_freeu()
        return (*result, *deep) if self.deep_feature else result

    def _weigh_images(self, prompt: ImagePrompt) -> None:
        """Tell diffusers' attentions of one image how much its prompts of images count."""
        for column, (_, path, level) in enumerate(self.attentions):
            size = [-(-side // 2**level) for side in prompt.mask.shape[-2:]]
            told = prompt.at(column, self._levels.index(level), prompt.mask.new_empty(1, 1, *size))
            for name, processor in self.unet.attn_processors.items():
                if name.startswith(f"{path}.") and hasattr(processor, "to_k_ip"):
                    processor.scale = [_Weight(weight) for weight in told.weights]

    def rewrite(self) -> None:
        rewrite_attention(self.unet, fuse=self.fuse_qkv)
        rewrite_transformers(self.unet)
        for column, (_, path, level) in enumerate(self.attentions):
            transformer: Any = self.unet.get_submodule(path)
            transformer.column, transformer.channel = column, self._levels.index(level)
        rewrite_up_blocks(self.unet)

    def make_spec(self, dtype: str) -> EngineSpec:
        config = self.unet.config
        channels = config.in_channels
        inputs = [
            TensorSpec("sample", dtype, ("B", channels, "h", "w")),
            TensorSpec("timestep", "float32", ("B",)),
            TensorSpec("encoder_hidden_states", dtype, ("B", "L", self.context_width)),
        ]
        if self.has_added:
            ids = self.time_ids * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - ids
            if pooled < 1:
                raise UnsupportedModelError(
                    f"a UNet with projection_class_embeddings_input_dim={pooled + ids} and "
                    f"addition_time_embed_dim={config.addition_time_embed_dim} has no room for a "
                    f"prompt beside {self.time_ids} numbers of size conditioning; is it for "
                    "another family?"
                )
            inputs.append(TensorSpec("text_embeds", dtype, ("B", pooled)))
            inputs.append(TensorSpec("time_ids", "float32", ("B", self.time_ids)))
        if self.cond_dim is not None:
            inputs.append(TensorSpec("timestep_cond", dtype, ("B", self.cond_dim)))
        if self.ip_tokens:
            images = len(self.ip_tokens)
            tokens = ("B", sum(self.ip_tokens), self.context_width)
            inputs.append(TensorSpec("ip_hidden_states", dtype, tokens))
            scale = ("B", images, len(self.attentions))
            inputs.append(TensorSpec("ip_scale", "float32", scale))
            mask = ("B", images * len(self._levels), "h", "w")
            inputs.append(TensorSpec("ip_mask", "float32", mask))
        inputs.append(TensorSpec("freeu", "float32", ("B", 4)))
        if self.residuals is not None:
            inputs.extend(self.residuals.specs(dtype))
        outputs = [TensorSpec("noise_pred", dtype, ("B", config.out_channels, "h", "w"))]
        if self.deep_feature:
            outputs.append(self.deep_feature_spec(dtype))
        return EngineSpec(tuple(inputs), tuple(outputs))

    def deep_feature_spec(self, dtype: str) -> TensorSpec:
        """What comes to the last layer of the last up block, before the first skip joins it."""
        channels = self.unet.up_blocks[-1].resnets[-1].norm1.num_channels
        own = channels - self.unet.conv_in.out_channels
        return TensorSpec(DEEP_FEATURE, dtype, ("B", own, "h", "w"))

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        time = example_time(tensor, shape, generator)
        if time is not None:
            return time
        if tensor.name in ("ip_scale", "ip_mask"):
            return torch.rand(shape, generator=generator)
        if tensor.name == "freeu":
            # Weaker from image to image, so that no two have the same.
            share = 1 / torch.arange(1, shape[0] + 1)[:, None]
            return 1 + share * (torch.tensor([1.2, 1.4, 0.9, 0.2]) - 1)
        return super().example_input(tensor, shape, generator)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        *rest: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        unet = self.unet
        extra = dict(zip([t.name for t in self.spec.inputs[3:]], rest, strict=True))
        embedding = self._embed_time(sample.dtype, timestep, extra)
        context: Any = encoder_hidden_states
        if self.ip_tokens:
            tokens = extra["ip_hidden_states"].split(self.ip_tokens, dim=1)
            prompt = ImagePrompt(tokens, extra["ip_scale"], extra["ip_mask"])
            context = (encoder_hidden_states, prompt)
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for index, block in enumerate(unet.down_blocks):
            told = context_of(block, context)
            if self.residuals is None:
                hidden, produced = block(hidden, embedding, **told)
            else:
                hidden, produced = self.residuals.run(index, block, hidden, embedding, told, extra)
            skips.extend(produced)
        if unet.mid_block is not None:  # pruned models have none, or one without attention
            middle = unet.mid_block
            hidden = middle(hidden, embedding, **context_of(middle, context))
        if self.residuals is not None:
            hidden, skips = self.residuals.add(hidden, skips, extra)
        above = (embedding, context, extra["freeu"])
        for block in unet.up_blocks:
            hidden, deep = block(hidden, skips, *above)
        prediction = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return (prediction, deep) if self.deep_feature else prediction

    def _embed_time(
        self, dtype: torch.dtype, timestep: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        time_ids = self.time_ids if self.has_added else None
        return embed_time(self.unet, dtype, timestep, extra, time_ids)


class _Weight:
    """A scale for each place, where diffusers has one for all: it leaves out what is 0, and
    multiplies by the rest."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __eq__(self, other: object) -> bool:
        return False

    def __mul__(self, states: torch.Tensor) -> torch.Tensor:
        return self._weight * states


def _before_last_layer(unet: Any) -> nn.Module:
    """The module whose output comes to the last layer of the last up block."""
    block = unet.up_blocks[-1]
    layer: nn.Module = (getattr(block, "attentions", None) or block.resnets)[-2]
    return layer


def context_width(unet: UNet2DConditionModel) -> int:
    """The width of the encoder hidden states, which a configuration may give block by block.

    Raises:
        UnsupportedModelError: the blocks have different ones, or none attends to the prompt.
    """
    widths = {
        module.to_k.in_features
        for module in unet.modules()
        if isinstance(module, Attention) and module.is_cross_attention
    }
    if len(widths) != 1:
        found = " and ".join(map(str, sorted(widths))) or "no cross-attention"
        raise UnsupportedModelError(
            f"a UNet with cross_attention_dim={unet.config.cross_attention_dim!r} cannot be "
            f"exported: every block must take the prompt at one width, and this one has {found}"
        )
    return int(widths.pop())


def latent_size(unet: UNet2DConditionModel) -> tuple[int, int]:
    """Height and width of the latents a UNet was made for.

    Raises:
        UnsupportedModelError: its configuration gives no sizes.
    """
    return sides(64 if unet.config.sample_size is None else unet.config.sample_size)


def _refuse_unsupported(unet: UNet2DConditionModel) -> None:
    config = unet.config
    allowed: dict[str, Sequence[object]] = {
        "addition_embed_type": (None, "text_time"),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None,),
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
        "dual_cross_attention": (False,),
        "attention_type": ("default",),
    }
    for key, values in allowed.items():
        if config[key] not in values:
            raise UnsupportedModelError(f"a UNet with {key}={config[key]!r} cannot be exported yet")
    blocks = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    unknown = sorted({*config.down_block_types, *config.up_block_types} - blocks)
    if unknown:
        raise UnsupportedModelError(f"a UNet with {', '.join(unknown)} cannot be exported yet")
    if min(len(block.resnets) for block in unet.up_blocks) < 2:
        raise UnsupportedModelError(
            f"a UNet with layers_per_block={config.layers_per_block!r} cannot be exported: every "
            "block needs a layer at least"
        )
