"""Where models come from, and when they are exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdrt.compat import StableDiffusionKDiffusionPipeline, sources
from kdrt.compat.sources import Wanted, find_bundle
from kdrt.errors import BundleError, InvalidRequest

ROOT = Path(__file__).resolve().parents[2]


def test_importing_needs_neither_diffusers_nor_the_exporter() -> None:
    paths = [str(ROOT / part) for part in (".", "export", "engines")]
    code = f"import sys; sys.path[:0] = {paths}; import kdrt.compat; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(out.stdout.split())
    assert "kdrt.compat" in loaded
    assert not loaded & {"diffusers", "transformers", "kdrt_export", "onnx", "k_diffusion"}


@pytest.fixture
def exports(sd: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every export from now on; each only copies a bundle."""
    made: list[str] = []

    def export(origin: str, target: Path, *_: object) -> None:
        made.append(origin)
        shutil.copytree(sd.bundle.path, target)

    monkeypatch.setattr(sources, "_export", export)
    return made


def test_a_folder_is_exported_once_for_each_content(
    sd: Any, exports: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd.checkpoint, folder)
    first = find_bundle(folder, Wanted()).path
    assert find_bundle(folder, Wanted()).path == first
    shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    assert find_bundle(tmp_path / "elsewhere" / "model", Wanted()).path == first
    assert len(exports) == 1
    scheduler = folder / "scheduler" / "scheduler_config.json"
    content = json.loads(scheduler.read_text()) | {"timestep_spacing": "leading"}
    scheduler.write_text(json.dumps(content))
    assert find_bundle(folder, Wanted()).path != first
    assert find_bundle(folder, Wanted(engine="torch")).path != first
    assert len(exports) == 3


def test_a_damaged_export_is_made_again(sd: Any, exports: list[str]) -> None:
    bundle = find_bundle(sd.checkpoint, Wanted())
    (bundle.path / "manifest.json").write_text("{")
    shutil.rmtree(bundle.path)
    find_bundle(sd.checkpoint, Wanted())
    assert len(exports) == 2


def test_a_bundle_is_opened_as_it_is(sd: Any, exports: list[str]) -> None:
    pipe = StableDiffusionKDiffusionPipeline.from_pretrained(sd.bundle.path, safety_checker=None)
    assert pipe.dtype == torch.float32
    assert pipe.device.type == "cpu"
    assert pipe.to("cpu", torch.float32) is pipe
    assert pipe.vae_scale_factor == 2
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.unet.config.in_channels == 4
    assert not exports
    with pytest.raises(InvalidRequest, match="fp32"):
        find_bundle(sd.bundle.path, Wanted(dtype=torch.float16))
    with pytest.raises(InvalidRequest, match="exported in"):
        pipe.to(torch.float16)


def test_what_is_nothing_is_said_so(home: Path) -> None:
    with pytest.raises(BundleError, match="no bundle, no folder and no hub id"):
        find_bundle("nonsense", Wanted())
    with pytest.raises(InvalidRequest, match="no file"):
        StableDiffusionKDiffusionPipeline.from_single_file("missing.safetensors")
    with pytest.raises(InvalidRequest, match="vae cannot be given"):
        StableDiffusionKDiffusionPipeline.from_pretrained("demo", vae=object())
