"""The images of a model that wait and run, and how fast they are made.

Pure counting: what a batcher did is told, in whatever thread, and the time is given.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

from kdrt.serve.errors import QueueFullError

_NEWEST = 0.2
"""Weight of the newest images in the mean of their time."""

_UNKNOWN_SECONDS = 5
"""When to try again before an image was made, however many wait: nobody knows how long they
take."""

_LONGEST_RETRY = 600


@dataclass(slots=True)
class Place:
    """A request in the queue.

    Attributes:
        images: how many it is about.
        arrived: when.
        on_begin: is told of so many more that have begun; it must be quick.
        admitted: how many of them have begun.
        begun: when the first of them did; None if none has.
    """

    images: int
    arrived: float
    on_begin: Callable[[int], object] | None = None
    admitted: int = 0
    begun: float | None = None


class WaitingQueue:
    """Counts images, and refuses those that would wait too long.

    Args:
        most_waiting: images with which the queue is full.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._waiting = 0
        self._running = 0
        self._seconds_per_image: float | None = None
        self._last = 0.0
        """When an image was made last, or when the first began after a pause."""

    @property
    def waiting(self) -> int:
        """Images that have not begun."""
        return self._waiting

    @property
    def running(self) -> int:
        """Images that have begun, and are not over."""
        return self._running

    def enter(
        self, images: int, now: float, on_begin: Callable[[int], object] | None = None
    ) -> Place:
        """Take a place. A request is let in as long as there is a place for one of its images: were
        there to be places for all of them, those for many would seldom be let in where others for
        one take every place that becomes free.

        Raises:
            QueueFullError: too many images wait. Most of them have begun when it says to try again.
        """
        with self._lock:
            if self._waiting >= self._most_waiting:
                retry_after = self._seconds(self._waiting)
                raise QueueFullError(
                    f"{self._waiting} images wait already; try again in {retry_after} s",
                    retry_after,
                )
            self._waiting += images
        return Place(images, now, on_begin)

    def admit(self, place: Place, images: int, now: float) -> bool:
        """So many of its images have begun; whether they are the first of them."""
        with self._lock:
            if not self._running:
                self._last = now
            is_first = place.begun is None
            place.admitted += images
            place.begun = now if place.begun is None else place.begun
            self._waiting -= images
            self._running += images
            return is_first

    def leave(self, place: Place, now: float, *, made: bool) -> None:
        """A request is over, made or not."""
        with self._lock:
            self._waiting -= place.images - place.admitted
            self._running -= place.admitted
            if made:
                newest = max(0.0, now - self._last) / place.images
                mean = self._seconds_per_image
                self._seconds_per_image = (
                    newest if mean is None else mean + _NEWEST * (newest - mean)
                )
                self._last = now

    def _seconds(self, images: int) -> int:
        """Until so many images have begun."""
        each = self._seconds_per_image
        if each is None:
            return _UNKNOWN_SECONDS
        return min(max(1, math.ceil(images * each)), _LONGEST_RETRY)
