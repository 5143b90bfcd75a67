"""Requests that come whether or not those before them were answered."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator

import pytest

from kdrt_bench.soak.arrivals import closed_loop, offer, poisson_times


def test_the_times_are_those_of_a_poisson_process() -> None:
    """Their number has variance and mean alike; ten standard deviations are room enough."""
    times = poisson_times(20.0, 500.0, random.Random(3))
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 500
    assert abs(len(times) - 10_000) < 10 * 100
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    # Exponential: a share of 1/e is longer than the mean.
    assert sum(gap > 0.05 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)
    with pytest.raises(ValueError, match="positive"):
        poisson_times(0, 1, random.Random(0))


def test_what_would_be_too_many_is_left_out() -> None:
    async def main() -> tuple[int, int, list[int]]:
        asked: list[int] = []
        offered = 0
        release = asyncio.Event()

        async def ask(number: int, due: float) -> None:
            asked.append(number)
            await release.wait()

        def times() -> Iterator[float]:
            """Four while both places are taken, and then more until one is free."""
            nonlocal offered
            for offered in range(1, 1000):
                if offered == 5:
                    release.set()
                if len(asked) == 3:
                    return
                yield 0.0

        return await offer(times(), ask, most=2), offered - 1, asked

    left_out, offered, asked = asyncio.run(main())
    assert asked[:2] == [0, 1]
    assert 4 <= asked[2] < 20
    assert left_out == offered - len(asked)


class Enough(Exception):
    """There were as many requests as a test needs."""


def test_a_client_asks_again_when_it_was_answered() -> None:
    async def main() -> tuple[int, int]:
        under_way = most = asked = 0

        async def ask(number: int, due: float) -> None:
            nonlocal under_way, most, asked
            asked, under_way = asked + 1, under_way + 1
            most = max(most, under_way)
            if asked == 10:
                raise Enough
            await asyncio.sleep(0)
            under_way -= 1

        await closed_loop(0.0, 3, ask)
        assert not asked  # the time is over
        try:
            await closed_loop(3600.0, 3, ask)
        except* Enough:
            pass
        return most, asked

    most, asked = asyncio.run(main())
    assert most == 3
    assert asked >= 10
