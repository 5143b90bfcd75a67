"""Versions of what is installed, on machines with the one ONNX Runtime or the other."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from kdrt_bench.peers import versions_of
from kdrt_engines import registry
from kdrt_engines.installed import installed_version
from kdrt_export import stage


@pytest.fixture(params=["onnxruntime", "onnxruntime-gpu"])
def only(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The only distribution of ONNX Runtime, version 9.9, for whoever asks importlib."""
    name: str = request.param
    folder = tmp_path / f"{name.replace('-', '_')}-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    real = importlib.metadata.distribution

    def distribution(asked: str) -> importlib.metadata.Distribution:
        if not asked.startswith("onnxruntime"):
            return real(asked)
        if asked != name:
            raise importlib.metadata.PackageNotFoundError(asked)
        return importlib.metadata.Distribution.at(folder)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    return name


def test_either_onnx_runtime_serves(only: str) -> None:
    """After the README's procedure for GPUs ``onnxruntime`` is gone."""
    assert installed_version("onnxruntime") == "9.9"
    assert (installed_version("onnxruntime-gpu") == "9.9") == only.endswith("gpu")
    assert stage._tool_versions()["onnxruntime"] == "9.9"
    assert versions_of(("onnxruntime", "no-such-package")) == {"onnxruntime": "9.9"}
    (cpu,) = (each for each in registry.find_engines() if each.name == "onnxruntime")
    assert (cpu.usable, cpu.version) == (True, "9.9")


def test_what_is_not_installed_has_no_version() -> None:
    assert installed_version("no-such-package", "neither") is None
    assert installed_version("no-such-package", "torch") == importlib.metadata.version("torch")
