"""What clients of this API have asked for and not got yet: for progress, and to interrupt it.

The web UI makes one request after the other for one person. Here everyone has their own: those who
come with the same key, or without keys the programs of this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from kdrt.batching.handle import ImageStep
from kdrt.errors import KdrtError
from kdrt.serve.a1111.bodies import ImagesBody
from kdrt.serve.errors import InterruptedRequestError
from kdrt.serve.images import base64_of
from kdrt.serve.submission import Submission


class Job:
    """A request that is made.

    Attributes:
        timestamp: when it came, as the web UI writes it.

    Args:
        submission: that is watched.
        body: what was asked for.
        has_previews: whether its unfinished images may be shown.
    """

    def __init__(self, submission: Submission, body: ImagesBody, *, has_previews: bool) -> None:
        self.timestamp = f"{datetime.now():%Y%m%d%H%M%S}"
        self._submission = submission
        self._body = body
        self._has_previews = has_previews
        self._begun: float | None = None
        self._taken = 0
        """Steps of all images."""
        self._newest: ImageStep | None = None
        self._is_interrupted = False

    async def follow(self) -> None:
        """Keep the newest step, until there are no more."""
        async for step in self._submission:
            if self._begun is None:
                self._begun = time.monotonic()
            self._taken += 1
            self._newest = step

    def end(self) -> None:
        """Nobody asks about it any more."""
        self._submission.was_read()

    def interrupt(self) -> None:
        """End it at the next step."""
        self._is_interrupted = True
        self._submission.cancel(InterruptedRequestError("the request was interrupted"))

    def told(self, jobs: int) -> dict[str, Any]:
        """The progress as the web UI tells it, without a picture.

        Args:
            jobs: how many there are with this one.
        """
        steps, taken = self._submission.steps, self._taken
        # Samplers that choose their steps may take more.
        total = max(taken, steps * self._submission.images)
        elapsed = 0.0 if self._begun is None else time.monotonic() - self._begun
        # The first step was taken before the clock was started.
        left = 0.0 if taken < 2 else elapsed / (taken - 1) * (total - taken)
        state = {
            "skipped": False,
            "interrupted": self._is_interrupted,
            "stopping_generation": False,
            "job": self._body.force_task_id or "",
            "job_count": jobs,
            "job_timestamp": self.timestamp,
            "job_no": 0,
            "sampling_step": 0 if self._newest is None else self._newest.index + 1,
            "sampling_steps": steps,
        }
        return {
            "progress": taken / total,
            "eta_relative": left,
            "state": state,
            "current_image": None,
            "textinfo": None,
            "current_task": self._body.force_task_id,
        }

    def picture(self) -> str | None:
        """The newest look at the image, as base64 of a PNG; None where there is none, or it fails.
        Takes some milliseconds."""
        if self._newest is None or not self._has_previews:
            return None
        try:
            return base64_of(self._newest.preview()[0], "png")
        except KdrtError:  # such as that the image was made meanwhile, and its model unloaded
            return None


class Jobs:
    """All of them, by owner and in order."""

    def __init__(self) -> None:
        self._running: dict[str, list[Job]] = {}

    @contextmanager
    def running(self, owner: str, job: Job) -> Iterator[None]:
        """Within the block a job is there, and followed."""
        jobs = self._running.setdefault(owner, [])
        jobs.append(job)
        following = asyncio.ensure_future(job.follow())
        try:
            yield
        finally:
            following.cancel()
            jobs.remove(job)
            job.end()
            if not jobs:
                self._running.pop(owner, None)

    def of(self, owner: str) -> tuple[Job, ...]:
        """Those of an owner, the oldest first."""
        return tuple(self._running.get(owner, ()))


def nothing_runs() -> dict[str, Any]:
    """The progress where there is no job."""
    state = {
        **dict.fromkeys(("skipped", "interrupted", "stopping_generation"), False),
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        **dict.fromkeys(("job_no", "sampling_step", "sampling_steps"), 0),
    }
    return {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": state,
        "current_image": None,
        "textinfo": None,
        "current_task": None,
    }
