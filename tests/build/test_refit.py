"""Refittable engines of a bundle: what is asked of the builder, what is refused where, which engine
is opened, and what is recorded of the check."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from kdrt.backends.engine_files import ENGINE_FILE, engine_folders, open_engine
from kdrt.backends.records import RECORD_FILE, EngineRecord, read_record
from kdrt.build.engines import Tools, build_engines
from kdrt.build.refit import check_built_engine
from kdrt.bundle import Bundle
from kdrt.errors import EngineError, EngineRejectedError, EngineUnavailableError
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from kdrt_engines.tensorrt.refit_result import RefitResult
from tests.support.engine_bundle import (
    RESULT,
    WEIGHTS,
    Builder,
    Checker,
    Listener,
    engine_bundle,
)
from tests.support.rtx_machine import install_tensorrt, load_engines_of, plug_in
from tests.support.trt_recorder import RecordedGpu


@pytest.fixture(autouse=True)
def _ada(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch, tmp_path / "installed")
    plug_in(monkeypatch, RecordedGpu(capability=89))


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return engine_bundle(tmp_path / "bundle")


def build(
    bundle: Bundle, builder: Builder, checker: Checker | None = None, **options: Any
) -> list[EngineRecord]:
    defaults: dict[str, Any] = {"refittable": True, "report": Listener()}
    tools = Tools(builder, checker or Checker())
    return build_engines(bundle, TENSORRT_RTX, (89,), tools=tools, **defaults | options)


def test_only_what_a_lora_can_change_is_refittable(bundle: Bundle, builder: Builder) -> None:
    report = Listener()
    records = {record.key.component: record for record in build(bundle, builder, report=report)}
    jobs = dict(zip(records, builder.jobs, strict=True))
    assert jobs["unet"].refittable == jobs["text_encoder"].refittable == WEIGHTS
    assert jobs["vae_decoder"].refittable == ()
    assert records["unet"].key.flags["REFIT"]
    assert records["unet"].refit == RESULT
    assert records["vae_decoder"].refit is None
    assert "unet: sm89, refittable" in report.stages
    assert "vae_decoder: sm89" in report.stages


def test_fixed_and_refittable_engines_stand_side_by_side(bundle: Bundle, builder: Builder) -> None:
    build(bundle, builder, refittable=False)
    jobs = len(builder.jobs)
    build(bundle, builder)
    build(bundle, builder)  # all there
    assert len(engine_folders(bundle, TENSORRT_RTX, "unet")) == 2
    assert len(engine_folders(bundle, TENSORRT_RTX, "vae_decoder")) == 1
    again = [job.onnx for job in builder.jobs[jobs:]]
    assert again == [job.onnx for job in builder.jobs[:jobs] if "vae" not in job.onnx]


def test_a_refittable_engine_is_preferred(bundle: Bundle, builder: Builder) -> None:
    loose = ["any", "static:64x64x1"]
    build(bundle, builder, refittable=False, profiles=loose, components=["unet"])
    assert not open_engine(bundle, TENSORRT_RTX, "unet", 89).record.key.refittable
    build(bundle, builder, components=["unet"])
    assert open_engine(bundle, TENSORRT_RTX, "unet", 89).record.key.refittable


def test_keys_and_records_of_fixed_engines_do_not_mention_refit(
    bundle: Bundle, builder: Builder
) -> None:
    """So a record from before there were refittable engines is still intact, nor of what later
    versions read from the builder's log."""
    (record,) = build(bundle, builder, refittable=False, components=["unet"])
    assert "REFIT" not in record.key.flags
    before = record.model_dump_json(
        exclude={"checksum": True, "refit": True, "built": {"multiplying"}}
    )
    assert record.checksum == hashlib.sha256(before.encode()).hexdigest()
    (folder,) = engine_folders(bundle, TENSORRT_RTX, "unet")
    text = (folder / RECORD_FILE).read_text()
    assert '  "refit": null,\n' in text
    assert ',\n    "multiplying": null\n' in text
    text = text.replace('  "refit": null,\n', "").replace(',\n    "multiplying": null', "")
    (folder / RECORD_FILE).write_text(text)
    assert read_record(bundle, folder) == record


