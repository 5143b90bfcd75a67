"""Clients that vanish, send garbage, or stall.

They write to sockets, since no client library sends what they send. Each is told to end by the
server, or ends by itself; which of the two, and how long it took, is what is written down.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from PIL import Image

from kdrt_bench.jobs import Strict
from kdrt_bench.soak.asks import PROMPT

LEFT = -1
"""The status of a client that left by itself."""
HUNG_UP = 0
"""The status of a client that the server hung up on without a word."""
HELD = -2
"""The status of a client that did nothing, and that the server did not let go."""

_HEAD_BYTES = 200_000
_BUFFER = 4_096
"""Bytes that wait for a client that does not read: few, so that the server notices."""
_CHUNK = 2**16
_SECONDS_TO_READ = 120.0
"""For what the kernel holds of an answer that was broken off: after minutes in which nothing was
taken it asks seldom whether there is room, and 100 kB took up to 40 s."""


class Rudeness(Strict):
    """What a rude client did, and how it ended.

    Attributes:
        kind: what it did.
        status: of the answer, or one of those above.
        seconds: until its end.
    """

    kind: str
    status: int
    seconds: float


class Connection:
    """A connection of a client that does what it likes.

    Args:
        reader, writer: of asyncio.
        source: of the client's whims.
        patience: seconds after which the server should have let go a client that does nothing.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        source: random.Random,
        patience: float,
    ) -> None:
        self.random = source
        self._patience = patience
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes, as fast as they are taken."""
        self._writer.write(data)
        await self._writer.drain()

    async def whim(self, most: float) -> None:
        """Wait for as long as one likes, up to ``most`` seconds."""
        await asyncio.sleep(self.random.uniform(0, most))

    async def read_some(self) -> None:
        """Take a part of an answer."""
        await self._reader.read(self.random.randrange(1, 20_000))

    async def status(self) -> int:
        """Wait for the first line of an answer."""
        try:
            line = await asyncio.wait_for(self._reader.readline(), self._patience)
        except TimeoutError:
            return HELD
        words = line.split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else HUNG_UP

    async def dripping(self, drop: bytes) -> int:
        """The same, and meanwhile send a little now and then."""
        waiting = asyncio.ensure_future(self.status())
        while not (await asyncio.wait((waiting,), timeout=self._patience / 30))[0]:
            with suppress(OSError):
                await self.send(drop)
        return waiting.result()

    async def reading_late(self) -> int:
        """Take nothing for as long as one may, and then all that is there: of a connection that
        the server has ended, that has an end. The request waits its turn, then it takes a while
        until there is more of an answer than fits on the way, and only then does it stand still:
        under load each may take as long as the server is patient."""
        await asyncio.sleep(3 * self._patience)
        try:
            async with asyncio.timeout(_SECONDS_TO_READ):
                while await self._reader.read(_CHUNK):
                    pass
        except TimeoutError:
            return HELD
        return HUNG_UP


def _post(body: bytes, path: str = "/v1/generate", length: int | None = None) -> bytes:
    """A request of JSON, which may say that it is longer than it is."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def _generate(**fields: Any) -> bytes:
    return _post(json.dumps({"prompt": PROMPT, "steps": 40, **fields}).encode())


def _blank_png(side: int) -> bytes:
    """A small file of many pixels."""
    data = io.BytesIO()
    Image.new("1", (side, side)).save(data, "PNG", optimize=True)
    return data.getvalue()


_BOMB = base64.b64encode(_blank_png(5_000)).decode()
"""25 million pixels in a few kilobytes: as many as the server reads."""
_LARGER_BOMB = base64.b64encode(_blank_png(8_000)).decode()
"""More than it reads."""


async def _vanish_at_once(client: Connection) -> int:
    return LEFT


async def _vanish_in_head(client: Connection) -> int:
    whole = _generate()
    await client.send(whole[: client.random.randrange(1, whole.index(b"\r\n\r\n"))])
    await client.whim(0.5)
    return LEFT


async def _vanish_in_body(client: Connection) -> int:
    await client.send(_generate()[:-5])
    await client.whim(0.5)
    return LEFT


async def _vanish_while_waiting(client: Connection) -> int:
    await client.send(_generate(images_per_prompt=2))
    await client.whim(3)
    return LEFT


async def _vanish_in_stream(client: Connection) -> int:
    await client.send(_generate(stream=True))
    await client.whim(1)
    await client.read_some()
    return LEFT


