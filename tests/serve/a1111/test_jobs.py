"""What runs, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from kdrt.serve.a1111.bodies import TextBody
from kdrt.serve.a1111.jobs import Job, Jobs, nothing_runs
from kdrt.serve.errors import InterruptedRequestError, ReplicaLostError
from kdrt.serve.submission import Submission


class Watched:
    """In place of a submission of two images in four steps each."""

    images, steps = 2, 4

    def __init__(self, *taken: int) -> None:
        self._taken = taken
        self.reasons: list[BaseException] = []
        self.is_read = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        for index in self._taken:
            yield SimpleNamespace(index=index)

    def cancel(self, reason: BaseException) -> bool:
        self.reasons.append(reason)
        return True

    def was_read(self) -> None:
        self.is_read = True


def job_of(submission: Watched, *, has_previews: bool = False) -> Job:
    body = TextBody(force_task_id="mine")
    return Job(cast(Submission, submission), body, has_previews=has_previews)


def test_what_waits_has_no_progress() -> None:
    told = job_of(Watched()).told(2)
    assert (told["progress"], told["eta_relative"]) == (0, 0)
    assert (told["state"]["job_count"], told["state"]["sampling_step"]) == (2, 0)
    assert set(told) == set(nothing_runs())
    assert set(told["state"]) == set(nothing_runs()["state"])


def test_progress_is_that_of_all_images() -> None:
    job = job_of(Watched(0, 0, 1))
    asyncio.run(job.follow())
    told = job.told(1)
    assert told["progress"] == 3 / 8
    assert told["eta_relative"] > 0
    assert (told["state"]["sampling_step"], told["state"]["sampling_steps"]) == (2, 4)
    assert job.picture() is None


def test_a_look_that_fails_is_no_picture() -> None:
    class Lost(Watched):
        async def __aiter__(self) -> AsyncIterator[Any]:
            def preview() -> None:
                raise ReplicaLostError("the worker has ended")

            yield SimpleNamespace(index=0, preview=preview)

    job = job_of(Lost(), has_previews=True)
    asyncio.run(job.follow())
    assert job.picture() is None


def test_more_steps_than_were_planned_are_the_end() -> None:
    job = job_of(Watched(*range(20)))
    asyncio.run(job.follow())
    assert (job.told(1)["progress"], job.told(1)["eta_relative"]) == (1, 0)


def test_an_interrupted_job_is_cancelled() -> None:
    submission = Watched()
    job = job_of(submission)
    job.interrupt()
    (reason,) = submission.reasons
    assert isinstance(reason, InterruptedRequestError)
    assert job.told(1)["state"]["interrupted"]


def test_jobs_are_their_owners_and_in_order() -> None:
    async def run() -> None:
        jobs, (first, second, other) = Jobs(), (job_of(Watched()) for _ in range(3))
        with jobs.running("me", first), jobs.running("you", other):
            with jobs.running("me", second):
                assert jobs.of("me") == (first, second)
            assert jobs.of("me") == (first,)
            assert jobs.of("you") == (other,)
        assert jobs.of("me") == jobs.of("you") == ()

        watched = Watched()
        with jobs.running("me", job_of(watched)):
            assert not watched.is_read
        assert watched.is_read

    asyncio.run(run())
