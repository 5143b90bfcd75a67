"""The process: clients that vanish or stall, signals, and an end that loses nothing silently."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from kdrt.errors import KdrtError
from kdrt.serve.remote import RemoteService
from kdrt.serve.server import serve
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServerSettings, ServiceSettings
from tests.support.replicas import FakeReplica, FakeReplicas
from tests.support.serving import running, until, value_of, waiting_model

LONG = {"prompt": "a red circle", "steps": 60}
SHORT = {"prompt": "a red circle", "steps": 2}


@pytest.fixture(scope="module")
def url(service: ImageService) -> Iterator[str]:
    with running(service, ServerSettings(stall=0.5)) as url:
        yield url


def posted(url: str, body: dict[str, object]) -> socket.socket:
    """A connection that has asked for images, and takes no answer."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/generate HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection((parts.hostname, parts.port or 80))
    connection.sendall(head.encode() + content)
    return connection


def gone(service: ImageService) -> float:
    return value_of(service, "kdrt_errors_total", kind="client_gone")


def test_a_client_that_vanishes_cancels_its_request(url: str, service: ImageService) -> None:
    before, made = gone(service), value_of(service, "kdrt_images_total", model="demo")
    with waiting_model(service):
        connection = posted(url, LONG)
        until(lambda: service.model().queue.waiting == 1)
        connection.close()
    until(lambda: gone(service) == before + 1)
    assert service.model().queue.waiting == service.model().queue.running == 0
    assert value_of(service, "kdrt_images_total", model="demo") == made


def test_a_client_that_leaves_a_stream_cancels_its_request(url: str, service: ImageService) -> None:
    before, made = gone(service), value_of(service, "kdrt_images_total", model="demo")
    ticks = value_of(service, "kdrt_tick_images_sum", model="demo")
    with httpx.stream("POST", f"{url}/v1/generate", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        until(lambda: next(lines) == "event: step")
    until(lambda: service.model().queue.running == 0)
    assert gone(service) == before + 1
    assert value_of(service, "kdrt_images_total", model="demo") == made
    assert value_of(service, "kdrt_tick_images_sum", model="demo") - ticks < 60


def test_others_are_not_held_up_by_those_that_vanish(url: str) -> None:
    for _ in range(5):
        posted(url, LONG).close()
    # Until their places are free again, others are told to come again.
    until(lambda: httpx.post(f"{url}/v1/generate", json=SHORT, timeout=60).status_code == 200)


def test_a_client_that_sends_no_end_is_let_go(url: str, service: ImageService) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        head = f"POST /v1/generate HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        head += "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
        connection.sendall(head.encode())
        connection.settimeout(30)
        answer = connection.recv(1000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert value_of(service, "kdrt_errors_total", kind="stalled") == 1


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100, b"A" * 100_000]
)
def test_garbage_ends_its_own_connection_only(url: str, garbage: bytes) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(garbage)
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_an_address_that_cannot_be_listened_on(demo_bundle: Path) -> None:
    service = ImageService([ModelSettings(bundle=str(demo_bundle))])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(KdrtError, match=rf"port {port}: Address already in use; choose"):
            serve(service, ServerSettings(port=port), print)


def test_a_model_that_cannot_be_loaded_ends_the_server(demo_bundle: Path) -> None:
    settings = ServiceSettings(engine="torch")
    service = ImageService([ModelSettings(bundle=str(demo_bundle))], settings)
    with pytest.raises(KdrtError, match="torch"):
        serve(service, ServerSettings(port=0), lambda url: None)


def test_what_can_never_make_images_again_ends_the_server(demo_bundle: Path) -> None:
    models = [ModelSettings(bundle=str(demo_bundle))]
    service = RemoteService(models, ServiceSettings(), FakeReplicas(FakeReplica()))

    def fail(url: str) -> None:
        service.on_failure(KdrtError("worker 1 cannot be started"))

    with pytest.raises(KdrtError, match="worker 1 cannot be started"):
        serve(service, ServerSettings(port=0), fail)


@contextmanager
def process(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``kdrt serve`` in a process of its own, ready, and its URL."""
    command = [sys.executable, "-m", "kdrt", "serve", str(bundle), "--port", "0", *options]
    started = subprocess.Popen(
        [*command, "--threads", "1", "--no-warmup", "--log-format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert started.stdout is not None
        match = re.search(r"http://[\d.:]+", started.stdout.readline())
        assert match is not None
        url = match[0]
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield started, url
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_signal_ends_it_while_it_loads(demo_bundle: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "kdrt", "serve", str(demo_bundle), "--port", "0"]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert server.stdout is not None
        url = re.search(r"http://[\d.:]+", server.stdout.readline())
        assert url is not None
        until(lambda: httpx.get(f"{url[0]}/healthz").status_code == 200)
        time.sleep(seconds)
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    finally:
        server.kill()
    assert (server.returncode, "Traceback" in log) == (0, False)


def test_a_signal_lets_what_runs_finish_and_refuses_what_comes(demo_bundle: Path) -> None:
    answers: list[httpx.Response] = []
    body = {**LONG, "steps": 150}

    def ask(url: str) -> None:
        answers.append(httpx.post(f"{url}/v1/generate", json=body, timeout=120))

    with process(demo_bundle) as (server, url):
        asking = threading.Thread(target=ask, args=(url,))
        asking.start()
        until(lambda: 'kdrt_images_running{model="demo"} 1.0' in metrics(url))
        with httpx.Client() as client:
            server.send_signal(signal.SIGTERM)
            until(lambda: client.get(f"{url}/readyz").status_code == 503)
            refused = client.post(f"{url}/v1/generate", json=SHORT)
        asking.join()
        _, log = server.communicate(timeout=60)
    assert [answer.status_code for answer in answers] == [200]
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "shutting_down"
    assert server.returncode == 0
    assert "Traceback" not in log


def test_what_is_not_finished_in_time_is_told_so(demo_bundle: Path) -> None:
    answers: list[httpx.Response] = []
    body = {"prompt": ["a red circle"] * 10, "steps": 150}

    def ask(url: str) -> None:
        answers.append(httpx.post(f"{url}/v1/generate", json=body, timeout=120))

    with process(demo_bundle, "--grace", "0") as (server, url):
        asking = threading.Thread(target=ask, args=(url,))
        asking.start()
        until(lambda: 'kdrt_images_running{model="demo"} 0.0' not in metrics(url))
        server.send_signal(signal.SIGINT)
        asking.join()
        _, log = server.communicate(timeout=60)
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "shutting_down"
    assert server.returncode == 0
    assert "Traceback" not in log


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics").text
