"""A LoRA on every tensor of every network, against networks into which it was merged by hand; in
bundles with fused and with unfused projections, on kdrt's plans and with ``exact=True``."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kdrt.adapters.lora import LoraStack
from kdrt.adapters.lora_file import read_lora
from kdrt.backends.loading import load_engines
from kdrt.bundle import Bundle
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Binding, Engine
from kdrt_engines.onnx_weights import stored_weights
from kdrt_export.stage import export
from tests.support.compat_calls import RED, ours, relative, seeded
from tests.support.restated import Networks, latents

ALPHA, RANK = 3.0, 2
pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")


@dataclass(frozen=True)
class Adapted:
    """A LoRA on everything, and the networks that have it."""

    file: Path
    networks: Networks

    def parameters(self, component: str) -> dict[str, Tensor]:
        return dict(_parts(self.networks)[component].named_parameters())


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Adapted]:
    made: dict[str, Adapted] = {}

    def make(tiny: Any) -> Adapted:
        if tiny.family not in made:
            file = tmp_path_factory.mktemp("lora") / "everything.safetensors"
            made[tiny.family] = _adapted(tiny.networks, file)
        return made[tiny.family]

    return make


@pytest.fixture(scope="session")
def unfused(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Bundle]:
    made: dict[str, Bundle] = {}

    def make(tiny: Any) -> Bundle:
        if tiny.family not in made:
            folder = tmp_path_factory.mktemp("unfused") / tiny.family
            made[tiny.family] = Bundle.open(
                export(str(tiny.checkpoint), folder, precision="fp32", fuse_qkv=False)
            )
        return made[tiny.family]

    return make


def _parts(networks: Networks) -> dict[str, nn.Module]:
    encoders = zip(("text_encoder", "text_encoder_2"), networks.encoders, strict=False)
    return {"unet": networks.unet, **dict(encoders)}


def _adapted(networks: Networks, file: Path) -> Adapted:
    """Matrices get ``alpha / rank · up @ down``, norms and biases a difference."""
    generator = torch.Generator().manual_seed(3)
    merged = replace(
        networks, unet=copy.deepcopy(networks.unet), encoders=copy.deepcopy(networks.encoders)
    )
    tensors: dict[str, Tensor] = {}
    for component, network in _parts(merged).items():
        for name, parameter in network.named_parameters():
            if "token_embedding" in name:
                continue  # an input of the exported encoders
            key = f"{component}.{name.removesuffix('.weight').removesuffix('.bias')}"
            if parameter.ndim == 1:
                delta = 0.2 * torch.randn(parameter.shape, generator=generator)
                tensors[key + (".diff_b" if name.endswith("bias") else ".diff")] = delta
            else:
                out, into, *kernel = parameter.shape
                down = torch.randn(RANK, into, *kernel, generator=generator) / into
                up = torch.randn(out, RANK, *(1 for _ in kernel), generator=generator) / RANK
                tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
                product = torch.einsum("or,r...->o...", up.flatten(1), down)
                delta = ALPHA / RANK * product
            parameter.data = parameter.data + delta
    save_file(tensors, file)
    return Adapted(file, merged)


BUNDLES = ["fused", "unfused"]


@pytest.mark.parametrize("kind", BUNDLES)
def test_every_tensor_of_a_bundle_is_that_of_the_merged_network(
    tiny: Any, kind: str, adapted: Any, unfused: Any
) -> None:
    bundle = tiny.bundle if kind == "fused" else unfused(tiny)
    lora = adapted(tiny)
    components = list(_parts(tiny.networks))
    engines = {name: Recorder() for name in components}
    stack = LoraStack(bundle)
    stack.load(engines, read_lora(lora.file), strict=True)
    for component in components:
        parameters = lora.parameters(component)
        stored = stored_weights(bundle.file(bundle.manifest.components[component].onnx))
        assert engines[component].weights.keys() == stored.keys()
        for name, tensor in engines[component].weights.items():
            expected = torch.cat([parameters[each] for each in _sources(name, parameters)])
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6, msg=name)


class Recorder(Engine):
    """Takes any weights, and keeps them."""

    def __init__(self) -> None:
        self.weights: Mapping[str, Tensor] = {}

    def with_weights(self, weights: Mapping[str, Tensor]) -> Engine:
        self.weights = weights
        return self

    def bind(self, **dims: int) -> Binding:
        raise NotImplementedError


def _sources(name: str, parameters: Mapping[str, Tensor]) -> list[str]:
    """The parameters of a network side by side in a bundle's tensor, by hand."""
    name = name.removeprefix("unet.")
    if match := re.fullmatch(r"layers\.(\d+)\.to_qkv(?:\.(\d))?\.(\w+)", name):
        layer, index, kind = match.groups()
        letters = "qkv" if index is None else "qkv"[int(index)]
        wanted = [f"encoder.layers.{layer}.self_attn.{letter}_proj.{kind}" for letter in letters]
    elif match := re.fullmatch(r"(.+)\.to_(qkv|kv)\.weight", name):
        wanted = [f"{match[1]}.to_{letter}.weight" for letter in match[2]]
    elif name.startswith("layers."):
        wanted = ["encoder." + name.replace("out_proj", "self_attn.out_proj")]
    else:
        wanted = [name.replace("position_embedding", "embeddings.position_embedding")]
    prefix = "" if wanted[0] in parameters else "text_model."
    return [prefix + each for each in wanted]


@pytest.mark.parametrize("kind", [*BUNDLES, "exact"])
def test_latents_are_those_of_the_merged_networks(
    tiny: Any, kind: str, adapted: Any, unfused: Any
) -> None:
    lora = adapted(tiny)
    expected = latents(lora.networks, [RED], "euler", generator=seeded())
    base = latents(tiny.networks, [RED], "euler", generator=seeded())
    assert relative(base, expected) > 0.05
    bundle = tiny.bundle if kind == "fused" else unfused(tiny)
    is_exact = kind == "exact"
    engines = tiny.torch_engines if is_exact else load_engines(bundle, "onnxruntime", threads=1)
    pipe = type(tiny.pipe())(Pipeline(bundle, engines), engine="torch", exact=is_exact)
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe.load_lora_weights(lora.file)
        assert relative(ours(pipe, [RED], "euler", generator=seeded()), expected) < 1e-5
    finally:  # the torch engines are everyone's
        pipe.unload_lora_weights()
    if is_exact:
        assert torch.equal(ours(pipe, [RED], "euler", generator=seeded()), base)


def test_a_lora_of_nothing_but_the_encoders_projections(
    sd: Any, unfused: Any, tmp_path: Path
) -> None:
    module = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    width = unfused(sd).manifest.text_encoders[0].hidden_size
    tensors = {
        f"{module}.lora_down.weight": torch.ones(1, width),
        f"{module}.lora_up.weight": torch.ones(width, 1),
    }
    save_file(tensors, tmp_path / "q.safetensors")
    engines = {name: Recorder() for name in _parts(sd.networks)}
    LoraStack(unfused(sd)).load(engines, read_lora(tmp_path / "q.safetensors"), strict=True)
    (changed,) = engines["text_encoder"].weights
    assert changed == "layers.0.to_qkv.0.weight"
