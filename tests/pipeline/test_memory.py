"""The memory plan: sums of what is known, and words for what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from kdrt.build.engines import Tools, build_engines
from kdrt.common import memory
from kdrt.pipeline.memory import ComponentMemory, MemoryEstimate, estimate_memory
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from tests.support.engine_bundle import Builder, Listener, engine_bundle
from tests.support.rtx_machine import install_tensorrt

PARTS = (
    ComponentMemory("text_encoder", 100, 5),
    ComponentMemory("text_encoder_2", 300, None),
    ComponentMemory("unet", 1000, 50),
    ComponentMemory("vae_decoder", 60, 70),
)
PLAN = MemoryEstimate("tensorrt", "cuda", PARTS, graphs=9, free=2000, offloaded=False)


def test_activations_are_one_block_and_weights_add_up() -> None:
    assert PLAN.weights == 1460
    assert PLAN.activations == 70
    assert PLAN.needed == 1530
    assert PLAN.fits
    assert PLAN.advice() is None


def test_in_turn_the_largest_stage_counts() -> None:
    assert replace(PLAN, offloaded=True).weights == 1000


def test_what_does_not_fit_comes_with_advice() -> None:
    tight = replace(PLAN, free=1100)
    assert "low_vram=True" in (tight.advice() or "")
    assert replace(tight, offloaded=True).fits
    hopeless = replace(tight, offloaded=True, free=10)
    assert "low_vram" not in (hopeless.advice() or "")
    assert "half precision" in (hopeless.advice() or "")
    assert replace(PLAN, free=None).fits


def test_what_is_not_known_is_said() -> None:
    unknown = replace(
        PLAN, parts=(ComponentMemory("unet", 2_500_000_000, None),), graphs=0, free=None
    )
    assert unknown.line() == ("memory: weights 2.5 GB, activations unknown; free on cuda: unknown")
    assert unknown.table() == [("unet", "2.5 GB", "unknown"), ("at once", "2.5 GB", "unknown")]


def test_the_least_is_not_shown_as_the_whole() -> None:
    least = replace(PLAN, parts=(*PARTS[:-1], ComponentMemory("vae_decoder", 60, 70, True)))
    assert "activations at least 70 B;" in replace(least, graphs=0).line()
    assert [row[2] for row in least.table()] == ["5 B", "unknown", "50 B", *["at least 70 B"] * 2]
    assert least.needed == PLAN.needed


def test_a_plan_is_read_from_the_files(tmp_path: Path) -> None:
    bundle = engine_bundle(tmp_path)
    plan = estimate_memory(bundle, "onnxruntime")
    folder = tmp_path / "onnx" / "unet"
    unet = next(part for part in plan.parts if part.component == "unet")
    assert unet.weights == sum(file.stat().st_size for file in folder.iterdir())
    assert plan.activations is not None
    assert plan.at_least
    assert plan.graphs == 0
    assert plan.device == "cpu"
    assert plan.free


def test_built_engines_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    install_tensorrt(monkeypatch, tmp_path / "installed")
    bundle = engine_bundle(tmp_path)
    tools = Tools(build=Builder())
    build_engines(bundle, TENSORRT_RTX, (86,), report=Listener(), tools=tools)
    plan = estimate_memory(bundle, "tensorrt-rtx", cuda_graph="loop")
    assert plan.activations == 4096, "what the builder's double says"
    (record,) = tmp_path.glob("engines/tensorrt-rtx/unet-*/engine.plan")
    assert plan.parts[0] == ComponentMemory("unet", record.stat().st_size, 4096)
    assert plan.graphs > 0
    assert plan.free is None, "there is no such device here"
    assert not plan.at_least
    assert estimate_memory(bundle, "tensorrt-rtx", cuda_graph="off").graphs == 0


@pytest.mark.parametrize(
    ("texts", "left"), [(["5000"], 4000), (["max"], 9000), ([], 9000), (["max", "20000"], 9000)]
)
def test_a_container_may_have_less_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], left: int
) -> None:
    files = tuple(tmp_path / name for name in ("v2", "v1"))
    for file, text in zip(files, texts, strict=False):
        file.write_text(f"{text}\n")
    monkeypatch.setattr(memory, "_LIMITS", files)
    monkeypatch.setattr(memory, "resident_memory", lambda: 1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=9000))
    assert memory.free_memory(torch.device("cpu")) == left
