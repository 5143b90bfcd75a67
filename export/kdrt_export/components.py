"""The networks of a bundle, as modules with plain tensors in and out, ready to be traced.

Inputs and outputs have the frozen names of the bundle; sizes are symbols: ``B`` batch, ``L``
prompt tokens, ``h`` and ``w`` latent sizes, ``H`` and ``W`` pixel sizes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from kdrt.shortcuts import DEEP_FEATURE
from kdrt_engines.spec import DTYPES, Dim, EngineSpec, TensorSpec
from kdrt_export.dialects.graphs import Rows
from kdrt_export.errors import UnsupportedModel
from kdrt_export.onnx_ops import attention
from kdrt_export.rewrites.fused_qkv import concatenate, rewrite_attention
from kdrt_export.rewrites.transformer import rewrite_transformers
from kdrt_export.rewrites.up_block import rewrite_up_blocks


class ExportComponent(nn.Module):
    """A network on its way to ONNX.

    It begins as the untouched diffusers or transformers network: :meth:`reference` answers with
    it. :meth:`rewrite` changes it in place for tracing; from then on calling the component
    computes what will be exported.
    """

    spec: EngineSpec

    neutral: Mapping[str, tuple[float, ...]] = MappingProxyType({})
    """Values of inputs at which a part of the network changes nothing, by input."""

    multiples: Mapping[str, int] = MappingProxyType({})
    """What sizes can usually be divided by, by symbol, where a network is simpler then."""

    varying: Collection[str] = ()
    """Inputs that change at every run, if others rarely do."""

    usual_height: int | None = None
    """Rows of the first input at the size the network was made for; None if it is no picture and
    no latents."""

    def picture(self, *, usual: bool = False) -> Rows | None:
        """What is known of the size of the first input, at any sizes or at the ``usual`` ones."""
        if self.usual_height is None:
            return None
        multiples = self.multiples if usual else {}
        least = {symbol: multiples.get(symbol, 1) for symbol in self.spec.symbols()}
        return Rows(self.usual_height, math.gcd(*self.spec.inputs[0].resolve(least)[2:]))

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of the untouched network, in order. Only before :meth:`rewrite`."""
        raise NotImplementedError

    def rewrite(self) -> None:
        """Apply the rewrites, in place."""
        raise NotImplementedError

    def make_spec(self, dtype: str) -> EngineSpec:
        """The spec with weights of ``dtype``, a key of ``DTYPES``."""
        raise NotImplementedError

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights, and with them the inputs and outputs."""
        self.to(dtype)
        self.spec = self.make_spec(str(dtype).removeprefix("torch."))

    def example_inputs(self, dims: dict[str, int], seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Random inputs of plausible scale for these sizes."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            self.example_input(tensor, tensor.resolve(dims), generator)
            for tensor in self.spec.inputs
        )

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(DTYPES[tensor.dtype])


class ExportUNet(ExportComponent):
    """``UNet2DConditionModel`` with FreeU strengths as an input and skips at any size.

    Inputs: sample [B,C,h,w], timestep [B] float32 (fractional), encoder_hidden_states [B,L,D],
    for SDXL text_embeds [B,P] and time_ids [B,6] float32 (its refiner: [B,5]), for distilled
    models timestep_cond [B,K], with an IP-Adapter ip_hidden_states [B,N,D] and ip_scale [1]
    float32, freeu [4] float32 = (b1, b2, s1, s2). Output: noise_pred [B,C,h,w], and for
    ``deep_feature`` what comes to the last layer of the last up block, deep_feature [B,D,h,w].

    Args:
        unet: the network; for ``ip_tokens`` with the adapter's attention processors.
        fuse_qkv: concatenate attention projections.
        ip_tokens: N, how many tokens an IP-Adapter makes of an image.
        time_ids: how many numbers of size conditioning it takes.
        deep_feature: hand it out, for :class:`kdrt_export.shallow_unet.ExportShallowUNet`.
    """

    neutral = MappingProxyType({"freeu": (1.0, 1.0, 1.0, 1.0)})
    varying: Collection[str] = ("sample", "timestep")

    def __init__(
        self,
        unet: UNet2DConditionModel,
        *,
        fuse_qkv: bool = True,
        ip_tokens: int | None = None,
        time_ids: int = 6,
        deep_feature: bool = False,
    ) -> None:
        super().__init__()
        self.time_ids = time_ids
        self.deep_feature = deep_feature
        _refuse_unsupported(unet)
        self.unet = unet
        self.usual_height = latent_size(unet)[0]
        smallest = 2 ** (len(unet.config.block_out_channels) - 1)
        self.multiples = MappingProxyType({"h": smallest, "w": smallest})
        self.ip_tokens = ip_tokens
        self.fuse_qkv = fuse_qkv
        self.has_added = unet.config.addition_embed_type == "text_time"
        self.cond_dim: int | None = unet.config.time_cond_proj_dim
        self.spec = self.make_spec("float32")

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip([t.name for t in self.spec.inputs], inputs, strict=True))
        b1, b2, s1, s2 = named["freeu"].tolist()
        self.unet.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
        added: dict[str, Any] = {k: named[k] for k in ("text_embeds", "time_ids") if k in named}
        if self.ip_tokens is not None:
            added["image_embeds"] = [named["ip_hidden_states"]]
            for processor in self.unet.attn_processors.values():
                if hasattr(processor, "to_k_ip"):
                    processor.scale = [float(named["ip_scale"])]
        deep: list[torch.Tensor] = []
        hook = _before_last_layer(self.unet).register_forward_hook(
            # A transformer returns a tuple of one, a residual block its tensor. diffusers' FreeU
            # then scales that in place.
            lambda _module, _inputs, out: deep.append(
                (out[0] if isinstance(out, tuple) else out).clone()
            )
        )
        result = self.unet(
            named["sample"],
            named["timestep"],
            named["encoder_hidden_states"],
            timestep_cond=named.get("timestep_cond"),
            added_cond_kwargs=added or None,
            return_dict=False,
        )
        hook.remove()
        self.unet.disable_freeu()
        return (*result, *deep) if self.deep_feature else result

    def rewrite(self) -> None:
        rewrite_attention(self.unet, fuse=self.fuse_qkv)
        rewrite_transformers(self.unet)
        rewrite_up_blocks(self.unet)

    def make_spec(self, dtype: str) -> EngineSpec:
        config = self.unet.config
        channels = config.in_channels
        inputs = [
            TensorSpec("sample", dtype, ("B", channels, "h", "w")),
            TensorSpec("timestep", "float32", ("B",)),
            TensorSpec("encoder_hidden_states", dtype, ("B", "L", config.cross_attention_dim)),
        ]
        if self.has_added:
            ids = self.time_ids * config.addition_time_embed_dim
            pooled = config.projection_class_embeddings_input_dim - ids
            inputs.append(TensorSpec("text_embeds", dtype, ("B", pooled)))
            inputs.append(TensorSpec("time_ids", "float32", ("B", self.time_ids)))
        if self.cond_dim is not None:
            inputs.append(TensorSpec("timestep_cond", dtype, ("B", self.cond_dim)))
        if self.ip_tokens is not None:
            tokens = ("B", self.ip_tokens, config.cross_attention_dim)
            inputs.append(TensorSpec("ip_hidden_states", dtype, tokens))
            inputs.append(TensorSpec("ip_scale", "float32", (1,)))
        inputs.append(TensorSpec("freeu", "float32", (4,)))
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
        if tensor.name == "timestep":
            return torch.rand(shape, generator=generator) * 999
        if tensor.name == "time_ids":
            return torch.randint(0, 1024, shape, generator=generator).float()
        if tensor.name == "ip_scale":
            return torch.tensor([0.6])
        if tensor.name == "freeu":
            return torch.tensor([1.2, 1.4, 0.9, 0.2])
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
        if self.ip_tokens is not None:
            context = (encoder_hidden_states, extra["ip_hidden_states"], extra["ip_scale"])
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, produced = block(hidden, embedding, encoder_hidden_states=context)
            else:
                hidden, produced = block(hidden, embedding)
            skips.extend(produced)
        hidden = unet.mid_block(hidden, embedding, encoder_hidden_states=context)
        told = (embedding, context, extra["freeu"])
        *blocks, last = unet.up_blocks
        for block in blocks:
            hidden = block(hidden, skips, *told)
        deep = last.deep(hidden, skips, *told)
        hidden = last.last_layer(deep, skips, *told)
        prediction = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        return (prediction, deep) if self.deep_feature else prediction

    def _embed_time(
        self, dtype: torch.dtype, timestep: torch.Tensor, extra: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        unet = self.unet
        embedding = unet.time_embedding(
            unet.time_proj(timestep).to(dtype), extra.get("timestep_cond")
        )
        if self.has_added:
            ids = unet.add_time_proj(extra["time_ids"].flatten())
            width = self.time_ids * unet.config.addition_time_embed_dim
            ids = ids.reshape(-1, width).to(dtype)
            embedding = embedding + unet.add_embedding(
                torch.cat([extra["text_embeds"], ids], dim=-1)
            )
        return embedding if unet.time_embed_act is None else unet.time_embed_act(embedding)


def _before_last_layer(unet: Any) -> nn.Module:
    """The module whose output comes to the last layer of the last up block."""
    block = unet.up_blocks[-1]
    layer: nn.Module = (getattr(block, "attentions", None) or block.resnets)[-2]
    return layer


class ExportTextEncoder(ExportComponent):
    """A CLIP text model from token embeddings to every hidden state.

    Inputs: inputs_embeds [B,L,D] (rows of the token embedding table, so that new tokens need no
    new engine), eos_index [B] int64 (the first end-of-text token). Outputs: hidden_states
    [B,N,L,D], embeddings first, with the final layer norm applied to each if ``normalize``;
    pooled [B,P], projected where the model has a projection.
    """

    def __init__(
        self,
        model: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        normalize: bool,
        fuse_qkv: bool = True,
    ) -> None:
        super().__init__()
        # A list hides the model from the module tree: its token embedding is not traced.
        self._source = [model]
        self.normalize = normalize
        self.fuse_qkv = fuse_qkv
        self.text_projection = getattr(model, "text_projection", None)
        self.width: int = model.config.hidden_size
        self.states: int = model.config.num_hidden_layers + 1
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        pooled = self.width if self.text_projection is None else self.text_projection.out_features
        return EngineSpec(
            (
                TensorSpec("inputs_embeds", dtype, ("B", "L", self.width)),
                TensorSpec("eos_index", "int64", ("B",)),
            ),
            (
                TensorSpec("hidden_states", dtype, ("B", self.states, "L", self.width)),
                TensorSpec("pooled", dtype, ("B", pooled)),
            ),
        )

    def example_input(
        self, tensor: TensorSpec, shape: tuple[int, ...], generator: torch.Generator
    ) -> torch.Tensor:
        if tensor.name == "eos_index":
            return torch.randint(1, 5, shape, generator=generator)
        return super().example_input(tensor, shape, generator)

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs_embeds, eos_index = inputs
        model = self._source[0]
        text = getattr(model, "text_model", model)
        # Ids reach the network only through the embedding table and the end-of-text position:
        # the rows asked for become the table, and the id there the end-of-text id.
        batch, length, width = inputs_embeds.shape
        ids = torch.arange(batch * length).reshape(batch, length) + 3
        table = torch.cat([inputs_embeds.new_zeros(3, width), inputs_embeds.flatten(0, 1)])
        kept_table, kept_eos = text.embeddings.token_embedding.weight.data, text.eos_token_id
        hidden, pooled = [], []
        try:
            text.embeddings.token_embedding.weight.data = table
            for row, position in zip(ids, eos_index, strict=True):
                text.eos_token_id = int(row[position])
                out = model(row[None], output_hidden_states=True)
                hidden.append(torch.stack(out.hidden_states, dim=1))
                pooled.append(
                    out.pooler_output if self.text_projection is None else out.text_embeds
                )
        finally:
            text.embeddings.token_embedding.weight.data, text.eos_token_id = kept_table, kept_eos
        states = torch.cat(hidden)
        return text.final_layer_norm(states) if self.normalize else states, torch.cat(pooled)

    def rewrite(self) -> None:
        model = self._source.pop()
        text = getattr(model, "text_model", model)
        self.position_embedding = text.embeddings.position_embedding
        self.layers = nn.ModuleList(
            ExportTextLayer(layer, fuse_qkv=self.fuse_qkv) for layer in text.encoder.layers
        )
        self.final_layer_norm = text.final_layer_norm

    def forward(
        self, inputs_embeds: torch.Tensor, eos_index: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = inputs_embeds.shape[1]
        hidden = inputs_embeds + self.position_embedding.weight[:length]
        order = torch.arange(length, device=hidden.device)
        future = order[None, :] > order[:, None]
        mask = future.to(hidden.dtype) * torch.finfo(hidden.dtype).min
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        last = self.final_layer_norm(hidden)
        pooled = last.gather(1, eos_index[:, None, None].expand(-1, 1, last.shape[-1]))[:, 0]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        stacked = torch.stack(states, dim=1)
        return (self.final_layer_norm(stacked) if self.normalize else stacked), pooled


class ExportTextLayer(nn.Module):
    """One CLIP encoder layer, of a text or a vision model, its QKV projection fused or not, and for
    text with an additive mask [L, L]."""

    def __init__(self, layer: Any, *, fuse_qkv: bool) -> None:
        super().__init__()
        source = layer.self_attn
        self.heads: int = source.num_heads
        self.head_dim: int = source.head_dim
        projections = (source.q_proj, source.k_proj, source.v_proj)
        self.to_qkv = concatenate(*projections) if fuse_qkv else nn.ModuleList(projections)
        self.out_proj = source.out_proj
        self.layer_norm1, self.layer_norm2 = layer.layer_norm1, layer.layer_norm2
        self.mlp = layer.mlp

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        query, key, value = self._project(self.layer_norm1(hidden))
        hidden = hidden + self.out_proj(
            attention(query, key, value, self.heads, self.head_dim, mask)
        )
        return hidden + self.mlp(self.layer_norm2(hidden))

    def _project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if isinstance(self.to_qkv, nn.ModuleList):
            return tuple(projection(hidden) for projection in self.to_qkv)
        return self.to_qkv(hidden).split(self.heads * self.head_dim, dim=-1)


class ExportDecoder(ExportComponent):
    """What makes pictures of latents: one tensor ``latents`` in, one ``image`` out, in the shapes
    that a subclass sets."""

    latent_shape: tuple[Dim, ...]
    image_shape: tuple[Dim, ...]

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("latents", dtype, self.latent_shape),),
            (TensorSpec("image", dtype, self.image_shape),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self(*inputs),)


class ExportVaeDecoder(ExportDecoder):
    """latents [B,C,h,w] as the sampler leaves them → image [B,3,s·h,s·w] in about [-1, 1]."""

    def __init__(self, vae: AutoencoderKL, *, fuse_qkv: bool = True) -> None:
        super().__init__()
        self.fuse_qkv = fuse_qkv
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        config = vae.config
        self.scaling_factor: float = config.scaling_factor
        self.statistics = _latent_statistics(vae)
        self.usual_height = vae_tile(vae)
        self.latent_shape = ("B", config.latent_channels, "h", "w")
        self.image_shape = image_shape(vae, config.out_channels)
        self.spec = self.make_spec("float32")

    def rewrite(self) -> None:
        rewrite_attention(self.decoder, fuse=self.fuse_qkv)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        if self.statistics is None:
            latents = latents / self.scaling_factor
        else:
            mean, std = self.statistics
            latents = latents * std / self.scaling_factor + mean
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class ExportVaeEncoder(ExportComponent):
    """image [B,3,s·h,s·w] in [-1, 1] → moments [B,2C,h,w]: mean, then log-variance, of the
    latents as the sampler takes them, with the scaling factor applied."""

    def __init__(self, vae: AutoencoderKL, *, fuse_qkv: bool = True) -> None:
        super().__init__()
        self.fuse_qkv = fuse_qkv
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv
        self.scaling_factor: float = vae.config.scaling_factor
        self.statistics = _latent_statistics(vae)
        self.usual_height = vae_tile(vae) * vae_scale(vae)
        self.moments_shape = ("B", 2 * vae.config.latent_channels, "h", "w")
        self.image_shape = image_shape(vae, vae.config.in_channels)
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("image", dtype, self.image_shape),),
            (TensorSpec("moments", dtype, self.moments_shape),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self(*inputs),)

    def rewrite(self) -> None:
        rewrite_attention(self.encoder, fuse=self.fuse_qkv)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar + 2 * math.log(self.scaling_factor)
        if self.statistics is None:
            mean = mean * self.scaling_factor
        else:
            shift, spread = self.statistics
            mean = (mean - shift) * self.scaling_factor / spread
            logvar = logvar - 2 * spread.log()
        return torch.cat([mean, logvar], dim=1)


def _latent_statistics(vae: AutoencoderKL) -> nn.ParameterList | None:
    """Mean and standard deviation of each latent channel, ``[1,C,1,1]``, where a VAE has them."""
    config = vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return None
    shape = (1, config.latent_channels, 1, 1)
    return nn.ParameterList(
        nn.Parameter(torch.tensor(v).view(shape), requires_grad=False) for v in (mean, std)
    )


def latent_size(unet: UNet2DConditionModel) -> tuple[int, int]:
    """Height and width of the latents a UNet was made for."""
    return _sides(unet.config.sample_size or 64)


def image_shape(vae: AutoencoderKL, channels: int) -> tuple[int | str, ...]:
    """The symbolic shape of the pictures of a VAE."""
    scale = vae_scale(vae)
    return ("B", channels, f"{scale}*h", f"{scale}*w")


def vae_scale(vae: AutoencoderKL) -> int:
    """Pixels for one latent: the autoencoder halves once between blocks."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def vae_tile(vae: AutoencoderKL) -> int:
    """Side of the pictures a VAE was trained at, in latents: diffusers' tile size."""
    return _sides(vae.config.sample_size)[0] // vae_scale(vae)


def _sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, where a configuration may give one number for both."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def _refuse_unsupported(unet: UNet2DConditionModel) -> None:
    config = unet.config
    allowed: dict[str, Sequence[object]] = {
        "addition_embed_type": (None, "text_time"),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "encoder_hid_dim_type": (None,),
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "attention_type": ("default",),
    }
    for key, values in allowed.items():
        if config[key] not in values:
            raise UnsupportedModel(f"a UNet with {key}={config[key]!r} cannot be exported yet")
    blocks = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
    unknown = sorted({*config.down_block_types, *config.up_block_types} - blocks)
    if unknown:
        raise UnsupportedModel(f"a UNet with {', '.join(unknown)} cannot be exported yet")
