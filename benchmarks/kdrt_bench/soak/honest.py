"""Clients that wait for what they asked for."""

from __future__ import annotations

import random
import time

import httpx

from kdrt_bench.jobs import Strict
from kdrt_bench.soak.asks import MIX, ClientRequest, Outcome, outcome_of

NO_ANSWER = 0
"""The status of a request that was never answered."""

_IDLE = 2.0
"""Seconds that a connection is kept for the next request: less than the server keeps it, since a
request on a connection that the server is just closing is lost without anyone's fault."""


class Answered(Strict):
    """A request and how it ended.

    Attributes:
        dialect: of the request.
        status: of the answer, `NO_ANSWER` without one.
        due: seconds from the beginning of the load until it was to be sent.
        latency: seconds from then to the end of the answer.
        images: that a whole answer held, 0 of any other.
        problem: why an answer that claims success is none, or why there is none.
    """

    dialect: str
    status: int
    due: float
    latency: float
    images: int = 0
    problem: str | None = None


class Clients:
    """Many clients in one event loop, which write down what they were answered.

    Attributes:
        answered: in the order in which the answers ended.

    Args:
        url: of the server.
        connections: at once.
        patience: seconds without a byte of an answer after which it counts as lost.
        seed: of the order of the requests.
    """

    def __init__(self, url: str, connections: int, patience: float, seed: int = 0) -> None:
        self.answered: list[Answered] = []
        self._random = random.Random(seed)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(patience, pool=None),
            limits=httpx.Limits(max_connections=connections, keepalive_expiry=_IDLE),
            trust_env=False,
        )

    async def ask_something(self, number: int, due: float, start: float) -> None:
        """Send a request of the mix, and write down how it ends.

        Args:
            number: its seed.
            due: when it was to be sent, by `time.monotonic`.
            start: when the load began, by the same.
        """
        (ask,) = self._random.choices(MIX, [each.share for each in MIX])
        outcome = await self.ask(ask, number)
        self.answered.append(
            Answered(
                dialect=ask.dialect,
                status=outcome.status,
                due=due - start,
                latency=time.monotonic() - due,
                images=0 if outcome.problem else len(outcome.images),
                problem=outcome.problem,
            )
        )

    async def ask(self, ask: ClientRequest, seed: int) -> Outcome:
        """Send one request, and judge its answer."""
        body = ask.seeded(seed)
        form = {name: str(value) for name, value in body.items()}
        try:
            if ask.files:
                answer = await self._http.post(ask.path, data=form, files=ask.files)
            else:
                answer = await self._http.post(ask.path, json=body)
        except httpx.HTTPError as error:
            return Outcome(NO_ANSWER, f"no answer: {type(error).__name__}")
        return outcome_of(ask, answer.status_code, answer.content)

    async def text(self, path: str) -> str:
        """What the server answers at a path.

        Raises:
            httpx.HTTPError: nothing, or an error.
        """
        answer = await self._http.get(path)
        return answer.raise_for_status().text

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()
