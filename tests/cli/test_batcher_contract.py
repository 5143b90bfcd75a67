"""What ``kdrt generate --from`` relies on, of the batcher and of the one that stands for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import kdrt
from tests.support.fake_batcher import ENDLESS, OVERFLOWS, FakeBatcher

Open = Callable[[], Any]


@pytest.fixture(params=["fake", "real"])
def open_batcher(request: pytest.FixtureRequest) -> Open:
    if request.param == "fake":
        return FakeBatcher
    pipe = kdrt.load(request.getfixturevalue("demo_bundle"), engine="onnxruntime", threads=1)
    return lambda: kdrt.Batcher(pipe)


def asked(**fields: Any) -> kdrt.Request:
    return kdrt.Request(**{"prompt": "a red circle", "steps": 2, "seed": 7, **fields})  # type: ignore[typeddict-item]


def test_a_result_holds_the_images_and_can_be_saved(open_batcher: Open, tmp_path: Path) -> None:
    with open_batcher() as batcher:
        handles = [batcher.submit(asked(seed=seed, images_per_prompt=2)) for seed in (7, 40)]
        results = [handle.result() for handle in handles]
    assert [result.seeds for result in results] == [[7, 8], [40, 41]]
    assert {result.in_flight for result in results} <= {False, True}
    path = results[1].save(tmp_path / "image.png", 1)
    assert "Seed: 41" in str(kdrt.read_infotext(path))
    with Image.open(path) as image:
        assert image.tobytes() == results[1].images[1].tobytes()


def test_a_wrong_request_is_refused_at_once(open_batcher: Open) -> None:
    with open_batcher() as batcher:
        with pytest.raises(kdrt.InvalidRequestError, match="steps must be"):
            batcher.submit(asked(steps=0))
        assert batcher.submit(asked()).result().seeds == [7]


def test_leaving_waits_for_all_and_whoever_asked_is_told_once(open_batcher: Open) -> None:
    told: list[tuple[Any, int]] = []

    def tell(handle: Any) -> None:
        told.append((handle, threading.get_ident()))

    with open_batcher() as batcher:
        handles = [batcher.submit(asked(steps=steps)) for steps in (5, 1, 3)]
        for handle in handles:
            handle.add_done_callback(tell)
    assert all(handle.done() for handle in handles)
    assert {id(handle) for handle, _ in told} == {id(handle) for handle in handles}
    assert len(told) == 3
    handles[0].add_done_callback(tell)
    assert told[-1] == (handles[0], threading.get_ident())
    assert not handles[0].cancel()


def test_leaving_with_an_exception_cancels_what_is_left(open_batcher: Open) -> None:
    handles = []
    with suppress(KeyboardInterrupt), open_batcher() as batcher:
        handles += [batcher.submit(asked(prompt=ENDLESS, steps=10_000)) for _ in range(6)]
        raise KeyboardInterrupt
    assert len(handles) == 6
    for handle in handles:
        with pytest.raises(kdrt.CancelledError):
            handle.result()


def test_a_cancelled_request_ends_and_others_do_not(open_batcher: Open) -> None:
    with open_batcher() as batcher:
        endless, other = (
            batcher.submit(asked(prompt=ENDLESS, steps=10_000)),
            batcher.submit(asked()),
        )
        assert endless.cancel()
        with pytest.raises(kdrt.CancelledError):
            endless.result()
        assert other.result().seeds == [7]


def test_the_fake_fails_for_one_prompt_alone() -> None:
    with FakeBatcher() as batcher:
        failing, other = batcher.submit(asked(prompt=OVERFLOWS)), batcher.submit(asked())
        with pytest.raises(kdrt.NonFiniteError):
            failing.result()
        assert other.result().seeds == [7]
