"""What every request has: an id, a line in the log, an answer whatever happens."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from kdrt.images.metadata import MetadataWarning
from kdrt.prompt import PromptSyntaxWarning, TruncationWarning
from kdrt.serve.app import create_app
from kdrt.serve.context import RequestContext
from kdrt.serve.log import request_id, start_logging
from kdrt.serve.responses import Faults
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings
from tests.support.serving import client_of, value_of


def test_an_id_is_given_or_kept(client: TestClient) -> None:
    ids = [client.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert len({*ids}) == 2
    kept = client.get("/healthz", headers={"x-request-id": "front.7_a-B"})
    assert kept.headers["x-request-id"] == "front.7_a-B"


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "a=b"])
def test_an_id_that_could_forge_a_line_is_not_kept(client: TestClient, given: str) -> None:
    answer = client.get("/healthz", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] != given


def test_errors_have_an_id_too(client: TestClient) -> None:
    for path in ("/nothing", "/v1/models/nothing"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert answer.headers["x-request-id"]
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.delete("/v1/generate").status_code == 405


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What a server logs as JSON."""
    before = {
        name: (logger.handlers, logger.level, logger.propagate)
        for name in ("kdrt.serve", "kdrt", "uvicorn", "asyncio")
        for logger in [logging.getLogger(name)]
    }
    stream = io.StringIO()
    start_logging("json", stream)
    yield stream
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_a_request_is_a_line_of_the_log(client: TestClient, lines: io.StringIO) -> None:
    client.get("/v1/models/nothing?secret=1", headers={"x-request-id": "seven"})
    entries = [json.loads(line) for line in lines.getvalue().splitlines()]
    refused, answered = entries
    assert (refused["request_id"], refused["kind"]) == ("seven", "model_not_found")
    assert answered["request_id"] == "seven"
    assert (answered["method"], answered["path"]) == ("GET", "/v1/models/nothing")
    assert answered["status"] == 404
    assert answered["seconds"] >= 0
    assert request_id.get() == ""


def test_warnings_of_a_prompt_are_for_clients_alone(lines: io.StringIO) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        start_logging("json", lines)
        of_requests = PromptSyntaxWarning("look", "out"), TruncationWarning(), MetadataWarning()
        for each in (*of_requests, UserWarning()):
            warnings.warn(each, stacklevel=1)
    assert [each.category for each in warned] == [UserWarning]


def test_a_body_that_comes_in_drops_is_not_waited_for(service: ImageService) -> None:
    """Each comes in time, and all of them never end."""

    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass

    async def drop() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def main() -> list[Message]:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": []}
        async with asyncio.timeout(30):
            await RequestContext(read, Faults(service, {}), stall=0.05)(scope, drop, send)
        return sent

    assert asyncio.run(main())[0]["status"] == 408


def test_a_request_that_the_end_of_the_server_cancels_is_answered(service: ImageService) -> None:
    """Were the cancellation to go on, the server would log a traceback and answer 500."""
    sent: list[Message] = []

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/generate", "headers": []}
        context = RequestContext(wait, Faults(service, {}), stall=30)
        answering = asyncio.ensure_future(context(scope, receive, send))
        await asyncio.sleep(0)
        answering.cancel()
        await answering

    asyncio.run(main())
    assert sent[0]["status"] == 503
    assert b"shutting_down" in sent[1]["body"]


def test_that_it_is_not_ready_yet_is_no_warning(demo_bundle: Path, lines: io.StringIO) -> None:
    """Whoever asks every second whether it is must not fill the log with them."""
    loading = ImageService([ModelSettings(bundle=str(demo_bundle))])
    with client_of(create_app(loading)) as client:
        assert client.get("/readyz").status_code == 503
    entries = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [entry["level"] for entry in entries] == ["INFO", "INFO"]
    assert entries[0]["kind"] == "not_ready"


def test_what_the_event_loop_says_is_a_line_too(lines: io.StringIO) -> None:
    logging.getLogger("asyncio").error("socket.accept() out of system resource")
    (entry,) = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert (entry["logger"], entry["level"]) == ("asyncio", "ERROR")


def test_a_fault_of_ours_is_a_sentence_and_its_traceback_is_in_the_log(
    service: ImageService, lines: io.StringIO
) -> None:
    app = create_app(service)

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("in /home/someone")

    before = value_of(service, "kdrt_errors_total", kind="internal_error")
    with client_of(app) as client:
        answer = client.get("/broken")
    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    assert "someone" not in answer.text
    logged = json.loads(lines.getvalue().splitlines()[0])
    assert "ZeroDivisionError: in /home/someone" in logged["traceback"]
    assert logged["request_id"] == answer.headers["x-request-id"]
    assert value_of(service, "kdrt_errors_total", kind="internal_error") - before == 1