def test_an_edited_result_is_noticed(bundle: Bundle, builder: Builder) -> None:
    build(bundle, builder, components=["unet"])
    (folder,) = engine_folders(bundle, TENSORRT_RTX, "unet")
    text = (folder / RECORD_FILE).read_text()
    (folder / RECORD_FILE).write_text(text.replace('"built": 0.001', '"built": 0.0001'))
    with pytest.raises(EngineRejectedError, match="was changed after the build"):
        read_record(bundle, folder)


def test_an_engine_that_fails_its_check_is_not_kept(bundle: Bundle, builder: Builder) -> None:
    wrong = Checker(error=EngineError("it is off"))
    with pytest.raises(EngineError, match="it is off"):
        build(bundle, builder, wrong, components=["unet"])
    assert len(builder.jobs) == 1
    assert [p.name for p in bundle.file("engines/tensorrt-rtx").iterdir()] == [".lock"]


def test_weights_that_the_builder_fixed_are_a_warning(bundle: Bundle, builder: Builder) -> None:
    report = Listener()
    some = Checker(RefitResult(1, 1, 1e-3, 2e-3, 0.0))
    build(bundle, builder, some, components=["unet"], report=report)
    assert report.warnings == [
        "TensorRT fixed 1 weights of unet that a LoRA can change; LoRAs that do will be refused"
    ]


def test_an_engine_without_refittable_weights_fails_with_the_way_out(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real check, of an engine that TensorRT built as if nobody had asked for weights to
    change; and of one that it cannot load."""
    (fixed,) = build(bundle, builder, refittable=False, components=["unet"])
    load_engines_of(monkeypatch, bundle, 89)
    path = bundle.file("engines/tensorrt-rtx") / fixed.key.folder() / ENGINE_FILE
    for content, reason in (
        (path.read_bytes(), "TensorRT built an engine of which no weight can change"),
        (b"damaged", "tensorrt_rtx cannot load the engine: the magic tag does not match"),
    ):
        path.write_bytes(content)
        with pytest.raises(
            EngineError,
            match=f"engine of unet is not kept: {reason}; build without --refittable, .* --lora",
        ):
            check_built_engine(bundle, fixed.key, path)


@pytest.mark.parametrize(
    ("capabilities", "options", "precision", "said"),
    [
        ((86, 89), {}, "fp16", "has to be the one of this machine, sm89; leave out --gpu"),
        ((89,), {"components": ["vae_decoder"]}, "fp16", "no LoRA changes vae_decoder"),
        ((89,), {}, "bf16", "has no bfloat16 on a CPU, and this bundle is bf16"),
    ],
)
def test_refusals_before_any_work(
    tmp_path: Path,
    builder: Builder,
    capabilities: tuple[int, ...],
    options: dict[str, Any],
    precision: str,
    said: str,
) -> None:
    bundle = engine_bundle(tmp_path / "other", precision=precision)
    with pytest.raises(EngineError, match=said):
        build_engines(
            bundle,
            TENSORRT_RTX,
            capabilities,
            refittable=True,
            report=Listener(),
            tools=Tools(builder, Checker()),
            **options,
        )
    assert not builder.jobs
    assert not bundle.file("engines").exists()


def test_without_a_gpu_nothing_is_tried(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(monkeypatch, None)
    with pytest.raises(
        EngineUnavailableError, match=r"no GPU .* --refittable` where .*kdrt export"
    ):
        build(bundle, builder)
    assert not builder.jobs


def test_the_command_of_a_refittable_engine_builds_one(bundle: Bundle, builder: Builder) -> None:
    build(bundle, builder, components=["unet"])
    with pytest.raises(
        EngineRejectedError, match=r"this GPU is sm86; run `.* --refittable --here "
    ):
        open_engine(bundle, TENSORRT_RTX, "unet", 86)
