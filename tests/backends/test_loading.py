"""Loading engines, and the words when there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kdrt.backends import choice, loading, torch_programs
from kdrt.backends.choice import needed_components, torch_program
from kdrt.backends.fallback import FallbackEngine, FallbackLoader, FallbackWarning
from kdrt.backends.loader import Loader
from kdrt.backends.loading import LazyEngines, load_engines
from kdrt.backends.offload import Offloader
from kdrt.backends.torch_programs import trust_program
from kdrt.bundle import Bundle
from kdrt.common.home import trust
from kdrt.errors import (
    BundleError,
    EngineError,
    EngineRejectedError,
    EngineUnavailableError,
    InvalidRequestError,
    ShapeError,
)
from kdrt_engines import Engine
from kdrt_engines.registry import ENGINES, EngineStatus
from kdrt_engines.torch_eager import TorchBinding, TorchEngine
from tests.support.tiny_model import TinyModel


class Twice(torch.nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        pixels = latents[:, :3] * 2
        return pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)


def test_unknown_engines_are_named(sdxl: TinyModel) -> None:
    with pytest.raises(InvalidRequestError, match="unknown engine 'onnx'; known: tensorrt"):
        load_engines(sdxl.pipeline.bundle, "onnx")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True])
def test_threads_are_checked(sdxl: TinyModel, threads: int) -> None:
    with pytest.raises(InvalidRequestError, match="threads must be"):
        load_engines(sdxl.pipeline.bundle, threads=threads)


@pytest.mark.parametrize(
    ("engine", "module", "title"),
    [("tensorrt", "tensorrt", "TensorRT"), ("tensorrt-rtx", "tensorrt_rtx", "TensorRT-RTX")],
)
def test_tensorrt_needs_its_package_and_a_gpu(
    sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch, engine: str, module: str, title: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, module, ModuleType(module))
    with pytest.raises(
        EngineUnavailableError, match=f"{title} runs on NVIDIA GPUs, and CUDA sees none"
    ):
        load_engines(sdxl.pipeline.bundle, engine)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineUnavailableError, match=f"{title} is not installed; pip install"):
        load_engines(sdxl.pipeline.bundle, engine)


@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_onnxruntime_on_cuda_needs_cuda(
    sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailableError, match=f"{engine} runs on NVIDIA GPUs"):
        load_engines(sdxl.pipeline.bundle, engine)


def test_an_engine_that_was_not_built_is_not_chosen(
    sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [EngineStatus(name, True, None, "") for name in ("tensorrt-rtx", "onnxruntime")]
    monkeypatch.setattr(choice, "engines_in_turn", lambda: tuple(there))
    bundle = sdxl.pipeline.bundle
    assert choice.chosen_engine(None, bundle) == "onnxruntime"
    for name in needed_components(bundle.manifest):
        (bundle.path / "engines" / "tensorrt-rtx" / f"{name}-sm89-0").mkdir(parents=True)
    assert choice.chosen_engine(None, bundle) == "tensorrt-rtx"


class Engines(Loader):
    """Loads the engines it was given; the others are missing."""

    device = torch.device("cpu")

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines

    def load(self, component: str) -> Engine:
        if component not in self.engines:
            raise EngineRejectedError(
                f"the bundle has no tensorrt engine of {component}; run `kdrt build`", "missing"
            )
        return self.engines[component]


def test_a_fallback_is_taken_and_said(sdxl: TinyModel) -> None:
    engines = sdxl.pipeline.engines
    made: list[Loader] = []

    def make() -> Loader:
        made.append(Engines(engines))
        return made[-1]

    loader = FallbackLoader(Engines({"vae_decoder": engines["vae_decoder"]}), "torch", make)
    assert loader.load("vae_decoder") is engines["vae_decoder"]
    assert made == [], "the fallback's needs are looked at when it is needed"
    with pytest.warns(FallbackWarning, match="unet runs on torch: the bundle has no tensorrt"):
        assert loader.load("unet") is engines["unet"]
    with pytest.warns(FallbackWarning):
        loader.load("text_encoder")
    assert len(made) == 1


def test_a_fallback_is_loaded_for_what_the_bundle_lacks(sdxl: TinyModel) -> None:
    """There is no program of the UNet, nor the ONNX file that ONNX Runtime looks for instead."""
    with (
        pytest.warns(FallbackWarning, match=r"unet runs on onnxruntime: .*unet\.pt2 is missing"),
        pytest.raises(EngineError, match="ONNX Runtime cannot load"),
    ):
        load_engines(sdxl.pipeline.bundle, "torch", fallback="onnxruntime")


def test_an_engine_with_limits_gets_the_fallback_for_what_is_beyond(sdxl: TinyModel) -> None:
    engines = sdxl.pipeline.engines

    class Limited(TorchEngine):
        def limits(self) -> Mapping[str, tuple[int, int]]:
            return {"h": (1, 8)}

        def bind(self, **dims: int) -> TorchBinding:
            if dims["h"] > 8:
                raise ShapeError("no optimization profile takes h=9")
            return super().bind(**dims)

    limited = Limited(sdxl.vae_decoder, engines["vae_decoder"].spec)
    loader = FallbackLoader(Engines({"vae_decoder": limited}), "torch", lambda: Engines(engines))
    engine = loader.load("vae_decoder")
    engine.bind(B=1, h=8, w=8)
    with pytest.warns(FallbackWarning, match="vae_decoder runs on torch: no optimization profile"):
        engine.bind(B=1, h=9, w=8)


def test_engines_are_loaded_when_they_are_asked_for(sdxl: TinyModel) -> None:
    loaded: list[str] = []

    class Watched(Engines):
        def load(self, component: str) -> Engine:
            loaded.append(component)
            return TorchEngine(sdxl.vae_decoder, self.engines[component].spec)

    engines = LazyEngines(Watched(sdxl.pipeline.engines), sdxl.manifest.components)
    assert set(engines) == set(sdxl.manifest.components)
    assert "unet" in engines
    assert "no such" not in engines
    assert engines.get("no such") is None
    assert len(engines) == len(sdxl.manifest.components)
    assert loaded == []
    first = engines["unet"]
    assert engines["unet"] is first
    assert loaded == ["unet"]
    again = engines.reload("unet")
    assert again is not first
    assert engines["unet"] is again
    engines.reload("vae_decoder")
    assert loaded == ["unet", "unet", "vae_decoder"]


def test_sizes_that_were_not_built_go_to_the_fallback(sdxl: TinyModel) -> None:
    other = sdxl.pipeline.engines["vae_decoder"]

    class Small(TorchEngine):
        def bind(self, **dims: int) -> TorchBinding:
            if dims["h"] > 8:
                raise ShapeError("no optimization profile takes h=9")
            return super().bind(**dims)

    small = Small(sdxl.vae_decoder, other.spec)
    engine = FallbackEngine(small, "vae_decoder", "torch", lambda: other)
    engine.bind(B=1, h=8, w=8)
    with pytest.warns(FallbackWarning, match="vae_decoder runs on torch: no optimization profile"):
        assert engine.bind(B=1, h=9, w=8).outputs["image"].shape == (1, 3, 72, 64)


def test_a_fallback_in_turns_is_refused(sdxl: TinyModel) -> None:
    with pytest.raises(InvalidRequestError, match="low_vram needs to know"):
        load_engines(sdxl.pipeline.bundle, "onnxruntime", fallback="torch", offloader=Offloader())


def test_without_any_engine(sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "engines_in_turn", lambda: ())
    with pytest.raises(EngineUnavailableError, match="no engine is installed"):
        load_engines(sdxl.pipeline.bundle)


def test_torch_needs_its_exported_programs(sdxl: TinyModel) -> None:
    with pytest.raises(EngineUnavailableError, match=r"unet\.pt2 is missing.*--target torch"):
        load_engines(sdxl.pipeline.bundle, "torch")


def test_a_damaged_program_is_an_engine_error(sdxl: TinyModel) -> None:
    path = torch_program(sdxl.pipeline.bundle, "unet")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nonsense")
    trust(*torch_programs._description(sdxl.pipeline.bundle, "unet"))
    with pytest.raises(EngineError, match="cannot load"):
        load_engines(sdxl.pipeline.bundle, "torch")


def test_a_program_of_somebody_else_is_not_loaded(sdxl: TinyModel, home: Path) -> None:
    bundle = sdxl.pipeline.bundle
    path = torch_program(bundle, "unet")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a program")
    trust(*torch_programs._description(bundle, "unet"))
    path.write_bytes(b"A program")
    with pytest.raises(
        EngineUnavailableError, match=f"run `kdrt trust {bundle.path}` if you trust"
    ):
        load_engines(bundle, "torch")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(EngineUnavailableError, match="is missing"):
        load_engines(bundle, "torch")


def test_torch_runs_an_exported_program(sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = sdxl.pipeline.bundle
    component = bundle.manifest.components["vae_decoder"]
    dims = {0: torch.export.Dim("B"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(Twice(), (torch.zeros(2, 4, 4, 6),), dynamic_shapes=(dims,))
    path = torch_program(bundle, "vae_decoder")
    path.parent.mkdir(parents=True)
    program._example_inputs = None
    torch.export.save(program, path)
    trust_program(bundle, "vae_decoder")
    monkeypatch.setattr(loading, "needed_components", lambda _: {"vae_decoder": component})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    engine = load_engines(bundle, "torch")["vae_decoder"]
    assert isinstance(engine, TorchEngine)
    binding = engine.bind(B=1, h=3, w=5)
    binding.inputs["latents"].fill_(0.25)
    binding.run()
    assert binding.outputs["image"].shape == (1, 3, 24, 40)
    assert (binding.outputs["image"] == 0.5).all()


def test_what_a_generation_needs(sdxl: TinyModel) -> None:
    needed = needed_components(sdxl.manifest)
    assert list(needed) == ["unet", "text_encoder", "text_encoder_2", "vae_decoder"]
    fewer = {name: c for name, c in sdxl.manifest.components.items() if name != "vae_decoder"}
    with pytest.raises(BundleError, match="has no vae_decoder"):
        needed_components(sdxl.manifest.model_copy(update={"components": fewer}))


def test_a_missing_onnx_file_is_an_engine_error(sdxl: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load"):
        load_engines(Bundle(tmp_path, sdxl.manifest), "onnxruntime")


NEED_NOTHING = {"onnxruntime", "openvino"}
"""Of a bundle: they read its ONNX files."""


@pytest.mark.parametrize("engine", [name for name in ENGINES if name not in NEED_NOTHING])
def test_an_engine_that_lacks_something_names_the_way_out(sdxl: TinyModel, engine: str) -> None:
    """The bundle has no built engines and no programs, and this machine may have no GPU."""
    with pytest.raises(EngineError, match=r"pip install|choose another engine|export it with"):
        load_engines(sdxl.pipeline.bundle, engine)
