"""`benchmarks/int8_on_cpu.py`, on the demo model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("openvino")

PATH = Path(__file__).parents[2] / "benchmarks" / "int8_on_cpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("int8_on_cpu", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "int8_on_cpu", module)
    spec.loader.exec_module(module)
    return module


def test_all_rows_are_measured(script: ModuleType, demo_bundle: Path, tmp_path: Path) -> None:
    script.main(str(demo_bundle), side=64, rounds=1, output=tmp_path)
    result = json.loads((tmp_path / "int8_on_cpu.json").read_text())
    assert [(row["engine"], row["format"]) for row in result["rows"]] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
    ]
    assert result["rows"][0]["ratio"] == 1
    assert "| openvino | int8 |" in (tmp_path / "int8_on_cpu.md").read_text()
