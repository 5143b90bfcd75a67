"""Connections that stand still are ended, and those that work are left alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from kdrt.serve.connections import bounded_protocol

STALL = 0.05
HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n"
ANSWER = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[], Awaitable[Streams]]


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after much longer than a client may do nothing."""
    await asyncio.sleep(6 * STALL)
    await at_once(scope, receive, send)


async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a look at the body."""
    await send(ANSWER)
    await send({"type": "http.response.body"})


async def broken_off(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends more than the buffers hold, and gives up."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(2**25), "more_body": True})


@asynccontextmanager
async def listening(
    app: object, most: int = 10, stall: float = STALL
) -> AsyncIterator[tuple[Open, ServerState]]:
    """A server of an application: what opens a connection to it, and what it has open."""
    config = uvicorn.Config(app, lifespan="off", log_config=None)  # type: ignore[arg-type]
    config.load()
    state = ServerState()
    protocol = bounded_protocol(stall, most)
    server = await asyncio.get_running_loop().create_server(
        lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )

    async def connection() -> Streams:
        mine = socket.socket()
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        mine.connect(server.sockets[0].getsockname())
        return await asyncio.open_connection(sock=mine, limit=4096)

    async with server:
        yield connection, state


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All until the server ends the connection."""
    async with asyncio.timeout(30):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_connection_without_a_request_is_ended() -> None:
    async def main() -> None:
        async with listening(at_once) as (connection, state):
            (reader, writer), (other, other_writer) = await connection(), await connection()
            other_writer.write(HEAD)
            assert await rest(reader) == await rest(other) == b""
            await until(lambda: not state.connections)
            writer.close()
            other_writer.close()

    asyncio.run(main())


def test_a_head_that_never_ends_does_not_keep_it_open() -> None:
    async def main() -> None:
        async with listening(at_once) as (connection, _):
            reader, writer = await connection()
            writer.write(HEAD)
            ended = asyncio.ensure_future(rest(reader))
            while not ended.done():
                writer.write(b"x: y\r\n")
                await asyncio.sleep(STALL / 5)
            assert await ended == b""
            writer.close()

    asyncio.run(main())


def test_nor_does_the_rest_of_a_body_that_was_refused() -> None:
    async def main() -> None:
        async with listening(at_once) as (connection, _):
            reader, writer = await connection()
            writer.write(HEAD + b"\r\n")
            assert await reader.readuntil(b"\r\n\r\n")
            writer.write(b"a")  # after which uvicorn does not wait for anything in particular
            assert await rest(reader) == b""
            writer.close()

    asyncio.run(main())


def test_a_request_may_take_longer() -> None:
    async def main() -> None:
        async with listening(slow) as (connection, _):
            reader, writer = await connection()
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(main())


def test_an_answer_that_nobody_takes_does_not_keep_it_open() -> None:
    async def main() -> None:
        async with listening(broken_off) as (connection, state):
            _, writer = await connection()
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: len(state.connections) == 1)
            await until(lambda: not state.connections)
            writer.transport.abort()

    asyncio.run(main())


def test_more_than_so_many_are_told_to_come_again() -> None:
    async def main() -> None:
        async with listening(at_once, most=2, stall=60) as (connection, state):
            kept = [await connection() for _ in range(2)]
            await until(lambda: len(state.connections) == 2)
            reader, writer = await connection()
            answer = await rest(reader)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after" in answer
            for _, each in (*kept, (reader, writer)):
                each.close()

    asyncio.run(main())
