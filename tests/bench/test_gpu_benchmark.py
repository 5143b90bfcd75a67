"""The benchmark of GPUs where there is none: it says so, and its table is a table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import typer

PATH = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_nothing_is_measured(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(typer.Exit):
        benchmark.main()
    assert "nothing was measured" in capsys.readouterr().err


def test_every_row_has_the_columns_of_the_heading(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    bundle = SimpleNamespace(manifest=SimpleNamespace(name="demo", precision="fp16"))
    rows = [
        benchmark.Row("torch", "2.0", "step", 1.0, 2.0, 3.0, 44.0, 10**9, 5, 6, 7),
        benchmark.Row("tensorrt", "10.0", "off", failed="the bundle has no engine"),
    ]
    heading, _, *lines = benchmark.markdown(rows, bundle, 20).splitlines()
    assert [line.count("|") for line in lines] == [heading.count("|")] * 2
    assert "5 · 6 · 7" in lines[0]
    assert "did not run: the bundle has no engine" in lines[1]
