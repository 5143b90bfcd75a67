"""The benchmark of GPUs where there is none: it says so, and its table is a table."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import typer

from kdrt_bench.in_flight import InFlightRows, Latencies, Lone, Stream, Together

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


def test_in_flight_rows_have_the_columns_of_the_heading(benchmark: ModuleType) -> None:
    rows = InFlightRows(
        Lone(102.0, 100.0, 1.02),
        (Together(2, 4, 12.5, 30.0, 45.0, 3.0, 1.0, 0.0),),
        Stream(24, Latencies(100.0, 300.0), Latencies(200.0, 900.0)),
    )
    results = [
        benchmark.InFlight("torch", rows),
        benchmark.InFlight("tensorrt", failed="the bundle has no engine"),
    ]
    text = benchmark.markdown_in_flight(results)
    heading, _, *lines = text.splitlines()[:4]
    assert [line.count("|") for line in lines] == [heading.count("|")] * 2
    assert "3.0 · 1.0 · 0.0" in lines[0]
    assert "did not run: the bundle has no engine" in lines[1]
    assert "ratio 1.020" in text
    assert "100 and 300 ms; one at a time 200 and 900 ms" in text
