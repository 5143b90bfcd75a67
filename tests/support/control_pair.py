"""A tiny random model with controls, as diffusers' own pipeline and as kdrt's, on the same
networks. As in `tests.support.diffusers_pair` they are wrapped here, not exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel
from torch import Tensor, nn

from kdrt.bundle import Bundle, Component, ControlFacts, Dtype, TensorInfo
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Engine, EngineSpec
from kdrt_engines.spec import TensorSpec, part_of
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportVaeDecoder, ExportVaeEncoder
from tests.support.diffusers_pair import HEIGHT, SCALE, WIDTH, diffusers_pipeline, kdrt_pipeline
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, Family
from tests.support.tiny_networks import randomized, unet

CONTROLS = ("edges", "lines")
ADAPTERS = ("sketch", "colour")
SHAPE = (HEIGHT // SCALE, WIDTH // SCALE)


class ControlPair:
    """A pipeline of diffusers and ours, on the same networks.

    Attributes:
        theirs: of class ``kind``, with what ``controls`` name.
        ours: with all controls.
        edges, lines: ControlNets.
        sketch, colour: T2I-Adapters, of which the second takes grey images.
    """

    def __init__(
        self, folder: Path, family: Family, *, in_channels: int = CHANNELS, pools: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.parts: dict[str, Any] = _parts(family) | {"unet": _unet(family, in_channels)}
        plain = _unet(family, CHANNELS)  # a ControlNet sees the latents alone
        self.networks = {
            name: _controlnet(plain, seed, pools) for seed, name in enumerate(CONTROLS)
        }
        self.adapters = {
            "sketch": _adapter(family, 3, seed=7),
            "colour": _adapter(family, 1, seed=8),
        }
        self._family = family
        self.ours = self._ours(folder, in_channels)

    def theirs(self, kind: Any, **parts: Any) -> Any:
        """diffusers' pipeline of this class."""
        # Not all of them take what others leave out.
        own = {**{name: part for name, part in self.parts.items() if part is not None}, **parts}
        if self._family == "sd":
            none = {"safety_checker": None, "feature_extractor": None}
            own |= {**none, "requires_safety_checker": False}
        pipeline = kind(**own)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _ours(self, folder: Path, in_channels: int) -> Pipeline:
        base = kdrt_pipeline(folder, self._family, _Parts(self.parts))
        spec = base.engines["unet"].spec
        sample = TensorSpec("sample", "float32", ("B", in_channels, "h", "w"))
        plain = EngineSpec((sample, *spec.inputs[1:]), spec.outputs)
        dims = {"B": 1, "h": SHAPE[0], "w": SHAPE[1], "L": 3}
        rows = [torch.rand(tensor.resolve(dims)) for tensor in spec.inputs]
        residuals = _residuals(self.networks["edges"], spec, rows)
        features = _features(self.adapters["sketch"])
        controlled = EngineSpec((*plain.inputs, *residuals, *features), spec.outputs)
        decoder, encoder = ExportVaeDecoder(self.parts["vae"]), ExportVaeEncoder(self.parts["vae"])
        engines: dict[str, Engine] = {
            "vae_decoder": TorchEngine(decoder, decoder.spec),
            "vae_encoder": TorchEngine(encoder, encoder.spec),
            "unet": TorchEngine(_UNet(self.parts["unet"], plain), plain),
            "unet-control": TorchEngine(_UNet(self.parts["unet"], controlled), controlled),
        }
        facts = {}
        for name, network in self.networks.items():
            hint = EngineSpec(
                (TensorSpec("image", "float32", ("B", 3, f"{SCALE}*h", f"{SCALE}*w")),),
                (TensorSpec("hint", "float32", ("B", 16, "h", "w")),),
            )
            told = [t for t in spec.inputs if t.name != "freeu"]
            inputs = (
                *told,
                hint.outputs[0],
                TensorSpec("scales", "float32", ("B", len(residuals))),
            )
            own = EngineSpec(inputs, tuple(residuals))
            engines[f"controlnet-{name}-hint"] = TorchEngine(
                network.controlnet_cond_embedding, hint
            )
            engines[f"controlnet-{name}"] = TorchEngine(_ControlNet(network, own), own)
            pools = network.config.global_pool_conditions
            facts[name] = ControlFacts(kind="controlnet", source="", channels=3, global_pool=pools)
        for name, adapter in self.adapters.items():
            channels = adapter.config.in_channels
            image = TensorSpec("image", "float32", ("B", channels, f"{SCALE}*h", f"{SCALE}*w"))
            own = EngineSpec((image,), tuple(features))
            engines[f"t2i-adapter-{name}"] = TorchEngine(_Adapter(adapter), own)
            facts[name] = ControlFacts(kind="t2i-adapter", source="", channels=channels)
        manifest = base.bundle.manifest.model_copy(
            update={
                "controls": facts,
                "variants": {"control": {"unet": "unet-control"}},
                "components": {
                    name: _component(engines[name].spec) for name in ("unet", "unet-control")
                },
            }
        )
        present = {**base.engines, **engines}
        return Pipeline(Bundle(folder, manifest), present, present.__getitem__)


