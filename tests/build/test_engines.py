"""Building the engines of a bundle: what is built, where it lies, and what a failure leaves."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from filelock import FileLock

from kdrt.backends.engine_files import ENGINE_FILE, engine_folders, open_engine
from kdrt.backends.records import RECORD_FILE
from kdrt.build import engines
from kdrt.build.engines import Tools, build_engines
from kdrt.build.fusion import fusion_warning
from kdrt.build.targets import resolve_targets
from kdrt.bundle import Bundle
from kdrt.common import atomic_io
from kdrt.common.atomic_io import UNFINISHED
from kdrt.errors import EngineError, EngineUnavailableError, OutputError
from kdrt_engines.tensorrt.flavour import (
    TENSORRT,
    TENSORRT_RTX,
    Flavour,
    parse_capabilities,
    split_targets,
)
from tests.support import engine_bundle as engine_bundle_fakes
from tests.support.engine_bundle import Builder, Listener, engine_bundle, exported_anew
from tests.support.rtx_machine import install_tensorrt
from tests.support.tiny_model import FREEU_OF_BATCH


@pytest.fixture(autouse=True)
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch, tmp_path / "installed")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    double = Builder()
    monkeypatch.setattr(engines, "TOOLS", Tools(build=double))
    return double


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return engine_bundle(tmp_path / "bundle")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


def names_in(bundle: Bundle) -> list[str]:
    return sorted(path.name for path in bundle.file("engines/tensorrt-rtx").iterdir())


def test_every_component_is_built_once(bundle: Bundle, builder: Builder) -> None:
    report = Listener()
    records = build_engines(bundle, TENSORRT_RTX, (86, 89), report=report)
    assert [record.key.component for record in records] == list(bundle.manifest.components)
    assert report.stages == [f"{name}: sm86, sm89" for name in bundle.manifest.components]
    for record in records:
        folder = bundle.file("engines/tensorrt-rtx") / record.key.folder()
        assert sorted(p.name for p in folder.iterdir()) == [ENGINE_FILE, RECORD_FILE]
        open_engine(bundle, TENSORRT_RTX, record.key.component, 86)

    again = Listener()
    assert build_engines(bundle, TENSORRT_RTX, (86, 89), report=again) == records
    assert len(builder.jobs) == len(records)
    assert "is built already; --force builds it again" in again.notes[0]
    build_engines(bundle, TENSORRT_RTX, (86, 89), force=True, report=again)
    assert len(builder.jobs) == 2 * len(records)


def test_the_builder_gets_shapes_flags_and_targets(bundle: Bundle, builder: Builder) -> None:
    build_engines(
        bundle,
        TENSORRT_RTX,
        (89, 120),
        profiles=["square", "static:64x48x1"],
        components=["unet"],
        report=Listener(),
    )
    (job,) = builder.jobs
    assert (job.module, job.compute_capabilities) == ("tensorrt_rtx", (89, 120))
    assert job.flags == {"TF32": True, "REQUIRE_USER_ALLOCATION": True}
    assert len(job.profiles) == 2
    assert job.profiles[1]["sample"] == ((1, 4, 8, 6), (2, 4, 8, 6), (2, 4, 8, 6))
    assert job.profiles[1]["freeu"] == ((1, 4), (2, 4), (2, 4))


def test_freeu_of_a_whole_batch_is_of_no_profile(tmp_path: Path, builder: Builder) -> None:
    """Its shape is fixed: engines of bundles that were exported so stay what they were."""
    bundle = engine_bundle(tmp_path / "earlier", freeu=FREEU_OF_BATCH)
    build_engines(bundle, TENSORRT_RTX, (89,), components=["unet"], report=Listener())
    assert "timestep" in builder.jobs[0].profiles[0]
    assert "freeu" not in builder.jobs[0].profiles[0]


def test_full_precision_is_kept_where_it_was_asked_for(tmp_path: Path, builder: Builder) -> None:
    bundle = engine_bundle(tmp_path / "fp32", precision="fp32")
    build_engines(bundle, TENSORRT_RTX, (89,), components=["unet"], report=Listener())
    assert builder.jobs[0].flags["TF32"] is False


def test_turing_is_an_engine_of_its_own(bundle: Bundle, builder: Builder) -> None:
    assert split_targets((89, 75, 86)) == [(75,), (86, 89)]
    baked = bundle.manifest.baked.model_copy(update={"freeu": False})
    components = {
        name: component.model_copy(
            update={
                "inputs": tuple(t.model_copy(update={"dtype": "float16"}) for t in component.inputs)
            }
        )
        for name, component in bundle.manifest.components.items()
    }
    half = bundle.manifest.model_copy(update={"baked": baked, "components": components})
    build_engines(
        Bundle(bundle.path, half),
        TENSORRT_RTX,
        (75, 89),
        components=["unet"],
        report=Listener(),
    )
    assert [job.compute_capabilities for job in builder.jobs] == [(75,), (89,)]


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        ("float32", "it is float32, and TensorRT-RTX has no float32 matrix products there"),
        ("bfloat16", "it is bfloat16, which these GPUs do not have"),
    ],
)
def test_what_turing_cannot_run(bundle: Bundle, builder: Builder, dtype: str, said: str) -> None:
    unet = bundle.manifest.components["unet"]
    inputs = tuple(t.model_copy(update={"dtype": dtype}) for t in unet.inputs)
    components = {"unet": unet.model_copy(update={"inputs": inputs})}
    manifest = bundle.manifest.model_copy(update={"components": components})
    with pytest.raises(EngineError, match=f"unet cannot be built for sm75 .*{said}"):
        build_engines(Bundle(bundle.path, manifest), TENSORRT_RTX, (75, 89), report=Listener())
    assert not builder.jobs


@pytest.mark.parametrize("error", [KeyboardInterrupt, EngineError("the builder died")])
def test_a_build_that_stops_leaves_nothing(
    bundle: Bundle, builder: Builder, error: BaseException
) -> None:
    build_engines(bundle, TENSORRT_RTX, (89,), components=["unet"], report=Listener())
    before = names_in(bundle)

    def stop() -> None:
        raise error

    builder.during = stop
    for force in (False, True):
        with pytest.raises((KeyboardInterrupt, EngineError)):
            build_engines(
                bundle,
                TENSORRT_RTX,
                (89,),
                components=["unet", "vae_decoder"][0 if force else 1 :],
                force=force,
                report=Listener(),
            )
        assert names_in(bundle) == before
    open_engine(bundle, TENSORRT_RTX, "unet", 89)


def test_what_a_killed_build_left_is_cleared_away(bundle: Bundle, builder: Builder) -> None:
    started = int(psutil.Process().create_time()) - 1000  # this process's number had another owner
    name = f"{UNFINISHED}{atomic_io._host()}-{os.getpid()}-{started}-{'0' * 8}"
    left = bundle.file(f"engines/tensorrt-rtx/{name}")
    left.mkdir(parents=True)
    (left / ENGINE_FILE).write_bytes(b"half")
    build_engines(bundle, TENSORRT_RTX, (89,), components=["unet"], report=Listener())
    assert not left.exists()


def test_engines_of_networks_that_are_no_more_are_removed(bundle: Bundle, builder: Builder) -> None:
    build_engines(bundle, TENSORRT_RTX, (89,), report=Listener())
    again = exported_anew(bundle, "unet")
    build_engines(again, TENSORRT_RTX, (89,), components=["vae_decoder"], report=Listener())
    assert not engine_folders(again, TENSORRT_RTX, "unet")
    assert engine_folders(again, TENSORRT_RTX, "text_encoder")


def test_a_damaged_engine_is_built_again(bundle: Bundle, builder: Builder) -> None:
    def build() -> None:
        build_engines(bundle, TENSORRT_RTX, (89,), components=["unet"], report=Listener())

    build()
    (folder,) = engine_folders(bundle, TENSORRT_RTX, "unet")
    (folder / ENGINE_FILE).write_bytes(b"nonsense")
    build()
    assert len(builder.jobs) == 2
    open_engine(bundle, TENSORRT_RTX, "unet", 89)


def test_two_builders_take_turns(bundle: Bundle, builder: Builder) -> None:
    report = Listener()
    folder = bundle.file("engines/tensorrt-rtx")
    folder.mkdir(parents=True)
    other = FileLock(folder / ".lock")
    other.acquire()
    thread = threading.Thread(
        target=build_engines,
        args=(bundle, TENSORRT_RTX, (89,)),
        kwargs={"components": ["unet"], "report": report},
    )
    thread.start()
    while not report.notes:
        thread.join(0.01)
    assert "another build is at work" in report.notes[0]
    assert not builder.jobs
    other.release()
    thread.join(60)
    assert len(builder.jobs) == 1


def test_a_bundle_that_cannot_be_written(bundle: Bundle, builder: Builder) -> None:
    bundle.file("engines").write_text("a file is in the way")
    with pytest.raises(OutputError, match="cannot write to"):
        build_engines(bundle, TENSORRT_RTX, (89,), report=Listener())


def test_unknown_components(bundle: Bundle, builder: Builder) -> None:
    with pytest.raises(EngineError, match="no component 'net'; it has unet, vae_decoder"):
        build_engines(bundle, TENSORRT_RTX, (89,), components=["net"], report=Listener())


def test_an_engine_for_other_gpus_than_asked_for_is_refused(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_bundle_fakes, "BITS", {89: 4})
    with pytest.raises(EngineError, match="cannot check the engines of this version"):
        build_engines(bundle, TENSORRT_RTX, (89,), report=Listener())
    assert names_in(bundle) == [".lock"]


@pytest.mark.parametrize(
    ("fused", "said"),
    [
        (2, None),
        (1, "only 1 of 2 attentions of the UNet became fused kernels"),
        (0, "only 0 of 2 attentions .* only half precision fuses; export it with `kdrt export"),
        (None, "did not say whether"),
    ],
)
def test_a_unet_without_fused_attention_is_a_warning(
    bundle: Bundle, builder: Builder, fused: int | None, said: str | None
) -> None:
    builder.fused = fused
    report = Listener()
    (record, *_) = build_engines(bundle, TENSORRT_RTX, (89,), report=report)
    if said is None:
        assert report.warnings == []
        assert fusion_warning(bundle.manifest, record) is None
    else:
        (warning,) = report.warnings  # of the UNet alone
        assert re.search(said, warning)
        assert warning == fusion_warning(bundle.manifest, record)


def test_too_little_memory_is_said_before(
    bundle: Bundle, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10))
    report = Listener()
    build_engines(bundle, TENSORRT_RTX, (89,), components=["unet"], report=report)
    assert "building unet takes about" in report.warnings[0]


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [(["sm89"], (89,)), (["8.9,SM_120", "86"], (86, 89, 120)), (["sm86, 8.6"], (86,))],
)
def test_gpus_as_people_write_them(texts: list[str], numbers: tuple[int, ...]) -> None:
    assert parse_capabilities(texts) == numbers


@pytest.mark.parametrize(("text", "said"), [("ada", "is no compute"), ("sm61", "is too old")])
def test_gpus_that_are_none(text: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        parse_capabilities([text])


def test_targets_without_a_gpu(without_gpu: None) -> None:
    assert resolve_targets("demo", None, (120, 86), here=False) == (TENSORRT_RTX, (86, 120))
    assert resolve_targets("demo", None, (), here=False) == (TENSORRT_RTX, (80, 86, 89, 120))
    for flavour, here in ((TENSORRT, False), (TENSORRT, True), (None, True)):
        with pytest.raises(EngineUnavailableError, match="no GPU that CUDA sees"):
            resolve_targets("demo", flavour, (), here=here)


def test_targets_here(ada: None) -> None:
    assert resolve_targets("demo", None, (), here=True) == (TENSORRT_RTX, (89,))


def test_targets_on_a_data_centre_gpu(hopper: None) -> None:
    assert resolve_targets("demo", None, (), here=True) == (TENSORRT, (90,))
    assert resolve_targets("demo", TENSORRT, (), here=False) == (TENSORRT, (90,))
    assert resolve_targets("demo", None, (90,), here=False) == (TENSORRT, (90,))
    with pytest.raises(EngineError, match="only for the GPU it runs on, which is sm90"):
        resolve_targets("demo", None, (100,), here=False)


@pytest.mark.parametrize(
    ("flavour", "gpus", "command"),
    [
        (TENSORRT_RTX, (90,), "kdrt build demo --engine tensorrt --here"),
        (TENSORRT_RTX, (89, 100), "kdrt build demo --engine tensorrt --here"),
        (TENSORRT, (89,), "kdrt build demo --engine tensorrt-rtx --gpu sm89"),
        (None, (86, 90), "kdrt build demo --engine tensorrt-rtx --gpu sm86"),
    ],
)
def test_the_wrong_pair_names_the_right_command(
    without_gpu: None, flavour: Flavour | None, gpus: tuple[int, ...], command: str
) -> None:
    with pytest.raises(EngineError, match=f"`{command}`"):
        resolve_targets("demo", flavour, gpus, here=False)


def test_here_and_a_gpu_contradict_each_other() -> None:
    with pytest.raises(EngineError, match="--here and --gpu"):
        resolve_targets("demo", None, (89,), here=True)
