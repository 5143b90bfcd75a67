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
from safetensors.torch import save_file

from kdrt.compat import StableDiffusionKDiffusionPipeline, sources
from kdrt.compat.sources import Wanted, find_bundle
from kdrt.errors import BundleError, InvalidRequestError, KdrtError
from kdrt_export.sources import open_source
from tests.support.checkpoints import SCHEDULER, save_checkpoint
from tests.support.single_file import checkpoint

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
    with pytest.raises(InvalidRequestError, match="fp32"):
        find_bundle(sd.bundle.path, Wanted(dtype=torch.float16))
    with pytest.raises(InvalidRequestError, match="exported in"):
        pipe.to(torch.float16)


def test_what_is_nothing_is_said_so(home: Path) -> None:
    with pytest.raises(BundleError, match="no bundle, no folder and no hub id"):
        find_bundle("nonsense", Wanted())
    with pytest.raises(InvalidRequestError, match="no file"):
        StableDiffusionKDiffusionPipeline.from_single_file("missing.safetensors")
    with pytest.raises(InvalidRequestError, match="vae cannot be given"):
        StableDiffusionKDiffusionPipeline.from_pretrained("demo", vae=object())


def test_a_hub_id_is_exported_once_for_each_commit(
    sd: Any, exports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    commit = "0123456789abcdef"

    def snapshot(repo: str, **options: Any) -> str:
        asked.append(options | {"repo": repo})
        shutil.copytree(sd.checkpoint, tmp_path / commit, dirs_exist_ok=True)
        return str(tmp_path / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    hub: dict[str, Any] = {"revision": "v2", "local_files_only": True, "token": "t"}
    for _ in range(2):
        pipe = StableDiffusionKDiffusionPipeline.from_pretrained("someone/model", **hub)
    assert exports == [str(tmp_path / commit)]  # downloaded with options the exporter lacks
    assert asked[0] | hub | {"repo": "someone/model"} == asked[0]
    commit = "fedcba9876543210"
    again = StableDiffusionKDiffusionPipeline.from_pretrained("someone/model")
    assert exports[1:] == ["someone/model"]
    StableDiffusionKDiffusionPipeline.from_pretrained("someone/model@v3")
    assert exports[2:] == []  # of the same commit
    assert asked[-1]["revision"] == "v3"
    assert again.pipeline.bundle.path != pipe.pipeline.bundle.path


def test_a_checkpoint_file_holds_the_same_model(sd: Any, home: Path, tmp_path: Path) -> None:
    source = open_source(str(sd.checkpoint))
    state = checkpoint(source.unet(), source.vae(), source.text_encoder(0))
    save_file(state, tmp_path / "mine.safetensors")
    torch.save({"state_dict": state}, tmp_path / "mine.ckpt")
    with pytest.raises(KdrtError, match="pickle"):
        StableDiffusionKDiffusionPipeline.from_single_file(
            tmp_path / "mine.ckpt", config=sd.checkpoint
        )
    expected = latents_of(sd.pipe(exact=False, onnx=True))
    allowed: dict[str, dict[str, Any]] = {
        "mine.safetensors": {},
        "mine.ckpt": {"use_safetensors": False},
    }
    for name, options in allowed.items():
        pipe = StableDiffusionKDiffusionPipeline.from_single_file(
            tmp_path / name, config=sd.checkpoint, engine="onnxruntime", threads=1, **options
        )
        torch.testing.assert_close(latents_of(pipe), expected, rtol=1e-4, atol=1e-5)


def test_a_noise_model_that_asks_for_zero_snr_loads_as_it_did(home: Path, tmp_path: Path) -> None:
    asking = SCHEDULER | {"rescale_betas_zero_snr": True}
    folders = [
        save_checkpoint(tmp_path / str(index), scheduler=scheduler)
        for index, scheduler in enumerate((SCHEDULER, asking))
    ]
    plain, same = (StableDiffusionKDiffusionPipeline.from_pretrained(each) for each in folders)
    assert not same.pipeline.bundle.manifest.scheduler.rescale_betas_zero_snr
    assert torch.equal(latents_of(plain), latents_of(same))


def latents_of(pipe: Any) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    images: torch.Tensor = pipe(
        "a red circle",
        num_inference_steps=2,
        height=24,
        width=16,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
    ).images
    return images
