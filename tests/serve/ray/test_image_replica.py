"""A replica without a cluster: a plain object that holds services."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdrt.serve.ray.image_replica import ImageReplica, LoadedModel, ModelLoader
from kdrt.serve.replica import Accepted, Ask, Begun, Done, Event, Failed, Stepped
from kdrt.serve.settings import ModelSettings, ServiceSettings


class KeepOne:
    """Remembers the model that was used last, as `ray.serve.multiplexed` of one does."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.name = ""
        self.model: LoadedModel | None = None

    def __call__(self, load: ModelLoader) -> ModelLoader:
        async def kept(name: str) -> LoadedModel:
            if self.model is None or name != self.name:
                if self.model is not None:
                    # By this name, and awaited: what Ray does.
                    await self.model.__del__()
                self.model, self.name = await load(name), name
                self.loaded.append(name)
            return self.model

        return kept


@pytest.fixture
def keep() -> Iterator[KeepOne]:
    kept = KeepOne()
    yield kept
    if kept.model is not None:
        asyncio.run(kept.model.free())


def replica_of(bundle: Path, keep: KeepOne, *names: str) -> ImageReplica:
    settings = ServiceSettings(threads=1, warmup=())
    return ImageReplica({name: ModelSettings(bundle=str(bundle)) for name in names}, settings, keep)


def ask(model: str = "demo", *, steps: int = 3, watch: bool = False) -> Ask:
    request = {"prompt": "a red circle", "seed": 7, "steps": steps}
    return Ask(request=request, model=model, images=1, watch=watch, deadline=60.0)  # type: ignore[arg-type]


async def events_of(replica: ImageReplica, asked: Ask) -> list[Event]:
    return [event async for event in replica.run(asked)]


def test_a_request_is_its_events(demo_bundle: Path, keep: KeepOne) -> None:
    replica = replica_of(demo_bundle, keep, "demo")

    async def main() -> tuple[list[Event], ...]:
        await replica.warm_up("demo")
        assert keep.loaded == ["demo"]
        return await asyncio.gather(
            events_of(replica, ask()),
            events_of(replica, ask(watch=True)),
            events_of(replica, ask(steps=0)),
        )

    plain, watched, wrong = asyncio.run(main())
    assert [type(event) for event in plain] == [Accepted, Begun, Done]
    assert [type(event) for event in watched if isinstance(event, Stepped)] == [Stepped] * 3
    assert isinstance(watched[-1], Done)
    (failed,) = wrong
    assert isinstance(failed, Failed)
    assert "steps" in str(failed.error)


def test_a_model_is_let_go_of_when_nobody_uses_it(demo_bundle: Path, keep: KeepOne) -> None:
    replica = replica_of(demo_bundle, keep, "demo", "again")

    async def main() -> tuple[list[Event], list[Event]]:
        first = replica.run(ask(steps=20))
        begun = [await anext(first)]
        # The other model takes its place, which waits for what runs.
        other = asyncio.ensure_future(replica.warm_up("again"))
        rest = [event async for event in first]
        await other
        return begun, rest

    begun, rest = asyncio.run(main())
    assert isinstance(begun[0], Accepted)
    assert isinstance(rest[-1], Done)
    assert keep.loaded == ["demo", "again"]


def test_a_model_that_cannot_be_loaded_is_an_event(
    demo_bundle: Path, tmp_path: Path, keep: KeepOne
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(demo_bundle, broken)
    replica = replica_of(broken, keep, "demo")
    (broken / "manifest.json").unlink()
    (failed,) = asyncio.run(events_of(replica, ask()))
    assert isinstance(failed, Failed)
