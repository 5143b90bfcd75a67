"""The files of a component: each in its own words, all of the same weights and numbers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch

from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.onnxruntime.graphs import OrtGraph, OrtNetwork, ReducedGraph
from kdrt_export.components import ExportComponent
from kdrt_export.dialects import group_norm, upsampling, winograd
from kdrt_export.onnx.trace import OnnxFiles, onnx_from_component
from kdrt_export.verify import make_cases, relative_error, verify_files
from tests.support.components import COMPONENTS

TRACED = {"B": 2, "h": 12, "w": 10, "L": 9}
OTHERS = [{"B": 1, "h": 8, "w": 16, "L": 20}, {"B": 3, "h": 9, "w": 7, "L": 4}]
CHOSEN = ("unet sdxl", "unet sd", "text encoder", "vae decoder")


def exported(name: str, folder: Path) -> tuple[ExportComponent, OnnxFiles]:
    component = COMPONENTS[name]()
    component.rewrite()
    return component, onnx_from_component(component, TRACED, folder)


def kinds(path: Path) -> Counter[tuple[str, str]]:
    model = onnx.load(path, load_external_data=False)
    return Counter((node.domain or "ai.onnx", node.op_type) for node in model.graph.node)


def inputs(path: Path) -> set[str]:
    return {value.name for value in onnx.load(path, load_external_data=False).graph.input}


def outputs(path: Path) -> set[str]:
    return {value.name for value in onnx.load(path, load_external_data=False).graph.output}


@pytest.mark.parametrize("name", CHOSEN)
def test_every_file_computes_what_the_network_does(name: str, tmp_path: Path) -> None:
    component = COMPONENTS[name]()
    cases, neutral = make_cases(component, OTHERS), make_cases(component, OTHERS, neutral=True)
    component.rewrite()
    files = onnx_from_component(component, TRACED, tmp_path)
    figures = verify_files("it", component, files, cases, neutral, "fp32")
    assert (files.cpu is None) == (name == "text encoder")
    others = {"cpu": files.cpu, "plain": files.plain}
    graphs = ["standard", "fused", *(graph for graph, file in others.items() if file)]
    assert [figure.graph for figure in figures] == [g for g in graphs for _ in OTHERS]
    assert all(0 <= figure.relative_error < 5e-6 for figure in figures)
    for figure, asked in zip(figures, OTHERS * len(graphs), strict=True):
        if figure.graph != "plain":
            assert figure.dims == asked
        else:
            multiples = {symbol: component.multiples.get(symbol, 1) for symbol in asked}
            assert {s: n % multiples[s] for s, n in figure.dims.items()} == dict.fromkeys(asked, 0)
            assert all(0 <= figure.dims[s] - n < multiples[s] for s, n in asked.items())


@pytest.mark.parametrize("sides", [{"h": 8, "w": 16}, {"h": 9, "w": 7}])
@pytest.mark.parametrize("off", [0, 1])
def test_images_of_one_run_have_freeu_of_their_own(
    tmp_path: Path, sides: dict[str, int], off: int
) -> None:
    """One of two with FreeU, the other without: alone that runs, where it can, on the graph that
    has none."""
    component, files = exported("unet sdxl", tmp_path)
    assert files.cpu is not None
    assert files.plain is not None
    assert files.invariants is not None
    plain = ReducedGraph(OrtGraph(files.plain), component.neutral, component.multiples)
    network = OrtNetwork(OrtGraph(files.cpu), plain, OrtGraph(files.invariants))
    engine = OrtEngine(network, component.spec)
    *others, freeu = component.example_inputs({"B": 2, "L": 9} | sides, seed=1)
    freeu[off] = 1

    def predicted(*inputs: torch.Tensor) -> torch.Tensor:
        binding = engine.bind(B=len(inputs[0]), L=9, **sides)
        for held, value in zip(binding.inputs.values(), inputs, strict=True):
            held.copy_(value)
        binding.run()
        return binding.outputs["noise_pred"].clone()

    together = predicted(*others, freeu)
    for own in (slice(0, 1), slice(1, 2)):
        alone = predicted(*(tensor[own] for tensor in (*others, freeu)))
        assert relative_error(together[own], alone) < 5e-6
    none = predicted(*others, torch.ones(2, 4))
    assert relative_error(none[off], together[off]) < 5e-6
    assert relative_error(none[1 - off], together[1 - off]) > 1e-3


def test_what_each_is_made_of(tmp_path: Path) -> None:
    _, files = exported("unet sdxl", tmp_path)
    assert files.plain is not None
    assert files.cpu is not None
    assert files.invariants is not None
    standard, fused, once = (kinds(f) for f in (files.standard, files.fused, files.invariants))
    # What the two do not compute themselves, the invariants do for them.
    plain, cpu = kinds(files.plain) + once, kinds(files.cpu) + once
    norms = cpu["ai.onnx", "BatchNormalization"]
    assert norms == cpu["ai.onnx", "InstanceNormalization"] > 0
    assert fused["ai.onnx", "BatchNormalization"] == 0
    assert fused["ai.onnx", "Mul"] - cpu["ai.onnx", "Mul"] == norms
    attention = ("com.microsoft", "MultiHeadAttention")
    assert {domain for domain, _ in standard} == {"ai.onnx"}
    assert standard["ai.onnx", "Softmax"] == fused[attention] == plain[attention] > 0
    assert fused["ai.onnx", "Softmax"] == 0
    assert fused["com.microsoft", "BiasGelu"] > 0
    # FreeU is most of what an input can turn off: its cosines are no longer computed.
    assert plain.total() < fused.total() < standard.total()
    assert plain["ai.onnx", "Cos"] < fused["ai.onnx", "Cos"]


def test_what_follows_from_the_prompt_is_made_apart(tmp_path: Path) -> None:
    _, files = exported("unet sdxl", tmp_path)
    assert files.invariants is not None
    prompt = {"encoder_hidden_states", "text_embeds", "time_ids"}
    assert inputs(files.fused) == {"sample", "timestep", "freeu"} | prompt
    assert inputs(files.invariants) == prompt
    attentions = kinds(files.fused)["com.microsoft", "MultiHeadAttention"]
    # Half of the attentions are of the prompt, each with a product for keys and for values.
    product = ("ai.onnx", "MatMul")
    assert kinds(files.invariants)[product] == attentions
    assert files.cpu is not None
    assert kinds(files.fused)[product] - kinds(files.cpu)[product] == attentions
    for path in filter(None, (files.cpu, files.plain)):
        assert inputs(path) >= outputs(files.invariants)
        assert inputs(path).isdisjoint(prompt)
    assert exported("vae decoder", tmp_path / "vae")[1].invariants is None


def test_all_read_the_same_weights(tmp_path: Path) -> None:
    component, files = exported("unet sd", tmp_path)
    places = []
    for path in (files.standard, files.fused, files.plain, files.invariants):
        assert path is not None
        model = onnx.load(path, load_external_data=False)
        places.append(
            {
                tensor.name: [(entry.key, entry.value) for entry in tensor.external_data]
                for tensor in model.graph.initializer
                if tensor.data_location == onnx.TensorProto.EXTERNAL
            }
        )
        assert ("freeu" in inputs(path)) == (path in (files.standard, files.fused))
    assert places[0] == places[1] == places[2] | places[3]
    assert places[3].keys().isdisjoint(places[2])
    assert set(places[0]) == set(dict(component.named_parameters(remove_duplicate=False)))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What large images gain from, in small ones too."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", (16, 16))
    monkeypatch.setattr(winograd, "MIN_ROWS", 1)
    monkeypatch.setattr(group_norm, "MIN_ROWS", 1)
    monkeypatch.setattr(upsampling, "MIN_CHANNELS", 1)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", ["unet sd", "vae decoder", "vae encoder"])
def test_sums_in_the_order_of_a_cpu(name: str, tmp_path: Path) -> None:
    component = COMPONENTS[name]()
    cases, neutral = make_cases(component, OTHERS), make_cases(component, OTHERS, neutral=True)
    component.rewrite()
    files = onnx_from_component(component, TRACED, tmp_path)
    assert files.cpu is not None
    assert kinds(files.fused)["ai.onnx", "InstanceNormalization"] > 0
    for path in filter(None, (files.cpu, files.plain)):
        assert kinds(path)["ai.onnx", "ReduceSumSquare"] > 0
        # That of a VAE's attention is of tokens, and stays.
        assert kinds(path)["ai.onnx", "InstanceNormalization"] == int(name != "unet sd")
        assert kinds(path)["ai.onnx", "Split"] > 0
        # Winograd's and what is computed before it is enlarged: each makes several of one.
        assert kinds(path)["ai.onnx", "Conv"] > kinds(files.fused)["ai.onnx", "Conv"]
    resized = kinds(files.fused)["ai.onnx", "Resize"]
    # A decoder's sizes are doubled; those inside a UNet are computed, and twice as large at the
    # sizes that the plain file is for.
    assert kinds(files.cpu)["ai.onnx", "Resize"] == (0 if name == "vae decoder" else resized)
    assert (files.plain is not None) == (name == "unet sd")
    assert files.plain is None or kinds(files.plain)["ai.onnx", "Resize"] == 0 < resized
    figures = verify_files("it", component, files, cases, neutral, "fp32")
    assert [f.graph for f in figures if f.graph == "cpu"] == ["cpu"] * len(OTHERS)
    assert all(0 <= figure.relative_error < 5e-6 for figure in figures)


@pytest.mark.usefixtures("everywhere")
def test_half_precision_has_no_file_for_cpus(tmp_path: Path) -> None:
    component = COMPONENTS["unet sd"]()
    component.rewrite()
    component.cast(torch.float16)
    assert onnx_from_component(component, TRACED, tmp_path).cpu is None


def test_only_what_can_be_turned_off_has_a_plain_file(tmp_path: Path) -> None:
    _, files = exported("vae decoder", tmp_path)
    assert files.plain is None
    assert not (tmp_path / "onnxruntime-plain.onnx").exists()
