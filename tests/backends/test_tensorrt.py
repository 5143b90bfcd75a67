"""From a bundle's built engines to the TensorRT runtime, for which a recorder stands."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from kdrt.backends.engine_files import ENGINE_FILE, engine_folders
from kdrt.backends.loading import load_engines
from kdrt.backends.refit_setting import VARIABLE, refit_gate
from kdrt.build.engines import Tools, build_engines
from kdrt.bundle import Bundle
from kdrt.errors import EngineRejectedError, InvalidRequestError, ShapeError
from kdrt_engines.tensorrt.engine import TensorRTEngine
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from kdrt_engines.tensorrt.refit_check import RefitGate
from tests.support.engine_bundle import Builder, Checker, Listener, engine_bundle
from tests.support.rtx_machine import install_tensorrt, load_engines_of, plug_in
from tests.support.trt_recorder import Calls, RecordedGpu

GPU = 86
UNET = {"B": 2, "L": 12, "h": 8, "w": 6}


def built(folder: Path, *, refittable: bool = False) -> Bundle:
    made = engine_bundle(folder)
    tools = Tools(Builder(), Checker())
    build_engines(made, TENSORRT_RTX, (GPU,), refittable=refittable, report=Listener(), tools=tools)
    return made


@pytest.fixture(autouse=True)
def _machine(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch, tmp_path / "installed")
    plug_in(monkeypatch, RecordedGpu(capability=GPU))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return built(tmp_path / "bundle")


@pytest.fixture
def calls(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Calls:
    return load_engines_of(monkeypatch, bundle, GPU)


def loaded(bundle: Bundle, component: str = "unet") -> TensorRTEngine:
    return cast("TensorRTEngine", load_engines(bundle, "tensorrt-rtx")[component])


@pytest.mark.usefixtures("calls")
def test_what_is_loaded_can_be_bound_in_its_profiles(bundle: Bundle) -> None:
    unet = loaded(bundle)
    assert unet.spec == bundle.manifest.components["unet"].spec()
    assert [profile.name for profile in unet.profiles] == ["any"]
    assert unet.bind(**UNET).profile == "any"


@pytest.mark.usefixtures("calls")
def test_all_engines_compute_in_one_block_of_memory(bundle: Bundle) -> None:
    engines = load_engines(bundle, "tensorrt-rtx")
    bindings = [engines["unet"].bind(**UNET), engines["vae_decoder"].bind(B=1, h=8, w=6)]
    one, other = (binding.workspace() for binding in bindings)
    assert one[0] is other[0]


@pytest.mark.usefixtures("calls")
def test_kernels_are_kept_in_the_home_of_the_user(home: Path, bundle: Bundle) -> None:
    """They are code, so a bundle must not bring them along."""
    loaded(bundle).bind(**UNET)
    (kept,) = (home / "kernels").iterdir()
    assert kept.read_bytes().startswith(b"cache:")
    assert not list(bundle.path.rglob("*.cache"))


@pytest.mark.usefixtures("calls")
def test_a_size_that_was_not_built_names_the_command(bundle: Bundle) -> None:
    with pytest.raises(ShapeError, match=r"run `kdrt build .*--profile static:\d+x\d+x\d+"):
        loaded(bundle).bind(**UNET | {"h": 800})


def test_the_wrong_gpu_is_refused_with_the_command(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_engines_of(monkeypatch, bundle, 89)
    with pytest.raises(
        EngineRejectedError, match=r"this GPU is sm89; run `kdrt build .*--gpu sm89"
    ):
        load_engines(bundle, "tensorrt-rtx")


def test_a_damaged_engine_never_reaches_tensorrt(bundle: Bundle, calls: Calls) -> None:
    for folder in engine_folders(bundle, TENSORRT_RTX):
        data = bytearray((folder / ENGINE_FILE).read_bytes())
        data[300] ^= 1
        (folder / ENGINE_FILE).write_bytes(data)
    with pytest.raises(EngineRejectedError, match="damaged: its SHA-256 is wrong"):
        load_engines(bundle, "tensorrt-rtx")
    assert calls.log == []


def test_refittable_engines_can_be_refitted_and_have_a_gate_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = built(tmp_path / "refittable", refittable=True)
    load_engines_of(monkeypatch, bundle, GPU)
    engines = load_engines(bundle, "tensorrt-rtx")
    unet, text_encoder, vae = (
        cast("TensorRTEngine", engines[name]) for name in ("unet", "text_encoder", "vae_decoder")
    )
    assert unet.weights is not None
    assert isinstance(unet.after_refit, RefitGate)
    assert (vae.weights, vae.after_refit) == (None, None)
    assert text_encoder.after_refit is not unet.after_refit
    again = cast("TensorRTEngine", engines.reload("unet"))
    assert again is engines["unet"]
    assert again is not unet
    assert again.after_refit is unet.after_refit, "an engine loaded anew is not compared anew"


def test_the_environment_says_which_refits_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Path("model.onnx")
    assert refit_gate(network).when == "first"
    monkeypatch.setenv(VARIABLE, "never")
    assert refit_gate(network).when == "never"
    monkeypatch.setenv(VARIABLE, "always")
    bundle = built(tmp_path / "refittable", refittable=True)
    load_engines_of(monkeypatch, bundle, GPU)
    with pytest.raises(
        InvalidRequestError, match="KDRT_REFIT_CHECK must be first, every, never or"
    ):
        load_engines(bundle, "tensorrt-rtx")
