"""What an observer is told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kdrt
from kdrt.batching.handle import Handle
from kdrt.batching.observer import Observer, Stage


class Notes(Observer):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.admissions: list[tuple[int, int]] = []
        self.ticks: list[tuple[int, int]] = []
        self.stages: list[Stage] = []
        self.seconds: list[float] = []

    def admitted(self, handle: Handle[Any], images: int) -> None:
        self.admissions.append((handle.number, images))

    def ticked(self, images: int, rows: int, seconds: float) -> None:
        self.ticks.append((images, rows))
        self.seconds.append(seconds)

    def took(self, stage: Stage, seconds: float) -> None:
        self.stages.append(stage)
        self.seconds.append(seconds)


def told_of(bundle: Path, request: kdrt.Request) -> tuple[Notes, int]:
    notes = Notes()
    with kdrt.load(bundle, threads=1) as pipe, kdrt.Batcher(pipe, observer=notes) as batcher:
        handle = batcher.submit(request)
        handle.result()
    assert all(seconds > 0 for seconds in notes.seconds)
    return notes, handle.number


def test_of_images_that_share(demo_bundle: Path) -> None:
    request = kdrt.Request(prompt="a star", images_per_prompt=2, steps=3, sampler="euler")
    notes, number = told_of(demo_bundle, request)
    assert notes.admissions == [(number, 1), (number, 1)]
    assert notes.ticks == [(2, 4)] * 3
    assert notes.stages == ["encode", "decode"]


def test_without_guidance_an_image_takes_one_row(demo_bundle: Path) -> None:
    request = kdrt.Request(prompt="a star", steps=2, sampler="euler", guidance_scale=1)
    notes, _ = told_of(demo_bundle, request)
    assert notes.ticks == [(1, 1)] * 2


def test_outside_of_a_guidance_interval_too(demo_bundle: Path) -> None:
    request = kdrt.Request(
        prompt="a star", sampler="euler", sigmas=[10, 5, 1, 0], guidance_interval=(2.0, 6.0)
    )
    notes, _ = told_of(demo_bundle, request)
    assert notes.ticks == [(1, 1), (1, 2), (1, 1)]


def test_of_a_request_that_does_not_share(demo_bundle: Path) -> None:
    request = kdrt.Request(prompt="a star", images_per_prompt=2, sampler="dpm_adaptive")
    notes, number = told_of(demo_bundle, request)
    assert notes.admissions == [(number, 2)]
    assert {*notes.ticks} == {(2, 4)}
    assert notes.stages == ["encode", "decode"]


def test_of_what_fails_only_what_was_done(demo_bundle: Path) -> None:
    notes = Notes()
    with kdrt.load(demo_bundle, threads=1) as pipe, kdrt.Batcher(pipe, observer=notes) as batcher:
        handle = batcher.submit({"prompt": "a star", "steps": 3}, callback=lambda step: False)
        assert handle.exception() is not None
    assert (notes.ticks, notes.stages) == ([(1, 2)], ["encode"])