class _Parts:
    """What `kdrt_pipeline` asks of diffusers' pipeline."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.__dict__.update(parts)


class _Named(nn.Module):
    """A network whose inputs are told by name."""

    def __init__(self, network: nn.Module, spec: EngineSpec) -> None:
        super().__init__()
        self.network: Any = network
        self.names = [tensor.name for tensor in spec.inputs]

    def told(self, inputs: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The inputs by name, and diffusers' arguments for those that every network has."""
        named = dict(zip(self.names, inputs, strict=True))
        added = {name: named[name] for name in ("text_embeds", "time_ids") if name in named}
        return named, {
            "sample": named["sample"],
            "timestep": named["timestep"],
            "encoder_hidden_states": named["encoder_hidden_states"],
            "added_cond_kwargs": added or None,
        }


class _UNet(_Named):
    def forward(self, *inputs: Tensor) -> Tensor:
        named, told = self.told(inputs)
        if "mid_residual" in named:
            told["mid_block_additional_residual"] = named["mid_residual"]
            told["down_block_additional_residuals"] = _numbered(named, "down_residual_")
            told["down_intrablock_additional_residuals"] = _numbered(named, "adapter_residual_")
        prediction: Tensor = self.network(**told).sample
        return prediction


class _ControlNet(_Named):
    def __init__(self, network: ControlNetModel, spec: EngineSpec) -> None:
        network = deepcopy(network)
        network.controlnet_cond_embedding = nn.Identity()
        super().__init__(network, spec)
        self.residuals = spec.outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named, told = self.told(inputs)
        down, middle = self.network(**told, controlnet_cond=named["hint"], return_dict=False)
        scaled = zip((*down, middle), named["scales"].unbind(1), self.residuals, strict=True)
        size = dict(zip("BChw", named["sample"].shape, strict=True))
        return tuple(
            (each * scale[:, None, None, None]).expand(residual.resolve(size))
            for each, scale, residual in scaled
        )


class _Adapter(nn.Module):
    def __init__(self, adapter: T2IAdapter) -> None:
        super().__init__()
        self.adapter = adapter

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.adapter(image))


def _numbered(named: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    return [tensor for name, tensor in named.items() if name.startswith(prefix)]


@cache
def _parts(family: Family) -> dict[str, Any]:
    parts = diffusers_pipeline(family, "epsilon").components
    randomized(parts["vae"])
    # A spread of nothing: diffusers draws a sample where we take the mean.
    parts["vae"].quant_conv.weight.data[4:] = 0
    parts["vae"].quant_conv.bias.data[4:] = -100
    return parts


@cache
def _unet(family: Family, in_channels: int) -> UNet2DConditionModel:
    if family == "sd":
        return unet("sd", cross_attention_dim=WIDTHS[0], in_channels=in_channels)
    size = 6 * 8 + POOLED
    return unet(
        "sdxl",
        cross_attention_dim=sum(WIDTHS),
        projection_class_embeddings_input_dim=size,
        in_channels=in_channels,
    )


def _controlnet(of: UNet2DConditionModel, seed: int, pools: bool) -> ControlNetModel:
    network = ControlNetModel.from_unet(of, conditioning_embedding_out_channels=(4, 8))
    network.register_to_config(global_pool_conditions=pools)
    return randomized(network, 10 + seed)


def _adapter(family: Family, channels: int, *, seed: int) -> T2IAdapter:
    kind = {"sd": "full_adapter", "sdxl": "full_adapter_xl"}[family]
    adapter = T2IAdapter(
        in_channels=channels,
        channels=[16, 32, 32] if family == "sd" else [16, 32, 32, 32],
        num_res_blocks=1,
        downscale_factor=SCALE if family == "sd" else 2 * SCALE,
        adapter_type=kind,
    )
    return randomized(adapter, seed)


def _residuals(
    network: ControlNetModel, spec: EngineSpec, rows: Sequence[Tensor]
) -> list[TensorSpec]:
    _, told = _Named(network, spec).told(rows)
    down, middle = network(
        **told, controlnet_cond=torch.zeros(1, 3, HEIGHT, WIDTH), return_dict=False
    )
    names = [*(f"down_residual_{index}" for index in range(len(down))), "mid_residual"]
    pools = network.config.global_pool_conditions
    if pools:  # means over the image
        network.register_to_config(global_pool_conditions=False)
        shapes = _residuals(network, spec, rows)
        network.register_to_config(global_pool_conditions=True)
        return shapes
    return [_spec(name, tensor) for name, tensor in zip(names, (*down, middle), strict=True)]


def _features(adapter: T2IAdapter) -> list[TensorSpec]:
    made = adapter(torch.zeros(1, adapter.config.in_channels, HEIGHT, WIDTH))
    return [_spec(f"adapter_residual_{index}", tensor) for index, tensor in enumerate(made)]


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    """Of a tensor that was made at `SHAPE`."""
    _, channels, height, width = tensor.shape
    sides = part_of("h", SHAPE[0] // height), part_of("w", SHAPE[1] // width)
    return TensorSpec(name, "float32", ("B", channels, *sides))


def _component(spec: EngineSpec) -> Component:
    def infos(tensors: Sequence[TensorSpec]) -> tuple[TensorInfo, ...]:
        return tuple(
            TensorInfo(name=t.name, dtype=cast(Dtype, t.dtype), shape=t.shape) for t in tensors
        )

    return Component(
        onnx="onnx/none/model.onnx",
        inputs=infos(spec.inputs),
        outputs=infos(spec.outputs),
        parameters=0,
    )
