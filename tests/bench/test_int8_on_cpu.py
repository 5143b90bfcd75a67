"""`benchmarks/int8_on_cpu.py`, on the demo model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("openvino")

import int8_on_cpu


def test_all_rows_are_measured(demo_bundle: Path, tmp_path: Path) -> None:
    int8_on_cpu.main(str(demo_bundle), side=64, rounds=1, output=tmp_path)
    result = json.loads((tmp_path / "int8_on_cpu.json").read_text())
    assert [(row["engine"], row["format"]) for row in result["rows"]] == [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "int8"),
    ]
    assert result["rows"][0]["ratio"] == 1
    assert "| openvino | int8 |" in (tmp_path / "int8_on_cpu.md").read_text()
