"""``kdrt build``, and building after ``kdrt export``: options, results, refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kdrt.build import engines
from kdrt.build.engines import Tools
from kdrt.bundle import Bundle
from kdrt_engines.tensorrt.refit_result import RefitResult
from tests.support.command_line import Cli
from tests.support.engine_bundle import VERSION, WEIGHTS, Builder, Checker, engine_bundle
from tests.support.rtx_machine import install_tensorrt, plug_in
from tests.support.trt_recorder import RecordedGpu


@pytest.fixture(autouse=True)
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    install_tensorrt(monkeypatch, tmp_path / "installed")
    double = Builder()
    monkeypatch.setattr(engines, "TOOLS", Tools(build=double))
    return double


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return engine_bundle(tmp_path / "bundle")


def test_evidence_is_printed_and_kept(cli: Cli, bundle: Bundle) -> None:
    outcome = cli("build", bundle.path, "--gpu", "sm86,sm89", "--component", "unet")
    assert outcome.code == 0
    said = "2/2 attentions fused, 7 kernels, scratch 0.0 MB"
    assert "✓ unet: sm86, sm89" in outcome.err
    assert said in outcome.err
    assert said in outcome.out
    assert "TensorRT-RTX engines" in outcome.out
    shown = cli("inspect", bundle.path)
    assert f"TensorRT-RTX {VERSION} engines" in shown.out
    assert said in shown.out
    assert "any (B=1..8 L=12..36" in shown.out


def test_inspect_says_why_an_engine_is_not_used(cli: Cli, bundle: Bundle) -> None:
    cli("build", bundle.path, "--gpu", "sm89", "--component", "unet")
    (record,) = bundle.path.glob("engines/tensorrt-rtx/unet-*/record.json")
    record.write_text(record.read_text().replace("4096", "1"))
    outcome = cli("inspect", bundle.path)
    assert outcome.code == 0
    assert "not used" in outcome.out
    assert "was changed after the build" in " ".join(outcome.out.split())


def test_options_reach_the_builder(cli: Cli, bundle: Bundle, builder: Builder) -> None:
    command = (
        *("build", bundle.path, "--engine", "tensorrt-rtx", "--gpu", "sm89", "--gpu", "12.0"),
        *("--profile", "square", "--profile", "static:64x48x1", "--component", "vae_decoder"),
    )
    assert cli(*command).code == 0
    (job,) = builder.jobs
    assert job.compute_capabilities == (89, 120)
    assert [shapes["latents"][2] for shapes in job.profiles] == [(1, 4, 10, 8), (1, 4, 8, 6)]
    assert cli(*command, "--force").code == 0
    assert len(builder.jobs) == 2


def test_a_unet_that_is_not_fused_is_a_loud_warning(
    cli: Cli, bundle: Bundle, builder: Builder
) -> None:
    builder.fused = 0
    outcome = cli("build", bundle.path, "--gpu", "sm89")
    assert outcome.code == 0
    assert outcome.err.count("warning: only 0 of 2 attentions of the UNet") == 1


def test_a_strict_build_keeps_no_unet_that_is_not_fused(
    cli: Cli, bundle: Bundle, builder: Builder
) -> None:
    command = ("build", bundle.path, "--gpu", "sm89", "--component", "unet", "--strict")
    builder.fused = 1
    outcome = cli(*command)
    assert outcome.code == 2
    assert "error: only 1 of 2 attentions of the UNet became fused" in outcome.err
    assert not [*bundle.path.glob("engines/*/[!.]*")]
    builder.fused = None
    assert "did not say whether" in cli(*command).err
    builder.fused = 2
    assert cli(*command).code == 0
    assert [*bundle.path.glob("engines/*/unet-*")]


def test_a_strict_build_does_not_take_what_was_built_before(
    cli: Cli, bundle: Bundle, builder: Builder
) -> None:
    builder.fused = 0
    command = ("build", bundle.path, "--gpu", "sm89", "--component", "unet")
    assert cli(*command).code == 0
    assert cli(*command, "--strict").code == 2
    assert [*bundle.path.glob("engines/*/unet-*")], "what was there stays"
    assert len(builder.jobs) == 1


def test_onnx_runtime_takes_no_options_of_tensorrt(cli: Cli, bundle: Bundle) -> None:
    command = ("build", bundle.path, "--engine", "onnxruntime")
    assert "--gpu is for TensorRT" in cli(*command, "--gpu", "sm89").refusal()
    assert "--here, --strict is for TensorRT" in cli(*command, "--strict", "--here").refusal()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "onnx"], "choose tensorrt, tensorrt-rtx, onnxruntime, openvino or inductor"),
        (["--gpu", "ada"], "write sm89 or 8.9"),
        (["--gpu", "sm89", "--profile", "round"], "choose square, portrait"),
        (["--gpu", "sm89", "--component", "net"], "it has unet, vae_decoder"),
        (["--engine", "tensorrt-rtx", "--gpu", "sm90"], "--engine tensorrt --here`"),
        (["--engine", "tensorrt", "--gpu", "sm89"], "--engine tensorrt-rtx --gpu sm89`"),
        (["--here"], "no GPU that CUDA sees"),
        (["--refittable"], "bake LoRAs in with `kdrt export"),
        (["--refittable", "--here"], "--refittable` where the GPU is"),
        (["--refittable", "--gpu", "sm89"], "an engine whose weights can change"),
        (["--refittable", "--component", "vae_decoder"], "no LoRA changes vae_decoder"),
    ],
)
def test_refusals(
    cli: Cli, bundle: Bundle, builder: Builder, options: list[str], said: str
) -> None:
    assert said in cli("build", bundle.path, *options).refusal()
    assert not builder.jobs


def test_refittable_engines_are_shown_as_such(
    cli: Cli, bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    plug_in(monkeypatch, RecordedGpu(capability=89))
    result = RefitResult(114, 0, 1.2e-3, 1.3e-3, 0.0)
    monkeypatch.setattr(engines, "TOOLS", Tools(builder, Checker(result)))
    outcome = cli("build", bundle.path, "--refittable", "--component", "unet")
    assert outcome.code == 0
    assert "✓ unet: sm89, refittable" in outcome.err
    (job,) = builder.jobs
    assert (job.compute_capabilities, job.refittable) == ((89,), WEIGHTS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for shown in (outcome, cli("inspect", bundle.path)):
        words = " ".join(shown.out.split())
        assert "refittable: 114 of 114 weights can change; relative error 1.2e-03 as built" in words


def test_a_flavour_that_is_not_installed(
    cli: Cli, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("importlib.metadata.version", _nothing_installed)
    assert "pip install 'kdrt[tensorrt]'" in cli("build", bundle.path, "--here").refusal()


def _nothing_installed(name: str) -> str:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


@pytest.fixture
def exported(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Exports end in ``bundle``; holds what the exporter was given."""
    given: dict[str, Any] = {}
    stage = type(sys)("kdrt_export.stage")

    def export(source: str, output: Path | None, **options: Any) -> Path:
        given.update(options)
        return bundle.path

    stage.export = export  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kdrt_export.stage", stage)
    return given


