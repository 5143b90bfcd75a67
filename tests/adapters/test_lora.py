"""LoRAs on running engines: the images are those of diffusers with the same LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import kdrt
from kdrt.adapters.lora import AdapterWarning
from kdrt.errors import EngineError, InvalidRequestError
from kdrt_engines import Binding, Engine
from kdrt_export.lora import LorasToBake
from kdrt_export.verify import relative_error
from tests.support.lora_files import (
    ATTENTION,
    CONVOLUTIONS,
    TEXT,
    kohya,
    networks,
    peft,
    random_lora,
)
from tests.support.lycoris_layers import adapt
from tests.support.openvino import needs_openvino
from tests.support.tiny_bundles import TinyModel, by_diffusers, by_kdrt

EVERYTHING = (*ATTENTION, *CONVOLUTIONS, *TEXT)
BOUND = 1e-5


def write(
    model: TinyModel, path: Path, modules: tuple[str, ...] = EVERYTHING, seed: int = 0
) -> Path:
    save_file(kohya(random_lora(networks(model.diffusers()), modules, seed=seed)), path)
    return path


def expected(model: TinyModel, files: dict[str, Path], scales: list[float]) -> Tensor:
    pipe = model.diffusers()
    for name, file in files.items():
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    pipe.set_adapters(list(files), scales)
    return by_diffusers(pipe)


@pytest.mark.parametrize("scale", [1.0, -0.5, 1.75])
def test_one_lora_is_that_of_diffusers(model: TinyModel, scale: float, tmp_path: Path) -> None:
    file = write(model, tmp_path / "style.safetensors")
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    base = by_kdrt(pipe)
    swap = pipe.adapters.load_lora(file, scale=scale)
    assert set(swap.networks) == set(networks(model.diffusers()))
    result = by_kdrt(pipe)
    assert relative_error(result, base) > 1e-2
    assert relative_error(result, expected(model, {"style": file}, [scale])) < BOUND


@pytest.mark.slow
@needs_openvino
def test_openvino_runs_loras_too(tiny_models: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Its networks are compiled with the weights in them, and compiled anew."""
    model = tiny_models("sd")
    file = write(model, tmp_path / "style.safetensors")
    pipe = kdrt.load(model.bundle, engine="openvino")
    base = by_kdrt(pipe)
    pipe.adapters.load_lora(file, scale=1.75)
    assert relative_error(by_kdrt(pipe), expected(model, {"style": file}, [1.75])) < BOUND
    pipe.adapters.unload_loras()
    assert relative_error(by_kdrt(pipe), base) < BOUND


