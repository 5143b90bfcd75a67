"""From a bundle's built engines to the TensorRT runtime, whose class a recorder stands for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import kdrt_engines.tensorrt.run
from kdrt.backends.loading import load_engines
from kdrt.build import engines
from kdrt.build.engines import build_engines
from kdrt.bundle import Bundle
from kdrt.errors import EngineRejectedError, ShapeError
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX, Flavour
from tests.support.engine_bundle import VERSION, Builder, Listener, engine_bundle


class Loaded:
    """What a TensorRTEngine was made of."""

    def __init__(self, trt: ModuleType, plan: memoryview, spec: object, **options: Any) -> None:
        self.trt, self.plan, self.spec = trt, plan, spec
        self.__dict__ |= options


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with engines for sm86, on a machine with such a GPU."""
    monkeypatch.setattr(Flavour, "version", lambda _: VERSION)
    monkeypatch.setattr(engines, "build_plan", Builder())
    made = engine_bundle(tmp_path)
    build_engines(made, TENSORRT_RTX, (86,), report=Listener())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", ModuleType("tensorrt_rtx"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    monkeypatch.setattr(kdrt_engines.tensorrt.run, "Scratch", lambda device: object())
    monkeypatch.setattr(kdrt_engines.tensorrt.run, "TensorRTEngine", Loaded)
    return made


def test_verified_bytes_profiles_and_cache_are_handed_over(bundle: Bundle) -> None:
    engines: dict[str, Any] = {**load_engines(bundle, "tensorrt-rtx")}
    unet = engines["unet"]
    (folder,) = bundle.path.glob("engines/tensorrt-rtx/unet-*")
    assert bytes(unet.plan) == (folder / "engine.plan").read_bytes()
    assert unet.spec == bundle.manifest.components["unet"].spec()
    assert [profile.name for profile in unet.profiles] == ["any"]
    assert not unet.runtime_cache.is_relative_to(folder)
    assert unet.trt.__name__ == "tensorrt_rtx"
    assert len({engine.scratch for engine in engines.values()}) == 1, "one block for all"


def test_a_size_that_was_not_built_names_the_command(bundle: Bundle) -> None:
    unet: Any = load_engines(bundle, "tensorrt-rtx")["unet"]
    assert unet.choose({"B": 2, "L": 12, "h": 8, "w": 6}).name == "any"
    with pytest.raises(ShapeError, match=r"run `kdrt build .*--profile static:\d+x\d+x\d+"):
        unet.choose({"B": 2, "L": 12, "h": 800, "w": 6})


def test_the_wrong_gpu_is_refused_with_the_command(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    with pytest.raises(
        EngineRejectedError, match=r"this GPU is sm89; run `kdrt build .*--gpu sm89"
    ):
        load_engines(bundle, "tensorrt-rtx")


def test_a_damaged_engine_never_reaches_tensorrt(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kdrt_engines.tensorrt.run, "TensorRTEngine", None)  # must not be called
    for path in bundle.path.glob("engines/tensorrt-rtx/*/engine.plan"):
        data = bytearray(path.read_bytes())
        data[300] ^= 1
        path.write_bytes(data)
    with pytest.raises(EngineRejectedError, match="damaged: its SHA-256 is wrong"):
        load_engines(bundle, "tensorrt-rtx")
