"""The whole export: what a bundle holds, and that a failed one leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import kdrt
from kdrt.bundle import Bundle
from kdrt.errors import InvalidRequestError, KdrtError, OutputError
from kdrt.sampling import NoiseSchedule, sigmas_for
from kdrt_export import stage
from kdrt_export.errors import VerificationError
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts
from kdrt_export.sources import open_source
from kdrt_export.verify import BOUNDS, relative_error
from tests.support.single_file import checkpoint


class Recorder(Silent):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def start(self, stage: str) -> None:
        self.stages.append(stage)

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_the_demo_bundle(demo_bundle: Path) -> None:
    manifest = Bundle.open(demo_bundle).manifest
    assert (manifest.family, manifest.name, manifest.source) == ("sdxl", "demo", "demo")
    assert set(manifest.components) == {
        "text_encoder",
        "text_encoder_2",
        "unet",
        "vae_decoder",
        "vae_encoder",
    }
    for name, component in manifest.components.items():
        graphs = ["standard", "fused"]
        graphs += ["cpu"] if name.startswith(("unet", "vae")) else []
        graphs += ["plain"] if name == "unet" else []
        assert [v.graph for v in component.verification] == [g for g in graphs for _ in range(2)]
        assert all(v.relative_error < 1e-5 for v in component.verification)
        assert all(v.engine == "onnxruntime" for v in component.verification)
        assert component.parameters > 10_000
    assert manifest.baked.fused_qkv
    assert manifest.baked.freeu
    assert manifest.latents.default_height == manifest.latents.default_width == 64
    assert manifest.zeros_for_empty_negative
    assert "model.onnx" in " ".join(manifest.files)
    assert set(manifest.tools) >= {"torch", "diffusers", "onnx", "onnxruntime"}


def test_a_stable_diffusion_folder(sd_folder: Path, tmp_path: Path) -> None:
    report = Recorder()
    path = stage.export(str(sd_folder), tmp_path / "sd", name="tiny", report=report)
    manifest = Bundle.open(path).manifest
    assert (manifest.family, manifest.default_guidance_scale) == ("sd", 7.5)
    (encoder,) = manifest.text_encoders
    assert (encoder.layer, encoder.normalized, encoder.max_length) == (-1, True, 20)
    assert report.stages[0].startswith("open ")
    unet, manifest_written = (report.stages.index(s) for s in ("unet: verify", "manifest"))
    assert unet < manifest_written
    assert report.stages[manifest_written + 1 :] == [
        f"{name}: optimise for this CPU" for name in manifest.components
    ]
    assert [s for s in report.stages if s.startswith("unet")] == [
        "unet: load",
        "unet: eager reference",
        "unet: trace",
        "unet: verify",
        "unet: optimise for this CPU",
    ]
    image = kdrt.load(path)("a red circle", steps=2, seed=1, height=32, width=48).images[0]
    assert image.size == (48, 32)


def test_a_single_file_exports_to_the_same_networks(
    sd_folder: Path,
    tmp_path: Path,
) -> None:
    source = open_source(str(sd_folder))
    path = tmp_path / "mine.safetensors"
    save_file(checkpoint(source.unet(), source.vae(), source.text_encoder(0)), path)
    folder = Bundle.open(stage.export(str(sd_folder), tmp_path / "folder")).manifest
    single = Bundle.open(stage.export(str(path), tmp_path / "single", config=sd_folder)).manifest
    assert single.source == "mine.safetensors"
    networks = {name for name in folder.files if name.startswith("onnx/")}
    # Two graphs and the weights, one more for CPUs of all with images; of the UNet also the one
    # without FreeU, and the invariants.
    assert len(networks) == 4 * 3 + 3 + 2
    assert {name: single.files[name] for name in networks} == {
        name: folder.files[name] for name in networks
    }


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precisions(sd_folder: Path, tmp_path: Path, precision: str) -> None:
    path = stage.export(str(sd_folder), tmp_path / "half", precision=precision)
    manifest = Bundle.open(path).manifest
    unet = manifest.components["unet"]
    dtypes = {tensor.name: tensor.dtype for tensor in unet.inputs}
    assert dtypes["timestep"] == dtypes["freeu"] == "float32"
    assert dtypes["sample"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]
    engine = {"fp16": "onnxruntime", "bf16": "torch"}[precision]
    for name, component in manifest.components.items():
        # This VAE says that it overflows in float16, as SDXL's does: it stays in float32.
        upcast = precision == "fp16" and name.startswith("vae")
        low, high = (0.0, BOUNDS["fp32"]) if upcast else (1e-6, BOUNDS[precision])
        assert (component.inputs[0].dtype == "float32") == upcast
        for figure in component.verification:
            assert low < figure.relative_error < high
            assert figure.engine == engine


def test_scheduler_facts_follow_what_the_file_says() -> None:
    """The grids of section 2.2 of the removed pipelines' behaviour: what a file leaves out is
    the LMS scheduler's default, what it says is honoured."""
    table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    grids = {
        (): [14.6146, 4.0861, 1.6156, 0.6952, 0.0292, 0],
        (("timestep_spacing", "leading"), ("steps_offset", 1)): [
            5.1344,
            2.2929,
            1.1682,
            0.5741,
            0.0413,
            0,
        ],
        (("timestep_spacing", "trailing"),): [14.6146, 5.0878, 2.2765, 1.1606, 0.5693, 0],
    }
    for extra, expected in grids.items():
        facts = scheduler_facts(table | dict(extra), Silent())
        schedule = NoiseSchedule.from_betas(
            facts.beta_start, facts.beta_end, facts.beta_schedule, facts.num_train_timesteps
        )
        sigmas = sigmas_for(
            "scheduler",
            5,
            schedule,
            timestep_spacing=facts.timestep_spacing,
            steps_offset=facts.steps_offset,
        )
        assert sigmas == pytest.approx(expected, abs=2e-4)