def test_every_kind_at_once_is_that_of_lycoris(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    """Running and baked, on fused projections, convolutions and a text encoder."""
    model = tiny_models("sd")
    pipe = model.diffusers()
    block, resnet = "mid_block.attentions.0.transformer_blocks.0", "mid_block.resnets.0"
    kinds = {
        f"{block}.attn1.to_q": "LoHa",
        f"{block}.attn1.to_k": "DoRA of rows, LoCon",
        f"{block}.attn1.to_v": "DoRA of columns, LoKr",
        f"{block}.attn2.to_k": "LoKr",
        f"{block}.attn2.to_v": "(IA)³ of outputs",
        f"{block}.ff.net.2": "GLoRA",
        f"{resnet}.conv1": "LoKr, Tucker",
        f"{resnet}.conv2": "OFT, rescaled",
        "mid_block.resnets.1.conv1": "LoHa, Tucker",
        "mid_block.resnets.1.conv2": "BOFT",
    }
    state: dict[str, Tensor] = {}
    for path, kind in kinds.items():
        key = f"lora_unet_{path}".replace(".", "_")
        state |= adapt(key, pipe.unet.get_submodule(path), kind, rank=2, alpha=1, scale=1)
    path = "encoder.layers.0.mlp.fc1"
    state |= adapt(
        f"lora_te_text_model_{path}".replace(".", "_"),
        next(m for n, m in pipe.text_encoder.named_modules() if n.endswith(path)),
        "LoHa",
        rank=2,
        alpha=1,
        scale=1,
    )
    file = tmp_path / "all.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file)
    wanted = by_diffusers(pipe)

    ours = kdrt.load(model.bundle, engine="onnxruntime")
    base = by_kdrt(ours)
    ours.adapters.load_lora(file, strict=True)
    assert relative_error(by_kdrt(ours), wanted) < BOUND
    ours.adapters.unload_loras()
    assert torch.equal(by_kdrt(ours), base)
    assert relative_error(base, wanted) > 1e-2

    baked, loras = model.diffusers(), LorasToBake([(file, 1.0)], strict=True)
    for component, network in networks(baked).items():
        loras.merge(component, network)
    assert relative_error(by_diffusers(baked), wanted) < BOUND


def test_several_at_once_and_switched(model: TinyModel, tmp_path: Path) -> None:
    files = {
        "a": write(model, tmp_path / "a.safetensors", seed=1),
        "b": write(model, tmp_path / "b.safetensors", ("to_q", "to_v", "conv1"), seed=2),
    }
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    for name, file in files.items():
        pipe.adapters.load_lora(file, name)
    for scales in ([1.0, 1.0], [0.3, -1.2]):
        pipe.adapters.set_loras(dict(zip(files, scales, strict=True)))
        assert relative_error(by_kdrt(pipe), expected(model, files, scales)) < BOUND
    pipe.adapters.set_loras({"b": 0.8})
    assert relative_error(by_kdrt(pipe), expected(model, files, [0.0, 0.8])) < BOUND
    assert {name: lora.scale for name, lora in pipe.adapters.loras.items()} == {"a": 0.0, "b": 0.8}


@pytest.mark.parametrize("modules", [("to_q",), ("attn2.to_k",), ("attn1.to_v", "q_proj")])
def test_one_projection_of_a_fused_three(
    model: TinyModel, modules: tuple[str, ...], tmp_path: Path
) -> None:
    # Not in kohya's format: there diffusers loses q_proj where out_proj is missing.
    file = tmp_path / "one.safetensors"
    save_file(peft(random_lora(networks(model.diffusers()), modules, alpha=None)), file)
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    pipe.adapters.load_lora(file)
    assert relative_error(by_kdrt(pipe), expected(model, {"one": file}, [1.0])) < BOUND


def test_unloading_restores_the_base_bit_for_bit(model: TinyModel, tmp_path: Path) -> None:
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    base = by_kdrt(pipe)
    for leave in (
        lambda: pipe.adapters.unload_loras(),
        lambda: pipe.adapters.unload_loras("style"),
        lambda: pipe.adapters.set_loras({}),
        lambda: pipe.adapters.set_loras({"style": 0}),
    ):
        if pipe.adapters.loras:
            pipe.adapters.unload_loras()
        pipe.adapters.load_lora(write(model, tmp_path / "style.safetensors"), scale=3)
        assert not torch.equal(by_kdrt(pipe), base)
        leave()
        assert torch.equal(by_kdrt(pipe), base)


def test_only_networks_that_change_are_made_again(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    model = tiny_models("sdxl")
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    before = dict(pipe.engines)
    swap = pipe.adapters.load_lora(write(model, tmp_path / "unet.safetensors", ("to_q",)))
    assert swap.networks == ("unet",)
    # Every self-attention's fused projection, and every cross-attention's to_q.
    sites = sum(name.endswith("to_q") for name, _ in model.diffusers().unet.named_modules())
    assert (swap.weights, swap.seconds > 0) == (sites, True)
    assert [n for n in before if pipe.engines[n] is not before[n]] == ["unet"]
    assert pipe.adapters.set_loras({"unet": 1.0}).networks == ()


class Fixed(Engine):
    """An engine that cannot change its weights."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.spec, self.device = engine, engine.spec, engine.device

    def bind(self, **dims: int) -> Binding:
        return self.engine.bind(**dims)


def test_a_refused_change_changes_nothing(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    model, other = tiny_models("sd"), tiny_models("sdxl")
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    pipe.adapters.load_lora(write(model, tmp_path / "style.safetensors"))
    before = by_kdrt(pipe)
    wrong = write(other, tmp_path / "xl.safetensors", ("attn2.to_k", "attn1.to_q"))
    refusals = [
        (lambda: pipe.adapters.load_lora(tmp_path / "style.safetensors"), "is loaded already"),
        (
            lambda: pipe.adapters.load_lora(
                tmp_path / "style.safetensors", "b", scale=float("nan")
            ),
            "finite",
        ),
        (
            lambda: pipe.adapters.load_lora(tmp_path / "style.safetensors", "b", scale=True),
            "finite",
        ),
        (lambda: pipe.adapters.load_lora(wrong), "made for another model"),
        (
            lambda: pipe.adapters.set_loras({"other": 1.0}),
            "no LoRA called 'other' is loaded; loaded: style",
        ),
        (lambda: pipe.adapters.set_loras({"style": "1"}), "must be a finite number"),  # type: ignore[dict-item]
        (lambda: pipe.adapters.unload_loras("style", "other"), "no LoRA called 'other'"),
    ]
    for change, words in refusals:
        with pytest.raises(InvalidRequestError, match=words):
            change()
    pipe.engines["unet"] = Fixed(pipe.engines["unet"])
    with pytest.raises(
        EngineError,
        match=r"cannot be put on the running unet.*kdrt export .*--lora.*kdrt build .*--refittable",
    ):
        pipe.adapters.set_loras({})
    assert list(pipe.adapters.loras) == ["style"]
    assert torch.equal(by_kdrt(pipe), before)


class InPlace(Engine):
    """An engine that takes weights in place, as a refitted one does; where it fails, it ends at its
    base. ``failing`` counts the changes that still go well before one fails."""

    in_place = True

    def __init__(self, engine: Engine, failing: int | None = None) -> None:
        self.engine, self.spec, self.device = engine, engine.spec, engine.device
        self.failing = failing
        self.names: list[list[str]] = []

    def bind(self, **dims: int) -> Binding:
        return self.engine.bind(**dims)

    def with_weights(self, weights: Mapping[str, Tensor]) -> Engine:
        fails = self.failing == 0
        if self.failing is not None:
            self.failing = None if fails else self.failing - 1
        self.engine = self.engine.with_weights({} if fails else weights)
        self.names.append(sorted(weights))
        if fails:
            raise EngineError("the refit failed; the refit was undone")
        return self


@pytest.mark.parametrize("failing", ["unet", "text_encoder"])
def test_a_change_that_fails_half_way_is_undone(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path, failing: str
) -> None:
    """The engine that failed is at its base, one before it has the new weights: both get back what
    they had."""
    model = tiny_models("sd")
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    doubles = {}
    for name in ("unet", "text_encoder"):
        doubles[name] = InPlace(pipe.engines[name], 1 if name == failing else None)
    pipe.replace_engines(doubles)
    pipe.adapters.load_lora(write(model, tmp_path / "style.safetensors"))
    before = by_kdrt(pipe)
    file = write(model, tmp_path / "b.safetensors", seed=1)
    with pytest.raises(EngineError, match="the refit failed"):
        pipe.adapters.load_lora(file)
    assert list(pipe.adapters.loras) == ["style"]
    assert torch.equal(by_kdrt(pipe), before)
    pipe.adapters.load_lora(file)
    files = {"style": tmp_path / "style.safetensors", "b": file}
    assert relative_error(by_kdrt(pipe), expected(model, files, [1.0, 1.0])) < BOUND


def test_what_cannot_be_put_back_is_said(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    model = tiny_models("sd")
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    unet = InPlace(pipe.engines["unet"], 0)
    pipe.replace_engines({"unet": unet, "text_encoder": Broken(pipe.engines["text_encoder"])})
    with pytest.raises(EngineError, match="cannot be put back on the text_encoder, broken; load"):
        pipe.adapters.load_lora(write(model, tmp_path / "text.safetensors", TEXT))


class Broken(InPlace):
    def with_weights(self, weights: Mapping[str, Tensor]) -> Engine:
        raise EngineError("broken")


def test_captured_runs_are_dropped_after_a_change_that_failed(
    tiny_models: Callable[[str], TinyModel], tmp_path: Path
) -> None:
    model = tiny_models("sd")
    pipe = kdrt.load(model.bundle, engine="onnxruntime")
    pipe.replace_engines({"unet": InPlace(pipe.engines["unet"], 0)})
    by_kdrt(pipe)
    assert len(pipe.denoising) == 1
    with pytest.raises(EngineError, match="the refit failed"):
        pipe.adapters.load_lora(write(model, tmp_path / "style.safetensors"))
    assert len(pipe.denoising) == 0


def test_layers_of_another_model(tiny_models: Callable[[str], TinyModel], tmp_path: Path) -> None:
    pipe = kdrt.load(tiny_models("sd").bundle, engine="onnxruntime")
    down, up = torch.ones(2, 32), torch.ones(32, 2)
    save_file(
        {"lora_unet_nowhere.lora_down.weight": down, "lora_unet_nowhere.lora_up.weight": up},
        tmp_path / "none.safetensors",
    )
    with pytest.raises(InvalidRequestError, match=r"no layer of none\.safetensors exists in"):
        pipe.adapters.load_lora(tmp_path / "none.safetensors")
    name = "lora_unet_mid_block_attentions_0_proj_in"
    save_file(
        {
            **{f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up},
            "lora_te2_x.lora_down.weight": down.clone(),
            "lora_te2_x.lora_up.weight": up.clone(),
        },
        tmp_path / "some.safetensors",
    )
    with pytest.warns(AdapterWarning, match=r"1 of 2 layers .* no effect: text_encoder_2\.x"):
        pipe.adapters.load_lora(tmp_path / "some.safetensors")
    assert pipe.adapters.loras["some"].unmatched == ("text_encoder_2.x",)


@pytest.mark.slow
def test_the_torch_engine_does_the_same(tmp_path: Path) -> None:
    """Some minutes: torch.export walks every operator."""
    model = TinyModel.make("sd", tmp_path, targets=["onnxruntime", "torch"])
    file = write(model, tmp_path / "style.safetensors")
    pipe = kdrt.load(model.bundle, engine="torch")
    base = by_kdrt(pipe)
    for scale in (1.0, -0.5):
        if pipe.adapters.loras:
            pipe.adapters.set_loras({"style": scale})
        else:
            pipe.adapters.load_lora(file, scale=scale)
        assert relative_error(by_kdrt(pipe), expected(model, {"style": file}, [scale])) < BOUND
    pipe.adapters.unload_loras()
    assert torch.equal(by_kdrt(pipe), base)
