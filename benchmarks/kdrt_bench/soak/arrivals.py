"""Requests at random times, with a bound on how many are under way."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable


def poisson_times(rate: float, seconds: float, source: random.Random) -> list[float]:
    """The times of a Poisson process of ``rate`` a second, from 0 to ``seconds``.

    Raises:
        ValueError: the rate is not positive.
    """
    if rate <= 0:
        raise ValueError("the rate must be positive")
    times: list[float] = []
    now = source.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += source.expovariate(rate)
    return times


async def offer(
    times: Iterable[float], ask: Callable[[int, float], Awaitable[None]], most: int
) -> int:
    """Start a request at each time, whether or not those before it are answered, and wait for all.

    Args:
        times: in seconds from now, ascending.
        ask: makes the request with a number; it is given when it was due, by the loop's clock.
        most: under way at once. What would be more is left out, so that neither side runs out of
            file descriptors.

    Returns:
        How many were left out.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    under_way: set[asyncio.Task[None]] = set()
    left_out = 0

    async def one(number: int, due: float) -> None:
        await ask(number, due)

    async with asyncio.TaskGroup() as group:
        for number, time in enumerate(times):
            await asyncio.sleep(max(0.0, start + time - loop.time()))
            if len(under_way) >= most:
                left_out += 1
                continue
            task = group.create_task(one(number, start + time))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    return left_out


async def closed_loop(
    seconds: float, clients: int, ask: Callable[[int, float], Awaitable[None]]
) -> None:
    """As many clients as that, each of which asks again as soon as it was answered, until the time
    is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    number = 0

    async def client() -> None:
        nonlocal number
        while loop.time() < end:
            number += 1
            await ask(number, loop.time())

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