def test_zero_terminal_snr_is_recorded() -> None:
    report = Recorder()
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert scheduler_facts(config, report).rescale_betas_zero_snr
    assert "rescale_betas_zero_snr" in report.notes[0]
    assert not scheduler_facts({}, Silent()).rescale_betas_zero_snr


def test_zero_terminal_snr_of_a_model_that_predicts_noise_is_ignored_and_said() -> None:
    report = Recorder()
    assert not scheduler_facts({"rescale_betas_zero_snr": True}, report).rescale_betas_zero_snr
    (note,) = report.notes
    assert "is ignored" in note
    assert "v_prediction" in note


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int4"}, "no precision"),
        ({"targets": ["openvino"]}, "no target"),
        ({"prediction_type": "flow"}, "'flow' is no prediction type"),
        ({"loras": ["style.safetensors"]}, "a file and its scale, not 'style"),
    ],
)
def test_wrong_choices(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(KdrtError, match=words):
        stage.export("demo", tmp_path / "demo", **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_old_bundle(
    sd_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = stage.export(str(sd_folder), tmp_path / "bundle")
    before = {p: p.read_bytes() for p in sorted(path.rglob("*.json"))}
    monkeypatch.setitem(BOUNDS, "fp32", 0.0)
    with pytest.raises(VerificationError, match="nothing was written"):
        stage.export(str(sd_folder), path)
    assert {p: p.read_bytes() for p in sorted(path.rglob("*.json"))} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_an_export_can_be_repeated(sd_folder: Path, tmp_path: Path) -> None:
    first = Bundle.open(stage.export(str(sd_folder), tmp_path / "bundle")).manifest
    again = Bundle.open(stage.export(str(sd_folder), tmp_path / "bundle")).manifest
    assert first.files == again.files


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.txt").write_text("keep me")
    with pytest.raises(OutputError, match="is not a bundle; choose another place with -o"):
        stage.export("demo", tmp_path / "photos")
    assert (tmp_path / "photos" / "one.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": ""}, "a bundle cannot be called ''"),
        ({"name": ".."}, "a bundle cannot be called '..'"),
        ({"name": "a/../b"}, "a bundle cannot be called"),
        ({"name": "x\n"}, "choose one with --name"),
        ({"output": Path("/proc/kdrt/bundle")}, "cannot write /proc/kdrt/bundle"),
        ({"output": Path("/dev/null")}, "it is a file, not a folder"),
        ({"output": Path("/proc")}, "choose another place with -o"),
    ],
)
@pytest.mark.usefixtures("home")
def test_where_a_bundle_cannot_be_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(stage, "open_source", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises((InvalidRequestError, OutputError), match=words):
        stage.export("demo", **options)


def test_a_home_that_cannot_be_written_is_said_before_the_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stage, "open_source", lambda *_, **__: pytest.fail("the work has begun"))
    monkeypatch.setenv("KDRT_HOME", "/proc/kdrt")
    with pytest.raises(OutputError, match="set KDRT_HOME to a folder of your own"):
        stage.export("demo", tmp_path / "bundle")


@pytest.mark.slow
def test_torch_programs_run_without_diffusers(tmp_path: Path) -> None:
    """About a minute: torch.export walks every operator."""
    path = stage.export("demo", tmp_path / "demo", targets=["onnxruntime", "torch"])
    script = (
        "import json, sys, kdrt\n"
        f"latents = [kdrt.load({str(path)!r}, engine=e)('a blue star', steps=4, seed=3,\n"
        "    output_type='latent').images for e in ('torch', 'onnxruntime')]\n"
        "error = float((latents[0] - latents[1]).norm() / latents[0].norm())\n"
        "print(json.dumps([error, 'diffusers' in sys.modules]))\n"
    )
    paths = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    error, imported = json.loads(run.stdout)
    assert error < 5e-5
    assert not imported


def test_relative_error_is_relative() -> None:
    reference = torch.tensor([3.0, 4.0])
    assert relative_error(reference + torch.tensor([0.0, 0.5]), reference) == pytest.approx(0.1)


@pytest.mark.parametrize("part", ["unet", "vae", "preview_decoder", "ip_adapter"])
def test_what_replaces_a_part_is_found_before_the_model_is_downloaded(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("kdrt_export.stage.open_source", never)
    replaced: dict[str, Any] = {part: str(tmp_path / "missing.safetensors")}
    with pytest.raises(KdrtError, match=r"missing\.safetensors"):
        stage.export("sdxl", tmp_path / "out", **replaced)
