"""Engines of a quantised bundle: which GPUs have its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdrt.build import engines
from kdrt.build.engines import Tools, build_engines
from kdrt.build.quantized import FIRST_GPU, check_gpus, first_gpu
from kdrt.build.refit import check_refittable
from kdrt.build.targets import resolve_targets
from kdrt.bundle import Bundle, QuantizationFacts, QuantizationLoss, StepLoss
from kdrt.errors import EngineError
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from tests.support.engine_bundle import Builder, Listener, engine_bundle
from tests.support.rtx_machine import install_tensorrt


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    install_tensorrt(monkeypatch, tmp_path / "installed")
    double = Builder()
    monkeypatch.setattr(engines, "TOOLS", Tools(build=double))
    return double


def quantized(folder: Path, format: str) -> Bundle:
    """A bundle whose UNet is said to be quantised."""
    facts: dict[str, Any] = {
        "format": format,
        "made_from": "original",
        "network": "0" * 64,
        "components": ("unet",),
        "layers": 3,
        "max_error": 0.03,
        "prompts": 1,
        "evaluations": 7,
        "loss": QuantizationLoss(
            steps=(StepLoss(sigma=1.0, error=0.01),),
            images=1,
            height=64,
            width=64,
            psnr=30.0,
            ssim=0.9,
        ),
    }
    return engine_bundle(folder, quantization=QuantizationFacts(**facts))


@pytest.mark.parametrize(("format", "gpu"), [("fp8", 86), ("fp8", 75), ("int4-weights", 75)])
def test_a_gpu_without_the_format_is_refused_before_any_work(
    tmp_path: Path, builder: Builder, format: str, gpu: int
) -> None:
    bundle = quantized(tmp_path / "bundle", format)
    with pytest.raises(
        EngineError,
        match=rf"is {format}, .* from sm\d+ on, not for sm{gpu}: .*"
        r"`kdrt quantize original --format int8`",
    ):
        build_engines(bundle, TENSORRT_RTX, (gpu, 120), report=Listener())
    assert builder.jobs == []


@pytest.mark.parametrize("format", ["fp8", "int4-weights"])
def test_the_first_gpu_with_the_format_is_built_for(
    tmp_path: Path, builder: Builder, format: str
) -> None:
    bundle = quantized(tmp_path / "bundle", format)
    first = first_gpu(bundle.manifest)
    build_engines(bundle, TENSORRT_RTX, (first,), components=["unet"], report=Listener())
    assert [job.compute_capabilities for job in builder.jobs] == [(first,)]


def test_every_gpu_has_int8(tmp_path: Path) -> None:
    check_gpus(quantized(tmp_path, "int8"), ["unet"], (75, 86))


def test_what_is_not_quantised_is_built_for_any_gpu(tmp_path: Path, builder: Builder) -> None:
    bundle = quantized(tmp_path / "bundle", "fp8")
    build_engines(bundle, TENSORRT_RTX, (86,), components=["vae_decoder"], report=Listener())
    assert len(builder.jobs) == 1
    assert first_gpu(engine_bundle(tmp_path / "float").manifest) == 75


def test_the_usual_gpus_are_those_with_the_format() -> None:
    assert resolve_targets("demo", None, (), here=False, first=FIRST_GPU["fp8"])[1] == (89, 120)


def test_refittable_engines_are_refused_with_the_way_to_bake(tmp_path: Path) -> None:
    bundle = quantized(tmp_path / "bundle", "int8")
    with pytest.raises(EngineError, match=r"in int8: .*--lora FILE` and `kdrt quantize .* int8`"):
        check_refittable(bundle)
