"""How far a series of images is: a bar on a terminal; in a log file a line for each batch, or every
ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kdrt.common.units import duration, rough_duration

if TYPE_CHECKING:
    from kdrt import PreviewStep

_LOG_EVERY = 10.0
"""Seconds between lines in a log file, where images are not made in batches."""


class ImageProgress:
    """Progress on standard error.

    Attributes:
        is_live: there is a bar, so that every step should be told.

    Args:
        total: how many images there will be.
        shown: whether to tell anything.
        console: where to.
        clock: gives seconds.
    """

    def __init__(
        self,
        total: int,
        *,
        shown: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self.is_live = shown and self._console.is_terminal
        self._is_logged = shown and not self.is_live and total > 1
        self._total = total
        self._done = 0
        self._clock = clock
        self._started = self._logged = clock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self.is_live,
        )
        self._task = self._bar.add_task("Sampling", total=total, detail="")

    def __enter__(self) -> ImageProgress:
        self._started = self._logged = self._clock()
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing more will be told."""
        self._bar.stop()

    def step(self, step: PreviewStep, steps: int) -> None:
        """A step of a batch was taken, of so many."""
        images = len(step.latents)
        done = self._done + images * (step.index + 1) / steps
        self._bar.update(
            self._task,
            completed=done,
            description=self._numbers(images),
            detail=f"step {step.index + 1} of {steps}{self._times(done)}",
        )

    def batch_done(self, images: int) -> None:
        """So many more images are saved."""
        self._done += images
        self._bar.update(self._task, completed=self._done)
        if self._is_logged:
            told = self._times(self._done).removeprefix(", ")
            self._console.print(f"[{self._done}/{self._total}] {told}", markup=False)

    def image_done(self) -> None:
        """One more image is saved, of several that are made at the same time."""
        self._done += 1
        now = self._clock()
        told = self._times(self._done, now).removeprefix(", ")
        self._bar.update(
            self._task,
            completed=self._done,
            description=f"{self._done} of {self._total}",
            detail=told,
        )
        is_due = now - self._logged >= _LOG_EVERY or self._done == self._total
        if self._is_logged and is_due:
            self._logged = now
            self._console.print(f"[{self._done}/{self._total}] {told}", markup=False)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Something else may be printed within the block."""
        self._bar.stop()
        yield
        self._bar.start()

    def _numbers(self, images: int) -> str:
        if self._total == 1:
            return "Sampling"
        first, last = self._done + 1, min(self._done + images, self._total)
        numbers = f"Image {first}" if first == last else f"Images {first} to {last}"
        return f"{numbers} of {self._total}"

    def _times(self, done: float, now: float | None = None) -> str:
        """Seconds an image, and how long the rest will take if it goes on like this."""
        elapsed = (self._clock() if now is None else now) - self._started
        told = f", {_pace(elapsed, self._done)}" if self._done else ""
        if done >= self._total:
            return told
        return f"{told}, about {rough_duration(elapsed * (self._total - done) / done)} left"


def _pace(seconds: float, images: int) -> str:
    """``2.0 s/image``, or ``4.5 images/s``."""
    if seconds < images:
        return f"{images / max(seconds, 1e-9):.1f} images/s"
    return f"{duration(seconds / images)}/image"
