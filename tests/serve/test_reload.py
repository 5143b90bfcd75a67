"""A bundle that is replaced while it is served."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

import kdrt
from kdrt.serve.errors import LoadFailedError
from kdrt.serve.fingerprint import Fingerprint
from kdrt.serve.footprint import Footprint
from kdrt.serve.model import ServedModel
from kdrt.serve.reload import BundleWatcher
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.version import ModelVersion
from tests.support.named_bundles import named_bundle
from tests.support.serving import until, value_of, waiting_model

SHORT = kdrt.Request(prompt="a red circle", seed=7, steps=2)
SCALE = 1.02
"""Of the weights of the new bundle."""

Serve = Callable[..., tuple[ImageService, BundleWatcher]]


@pytest.fixture
def serve(demo_bundle: Path, tmp_path: Path) -> Iterator[Serve]:
    """Serves a bundle called ``one``, and others, that the test may replace; the watcher looks when
    it is told to."""
    services: list[ImageService] = []

    def start(*others: str, memory: float | None = None) -> tuple[ImageService, BundleWatcher]:
        """``memory`` is that for so many bundles."""
        models = [
            ModelSettings(bundle=str(named_bundle(demo_bundle, tmp_path / name)))
            for name in ("one", *others)
        ]
        settings = ServiceSettings(warmup=(), threads=1)
        if memory is not None:
            bundle = ImageService(models, settings).model().bundle
            needed = memory * Footprint(bundle, settings).size
            settings = ServiceSettings(warmup=(), threads=1, memory=round(needed), reload=3600)
        service = ImageService(models, settings)
        service.load()
        services.append(service)
        watcher = BundleWatcher(
            service.models.values(), service.residents, service.metrics.residency
        )
        return service, watcher

    yield start
    for service in services:
        service.close()


@pytest.fixture(scope="module")
def images(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """What the old and the new bundle make."""
    new = named_bundle(demo_bundle, tmp_path_factory.mktemp("new") / "one", scale=SCALE)
    made = []
    for bundle in (demo_bundle, new):
        with kdrt.load(bundle, threads=1) as pipe:
            made.append(pipe.generate(SHORT).images[0].tobytes())
    assert made[0] != made[1]
    return made[0], made[1]


async def made(service: ImageService, model: str | None = None) -> bytes:
    submission = await service.submit(SHORT, model=model)
    return cast(bytes, (await submission.result()).images[0].tobytes())


def image(service: ImageService, model: str | None = None) -> bytes:
    return asyncio.run(made(service, model))


def look(watcher: BundleWatcher) -> None:
    """Until what is there has been the same twice."""
    watcher.look()
    watcher.look()


def raising(error: Exception) -> Callable[[ServedModel], ModelVersion]:
    def reopen(model: ServedModel) -> ModelVersion:
        raise error

    return reopen


def reloads(service: ImageService, outcome: str) -> float:
    return value_of(service, "kdrt_model_reloads_total", model="one", outcome=outcome)


def test_a_new_bundle_is_for_new_requests_and_running_ones_keep_the_old(
    serve: Serve, images: tuple[bytes, bytes]
) -> None:
    service, watcher = serve()
    folder = service.model().bundle.path
    look(watcher)
    assert reloads(service, "replaced") == 0

    async def replace() -> tuple[bytes, bytes]:
        with waiting_model(service):
            running = await service.submit(SHORT)
            named_bundle(folder, folder, scale=SCALE)
            await asyncio.to_thread(look, watcher)
            assert value_of(service, "kdrt_models_loaded") == 2
            new = await made(service)
        return (await running.result()).images[0].tobytes(), new

    assert asyncio.run(replace()) == images
    until(lambda: value_of(service, "kdrt_models_loaded") == 1)
    assert reloads(service, "replaced") == 1
    look(watcher)
    assert reloads(service, "replaced") == 1


def test_a_damaged_bundle_leaves_the_old_and_is_looked_at_once(
    serve: Serve, images: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    service, watcher = serve()
    folder = service.model().bundle.path
    weights = folder / "onnx/unet/weights.bin"
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    weights.unlink()
    weights.write_bytes(b"nothing")
    look(watcher)
    look(watcher)
    assert image(service) == images[0]
    assert reloads(service, "failed") == 1
    (said,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "the new bundle of one is not used: " in said.getMessage()
    assert "weights.bin" in said.getMessage()
    shutil.rmtree(folder)
    named_bundle(copy, folder, scale=SCALE)
    look(watcher)
    assert image(service) == images[1]


def test_a_bundle_of_another_name_is_not_taken(
    serve: Serve, images: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    service, watcher = serve()
    folder = service.model().bundle.path
    other = named_bundle(folder, folder.with_name("other"), scale=SCALE)
    folder.rename(folder.with_name("old"))
    watcher.look()  # nothing is there, which may be for a moment
    other.rename(folder)
    look(watcher)
    assert image(service) == images[0]
    assert "holds a bundle called 'other' now, and 'one' is served from there" in caplog.text


def test_without_room_for_both_the_old_goes_first(
    serve: Serve, images: tuple[bytes, bytes]
) -> None:
    service, watcher = serve(memory=1.1)
    folder = service.model().bundle.path

    async def replace() -> tuple[bytes, bytes]:
        with waiting_model(service):
            running = await service.submit(SHORT)
            named_bundle(folder, folder, scale=SCALE)
            looking = asyncio.ensure_future(asyncio.to_thread(look, watcher))
            old = service.model().version
            while service.model().version is old:
                await asyncio.sleep(0.01)
            late = asyncio.ensure_future(made(service))
            await asyncio.sleep(0)
        await looking
        return (await running.result()).images[0].tobytes(), await late

    assert asyncio.run(replace()) == images
    assert value_of(service, "kdrt_models_loaded") == 1


def test_what_is_not_loaded_is_loaded_from_what_is_there_then(
    serve: Serve, images: tuple[bytes, bytes]
) -> None:
    service, watcher = serve("two", "three", memory=1.1)
    assert not service.residents.is_loaded(service.model("two"))
    for name in ("two", "three"):
        folder = service.model(name).bundle.path
        named_bundle(folder, folder, scale=SCALE)
    assert image(service, "two") == images[1]  # nobody has looked yet
    look(watcher)
    assert value_of(service, "kdrt_model_loads_total", model="three", outcome="loaded") == 0
    assert image(service, "three") == images[1]
    outcomes = [
        value_of(service, "kdrt_model_reloads_total", model=name, outcome="replaced")
        for name in ("two", "three")
    ]
    assert outcomes == [0, 1]


def test_who_waits_for_a_load_gets_what_is_there_after_it(
    serve: Serve, images: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = serve("two", memory=1.1)
    folder = service.model("two").bundle.path
    load = ModelVersion.load

    def load_late(version: ModelVersion) -> None:
        """The bundle is replaced at the worst moment, once."""
        monkeypatch.setattr(ModelVersion, "load", load)
        named_bundle(folder, folder, scale=SCALE)
        load(version)

    monkeypatch.setattr(ModelVersion, "load", load_late)
    assert image(service, "two") == images[1]


def test_who_waits_for_a_load_is_told_where_what_is_there_cannot_be_read(
    serve: Serve, images: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, _ = serve("two", memory=1.1)
    folder = service.model("two").bundle.path
    named_bundle(folder, folder, scale=SCALE)
    with monkeypatch.context() as patch:
        patch.setattr(ServedModel, "reopen", raising(PermissionError(13, "Permission denied")))
        with pytest.raises(LoadFailedError):
            image(service, "two")
    assert image(service, "two") == images[1]


def test_a_bundle_that_fails_in_an_unforeseen_way_is_looked_at_once(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, watcher = serve()
    folder = service.model().bundle.path
    named_bundle(folder, folder, scale=SCALE)
    monkeypatch.setattr(ServedModel, "reopen", raising(RuntimeError("no message foresees this")))
    look(watcher)
    look(watcher)
    assert reloads(service, "failed") == 1


@pytest.mark.parametrize("name", ["nothing", "\ud800", "\0", "x" * 5000])
def test_where_no_bundle_can_be_there_is_no_fingerprint(tmp_path: Path, name: str) -> None:
    assert Fingerprint.of(tmp_path / name) is None


def test_what_a_run_writes_into_a_bundle_is_no_change(demo_bundle: Path, tmp_path: Path) -> None:
    folder = named_bundle(demo_bundle, tmp_path / "one")
    before = Fingerprint.of(folder)
    assert before is not None
    cache = folder / "engines/onnxruntime/unet-0123456789abcdef/record.json"
    unfinished = folder / "engines/tensorrt/.unfinished-1/record.json"
    for file in (cache, unfinished):
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    assert Fingerprint.of(folder) == before
    built = folder / "engines/tensorrt/unet-0123456789abcdef/record.json"
    built.parent.mkdir()
    built.write_text("{}")
    assert Fingerprint.of(folder) != before