async def _broken_json(client: Connection) -> int:
    await client.send(_post(b'{"prompt": "a red cir' + client.random.randbytes(20)))
    return await client.status()


async def _broken_http(client: Connection) -> int:
    await client.send(client.random.randbytes(200) + b"\r\n\r\n")
    return await client.status()


async def _huge_head(client: Connection) -> int:
    await client.send(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"y" * _HEAD_BYTES)
    return await client.status()


async def _no_image(client: Connection) -> int:
    noise = base64.b64encode(client.random.randbytes(3_000)).decode()
    await client.send(_generate(image=noise))
    return await client.status()


async def _torn_image(client: Connection) -> int:
    torn = base64.b64encode(_blank_png(500)[:-20]).decode()
    await client.send(_generate(image=torn, width=64, height=64))
    return await client.status()


async def _bomb(client: Connection) -> int:
    await client.send(_generate(image=_BOMB, width=64, height=64, steps=2))
    return await client.status()


async def _larger_bomb(client: Connection) -> int:
    await client.send(_generate(image=_LARGER_BOMB, width=64, height=64))
    return await client.status()


async def _too_much(client: Connection) -> int:
    await client.send(_generate(steps=10**6, width=8_192, height=8_192))
    return await client.status()


async def _stall_silent(client: Connection) -> int:
    return await client.status()


async def _stall_in_head(client: Connection) -> int:
    """A head without end, a few bytes at a time."""
    await client.send(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\n")
    return await client.dripping(b"x-more: 1\r\n")


async def _stall_in_body(client: Connection) -> int:
    await client.send(_post(b'{"prompt": ', length=1_000))
    return await client.status()


async def _drip_body(client: Connection) -> int:
    """A body that never ends, a byte at a time."""
    await client.send(_post(b'{"prompt": ', length=1_000))
    return await client.dripping(b" ")


async def _stall_reading(client: Connection) -> int:
    """Asks for more than fits into the buffers on the way, and takes none of it."""
    await client.send(_generate(stream=True, steps=100, images_per_prompt=2))
    return await client.reading_late()


KINDS: Mapping[str, Callable[[Connection], Awaitable[int]]] = {
    "vanishes at once": _vanish_at_once,
    "vanishes within the head": _vanish_in_head,
    "vanishes within the body": _vanish_in_body,
    "vanishes while it waits": _vanish_while_waiting,
    "vanishes from a stream": _vanish_in_stream,
    "broken JSON": _broken_json,
    "no HTTP": _broken_http,
    "a head of 200 kB": _huge_head,
    "bytes that are no image": _no_image,
    "a torn image": _torn_image,
    "an image of 25 megapixels": _bomb,
    "an image of 64 megapixels": _larger_bomb,
    "a million steps": _too_much,
    "stalls before the head": _stall_silent,
    "stalls within the head": _stall_in_head,
    "stalls within the body": _stall_in_body,
    "drips its body": _drip_body,
    "stalls while it is answered": _stall_reading,
}


class RudeClients:
    """Many rude clients in one event loop.

    Attributes:
        seen: what they did, in the order in which it ended.

    Args:
        port: of the server, on this machine.
        patience: seconds after which the server should have let go a client that does nothing.
        seed: of what they do.
    """

    def __init__(self, port: int, patience: float, seed: int = 0) -> None:
        self.seen: list[Rudeness] = []
        self._port = port
        self._patience = patience
        self._random = random.Random(seed)

    async def do_something(self) -> None:
        """Have a client come, do one of `KINDS`, and go."""
        await self.do(self._random.choice(list(KINDS)))

    async def do(self, kind: str) -> None:
        """Have a client come and do that."""
        begun = time.monotonic()
        try:
            status = await self._status(kind)
        except OSError:
            status = HUNG_UP
        seconds = time.monotonic() - begun
        self.seen.append(Rudeness(kind=kind, status=status, seconds=seconds))

    async def _status(self, kind: str) -> int:
        mine = socket.socket()
        try:
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            mine.setblocking(False)
            await asyncio.get_running_loop().sock_connect(mine, ("127.0.0.1", self._port))
            reader, writer = await asyncio.open_connection(sock=mine, limit=_BUFFER)
        except BaseException:
            mine.close()
            raise
        try:
            client = Connection(reader, writer, self._random, self._patience)
            return await KINDS[kind](client)
        finally:
            writer.transport.abort()