def test_an_export_can_build(cli: Cli, exported: dict[str, Any], builder: Builder) -> None:
    options = ("--gpu", "sm89", "--profile", "square")
    outcome = cli("export", "demo", "--target", "tensorrt-rtx", "--target", "torch", *options)
    assert outcome.code == 0
    assert exported["targets"] == ("torch",)
    assert exported["precision"] == "fp16"
    assert {job.compute_capabilities for job in builder.jobs} == {(89,)}
    assert "2/2 attentions fused" in outcome.out


def test_a_precision_that_was_chosen_stays(cli: Cli, exported: dict[str, Any]) -> None:
    options = ("--target", "tensorrt-rtx", "--gpu", "sm89", "--precision", "bf16")
    assert cli("export", "demo", *options).code == 0
    assert exported["precision"] == "bf16"
    assert exported["targets"] == ("onnxruntime",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "tensorrt-rtx", "--gpu", "sm90"], "kdrt build demo --engine tensorrt --here"),
        (["--target", "tensorrt"], "no GPU that CUDA sees"),
        (["--gpu", "sm89"], "add --target tensorrt-rtx"),
    ],
)
def test_what_cannot_be_built_is_said_before_the_export(
    cli: Cli, exported: dict[str, Any], options: list[str], said: str
) -> None:
    assert said in cli("export", "demo", *options).refusal()
    assert not exported
