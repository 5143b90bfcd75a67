"""Honest and rude clients against a real server: what they say is what happened."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServerSettings, ServiceSettings
from kdrt_bench.soak.asks import MIX, ClientRequest
from kdrt_bench.soak.honest import NO_ANSWER, Clients
from kdrt_bench.soak.rude import HUNG_UP, KINDS, LEFT, RudeClients
from tests.support.serving import running, until

STALL = 0.2


@pytest.fixture(scope="module")
def service(demo_bundle: Path) -> Iterator[ImageService]:
    settings = ServiceSettings(threads=1, max_waiting=100)
    made = ImageService([ModelSettings(bundle=str(demo_bundle))], settings)
    made.load()
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(service: ImageService) -> Iterator[str]:
    with running(service, ServerSettings(stall=STALL)) as url:
        yield url


@pytest.mark.parametrize("ask", MIX, ids=lambda ask: f"{ask.dialect}-{ask.images}")
def test_every_request_of_the_mix_is_answered_wholly(url: str, ask: ClientRequest) -> None:
    async def main() -> None:
        async with aclosing(Clients(url, connections=1, patience=60)) as clients:
            outcome = await clients.ask(ask, 7)
        assert (outcome.status, outcome.problem) == (200, None)
        assert len(outcome.images) == ask.images

    asyncio.run(main())


def test_an_answer_that_does_not_come_is_written_down() -> None:
    async def main() -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            async with aclosing(Clients(url, connections=1, patience=5)) as clients:
                now = time.monotonic()
                await clients.ask_something(1, now, now - 3)
        (answered,) = clients.answered
        assert (answered.status, answered.images) == (NO_ANSWER, 0)
        assert answered.due == pytest.approx(3)
        assert (answered.problem or "").startswith("no answer")

    asyncio.run(main())


def test_a_server_that_is_gone_leaves_no_socket_open() -> None:
    with socket.socket() as taken:  # and nobody listens
        taken.bind(("127.0.0.1", 0))
        rude = RudeClients(taken.getsockname()[1], patience=5.0)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", ResourceWarning)
            asyncio.run(rude.do("broken JSON"))
            gc.collect(1)
    assert [each.status for each in rude.seen] == [HUNG_UP]
    assert not warned


ENDS = {
    "broken JSON": 400,
    "no HTTP": 400,
    "a head of 200 kB": 400,
    "bytes that are no image": 400,
    "a torn image": 400,
    "an image of 64 megapixels": 400,
    "a million steps": 400,
    "stalls before the head": HUNG_UP,
    "stalls within the head": HUNG_UP,
    "stalls within the body": 408,
    "drips its body": 408,
}


def test_rude_clients_are_told_or_let_go(url: str, service: ImageService) -> None:
    async def main() -> dict[str, int]:
        rude = RudeClients(int(url.rpartition(":")[2]), patience=5.0)
        kinds = [*ENDS, *(kind for kind in KINDS if kind.startswith("vanishes"))]
        await asyncio.gather(*map(rude.do, kinds))
        return {each.kind: each.status for each in rude.seen}

    seen = asyncio.run(main())
    left = {kind: status for kind, status in seen.items() if kind not in ENDS}
    assert {kind: seen[kind] for kind in ENDS} == ENDS
    assert len(left) == 5
    assert set(left.values()) == {LEFT}
    queue = service.model().queue
    until(lambda: queue.waiting == queue.running == 0)
