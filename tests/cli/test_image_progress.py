"""What is told of a series while it is made."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from rich.console import Console

from kdrt.cli.image_progress import ImageProgress
from kdrt.common.units import rough_duration


@dataclass
class Step:
    """What progress reads of a step."""

    index: int
    latents: list[int]


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def seconds(*times: float) -> Iterator[float]:
    yield from (0.0, 0.0, *times)


def test_a_log_file_gets_a_line_for_each_batch() -> None:
    log = console(terminal=False)
    clock = seconds(4.0, 8.0, 12.0)
    with ImageProgress(5, console=log, clock=lambda: next(clock)) as progress:
        assert not progress.is_live
        for images in (2, 2, 1):
            with progress.paused():
                pass
            progress.batch_done(images)
    assert text(log).splitlines() == [
        "[2/5] 2.0 s/image, about 6 s left",
        "[4/5] 2.0 s/image, about 2 s left",
        "[5/5] 2.4 s/image",
    ]


def test_images_made_at_the_same_time_get_a_line_in_ten_seconds() -> None:
    log = console(terminal=False)
    clock = seconds(0.5, 9.0, 10.0, 19.9, 25.0)
    with ImageProgress(5, console=log, clock=lambda: next(clock)) as progress:
        for _ in range(5):
            progress.image_done()
    assert text(log).splitlines() == [
        "[3/5] 3.3 s/image, about 7 s left",
        "[5/5] 5.0 s/image",
    ]


def test_a_terminal_shows_images_made_at_the_same_time() -> None:
    screen = console(terminal=True)
    times = iter([0.0, 0.0, 0.5, 1.0])
    with ImageProgress(8, console=screen, clock=lambda: next(times)) as progress:
        for _ in range(2):
            progress.image_done()
        with progress.paused():
            pass
        assert "2 of 8" in text(screen)
        assert "2.0 s/image" not in text(screen)
        assert "2.0 images/s, about 3 s left" in text(screen)


@pytest.mark.parametrize(("total", "shown"), [(1, True), (5, False)])
def test_a_log_file_gets_nothing_of_one_image_or_if_it_was_not_asked_for(
    total: int, shown: bool
) -> None:
    log = console(terminal=False)
    with ImageProgress(total, shown=shown, console=log) as progress:
        progress.batch_done(1)
    assert text(log) == ""


def test_a_terminal_shows_steps_images_and_the_time_left() -> None:
    screen = console(terminal=True)
    times = iter([0.0, 0.0, 10.0, 20.0, 30.0])
    with ImageProgress(4, console=screen, clock=lambda: next(times)) as progress:
        assert progress.is_live
        progress.step(Step(4, [0, 0]), 10)  # type: ignore[arg-type]
        with progress.paused():
            pass
        assert "Images 1 to 2 of 4" in text(screen)
        assert "step 5 of 10, about 30 s left" in text(screen)
        progress.batch_done(2)
        progress.step(Step(4, [0]), 10)  # type: ignore[arg-type]
    assert "Image 3 of 4" in text(screen)
    assert "step 5 of 10, 10.0 s/image, about 12 s left" in text(screen)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.1, "1 s"), (59.4, "59 s"), (59.6, "1 min"), (1260, "21 min"), (12_000, "3 h 20 min")],
)
def test_rough_durations(value: float, told: str) -> None:
    assert rough_duration(value) == told
