"""Refittable engines of a bundle: what is asked of the builder, what is refused where, which engine
is loaded, and how LoRAs come back when a change fails."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import kdrt_engines.tensorrt.gate
import kdrt_engines.tensorrt.run
from kdrt.backends.files import PLAN, RECORD, engine_folders, open_engine, read_record
from kdrt.backends.loading import load_engines
from kdrt.backends.refit_gate import SWITCH, refit_gate
from kdrt.build import engines, refit
from kdrt.build.engines import build_engines
from kdrt.build.refit import prove_plan
from kdrt.bundle import Bundle
from kdrt.errors import (
    EngineError,
    EngineRejectedError,
    EngineUnavailableError,
    InvalidRequestError,
)
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX, Flavour
from kdrt_engines.tensorrt.gate import RefitGate
from kdrt_engines.tensorrt.proof import RefitProof
from tests.support.engine_bundle import VERSION, Builder, Listener, engine_bundle

PROOF = RefitProof(2, 0, 1e-3, 2e-3, 0.0)
WEIGHTS = ("a.weight", "b.weight")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    """Builds, finds weights and proves engines on a machine with an Ada GPU."""
    double = Builder()
    monkeypatch.setattr(Flavour, "version", lambda _: VERSION)
    monkeypatch.setattr(engines, "build_plan", double)
    monkeypatch.setattr(engines, "changeable_weights", lambda _bundle, _component: WEIGHTS)
    monkeypatch.setattr(engines, "prove_plan", lambda _bundle, _key, _plan: PROOF)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    return double


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return engine_bundle(tmp_path / "bundle")


def build(bundle: Bundle, **options: Any) -> list[Any]:
    options = {"refittable": True, "report": Listener()} | options
    return build_engines(bundle, TENSORRT_RTX, (89,), **options)


def test_only_what_a_lora_knows_is_left_open(bundle: Bundle, builder: Builder) -> None:
    report = Listener()
    records = {record.key.component: record for record in build(bundle, report=report)}
    jobs = dict(zip(records, builder.jobs, strict=True))
    assert jobs["unet"].refittable == jobs["text_encoder"].refittable == WEIGHTS
    assert jobs["vae_decoder"].refittable == ()
    assert all("REFIT" not in job.flags for job in builder.jobs), "which kind is the worker's"
    assert records["unet"].key.flags["REFIT"]
    assert records["unet"].refit == PROOF
    assert records["vae_decoder"].refit is None
    assert "unet: sm89, refittable" in report.stages
    assert "vae_decoder: sm89" in report.stages


def test_fixed_and_refittable_engines_stand_side_by_side(bundle: Bundle, builder: Builder) -> None:
    build(bundle, refittable=False)
    jobs = len(builder.jobs)
    build(bundle)
    build(bundle)  # all there
    assert len(engine_folders(bundle, TENSORRT_RTX, "unet")) == 2
    assert len(engine_folders(bundle, TENSORRT_RTX, "vae_decoder")) == 1
    again = [job.onnx for job in builder.jobs[jobs:]]
    assert again == [job.onnx for job in builder.jobs[:jobs] if "vae" not in job.onnx]


def test_a_refittable_engine_is_preferred(bundle: Bundle, builder: Builder) -> None:
    build(bundle, refittable=False, profiles=["any", "static:64x64x1"], components=["unet"])
    assert not open_engine(bundle, TENSORRT_RTX, "unet", 89).record.key.refittable
    build(bundle, components=["unet"])
    assert open_engine(bundle, TENSORRT_RTX, "unet", 89).record.key.refittable


def test_keys_and_records_of_fixed_engines_are_what_they_were(
    bundle: Bundle, builder: Builder
) -> None:
    """A record written before there was another kind has no word of it, and is still intact."""
    (record,) = build(bundle, refittable=False, components=["unet"])
    assert "REFIT" not in record.key.flags
    before = record.model_dump_json(exclude={"checksum", "refit"})
    assert record.checksum == hashlib.sha256(before.encode()).hexdigest()
    (folder,) = engine_folders(bundle, TENSORRT_RTX, "unet")
    text = (folder / RECORD).read_text()
    assert '  "refit": null,\n' in text
    (folder / RECORD).write_text(text.replace('  "refit": null,\n', ""))
    assert read_record(bundle, folder) == record


def test_an_edited_proof_is_noticed(bundle: Bundle, builder: Builder) -> None:
    build(bundle, components=["unet"])
    (folder,) = engine_folders(bundle, TENSORRT_RTX, "unet")
    text = (folder / RECORD).read_text()
    (folder / RECORD).write_text(text.replace('"built": 0.001', '"built": 0.0001'))
    with pytest.raises(EngineRejectedError, match="was changed after the build"):
        read_record(bundle, folder)


def test_an_engine_that_is_not_proved_is_not_kept(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(_bundle: Bundle, _key: object, plan: Path) -> RefitProof:
        assert plan.name == PLAN
        assert plan.read_bytes()[:4] == b"vtrt"
        raise EngineError("it is off")

    monkeypatch.setattr(engines, "prove_plan", off)
    with pytest.raises(EngineError, match="it is off"):
        build(bundle, components=["unet"])
    assert [p.name for p in bundle.file("engines/tensorrt-rtx").iterdir()] == [".lock"]


def test_weights_that_the_builder_fixed_are_a_warning(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = RefitProof(1, 1, 1e-3, 2e-3, 0.0)
    monkeypatch.setattr(engines, "prove_plan", lambda *_: proof)
    report = Listener()
    build(bundle, components=["unet"], report=report)
    assert report.warnings == [
        "TensorRT fixed 1 weights of unet that a LoRA can change; LoRAs that do will be refused"
    ]


def test_the_reason_and_the_way_out_are_one_sentence(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = build(bundle, components=["unet"])
    (folder,) = engine_folders(bundle, TENSORRT_RTX, "unet")

    def refuse(*_: object, **__: object) -> None:
        raise EngineError("as built, the engine is off by 1 relative")

    monkeypatch.setattr(kdrt_engines.tensorrt.run, "TensorRTEngine", lambda *_, **__: None)
    monkeypatch.setattr(kdrt_engines.tensorrt.run, "Scratch", lambda _: None)
    monkeypatch.setattr(kdrt_engines.tensorrt.gate, "prove", refuse)
    monkeypatch.setattr(refit, "changeable_weights", lambda *_: WEIGHTS)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", ModuleType("tensorrt_rtx"))
    with pytest.raises(
        EngineError, match=r"of unet is not kept: as built, .* relative; build without .*--lora"
    ):
        prove_plan(bundle, record.key, folder / PLAN)


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
    bundle = engine_bundle(tmp_path / "bundle", precision=precision)
    with pytest.raises(EngineError, match=said):
        build_engines(
            bundle, TENSORRT_RTX, capabilities, refittable=True, report=Listener(), **options
        )
    assert not builder.jobs
    assert not bundle.file("engines").exists()


def test_without_a_gpu_nothing_is_tried(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        EngineUnavailableError, match=r"no GPU .* --refittable` where .*kdrt export"
    ):
        build(bundle)
    assert not builder.jobs


def test_the_command_of_a_refittable_engine_builds_one(bundle: Bundle, builder: Builder) -> None:
    build(bundle, components=["unet"])
    with pytest.raises(
        EngineRejectedError, match=r"this GPU is sm86; run `.* --refittable --here "
    ):
        open_engine(bundle, TENSORRT_RTX, "unet", 86)


class Loaded:
    """What a TensorRTEngine was made of."""

    def __init__(self, _trt: ModuleType, plan: memoryview, spec: object, **options: Any) -> None:
        self.plan, self.spec = plan, spec
        self.__dict__ |= options


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", ModuleType("tensorrt_rtx"))
    monkeypatch.setattr(kdrt_engines.tensorrt.run, "Scratch", lambda device: object())
    monkeypatch.setattr(kdrt_engines.tensorrt.run, "TensorRTEngine", Loaded)


def test_the_network_and_a_gate_go_along(bundle: Bundle, builder: Builder, loads: None) -> None:
    build(bundle)
    engines: Any = load_engines(bundle, "tensorrt-rtx")
    unet, vae = engines["unet"], engines["vae_decoder"]
    assert unet.network == bundle.file(bundle.manifest.components["unet"].onnx)
    assert isinstance(unet.check, RefitGate)
    assert (vae.network, vae.check) == (None, None)
    assert engines["text_encoder"].check is not unet.check
    assert engines.another("unet").check is unet.check, "an engine loaded anew is not compared anew"


def test_the_switch(
    bundle: Bundle, builder: Builder, loads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Path("model.onnx")
    assert refit_gate(network)._when == "first"
    monkeypatch.setenv(SWITCH, "never")
    assert refit_gate(network)._when == "never"
    monkeypatch.setenv(SWITCH, "always")
    build(bundle)
    with pytest.raises(
        InvalidRequestError, match="KDRT_REFIT_CHECK must be first, every, never or"
    ):
        load_engines(bundle, "tensorrt-rtx")
