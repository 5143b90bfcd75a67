"""A Ray cluster of this machine: two replicas, of which one is killed under load.

About a minute on two cores. What the kill cost is printed:

    pytest -m ray -n 0 -s tests/serve/ray/test_cluster.py
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from kdrt.errors import KdrtError
from kdrt.serve.ray import cluster
from kdrt.serve.ray.settings import Application, RaySettings
from kdrt.serve.settings import ModelSettings, ServerSettings, ServiceSettings
from tests.support.serving import events_of, image_of, until

pytest.importorskip("ray", reason="ray is an extra")

import ray
import ray.serve

from kdrt.serve.ray.app import bound

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]
CLIENTS = 8
BEFORE = 32
"""Requests that are answered before the kill, and after the replica is back."""

STEPS = 20
SERVICE = ServiceSettings(threads=1, warmup=((64, 64),))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the proxy of a cluster listens; the cluster ends with the module."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    roots = [ROOT, ROOT / "export", ROOT / "engines", ROOT / "benchmarks"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # for Ray's token
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(map(str, roots))}},
        )
        try:
            ray.serve.start(http_options={"host": "127.0.0.1", "port": port})
            yield f"http://127.0.0.1:{port}"
        finally:
            ray.serve.shutdown()
            ray.shutdown()


@pytest.fixture
def application(url: str, demo_bundle: Path) -> Iterator[str]:
    """Two replicas of the demo model: the URL."""
    settings = RaySettings(min_replicas=2, max_replicas=2, num_cpus=0.5)
    with served(Application(models=[model(demo_bundle)], service=SERVICE, ray=settings), url):
        yield url


@contextmanager
def served(application: Application, url: str) -> Iterator[None]:
    """Within the block the application runs, and is ready."""
    ray.serve.run(bound(application), name="kdrt", route_prefix="/")
    try:
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield
    finally:
        ray.serve.delete("kdrt")


def model(bundle: Path) -> ModelSettings:
    return ModelSettings(bundle=str(bundle))


def replicas() -> list[int]:
    """The processes that hold engines, by their ids."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if "ServeReplica:kdrt:images" in " ".join(each.cmdline()):
                found.append(each.pid)
    return found


@dataclass
class Answer:
    """What a client got.

    Attributes:
        began, took: seconds, from the first request and of this one.
        status: of the response.
        is_stream: whether it asked for the steps.
        ending: the name of the last event, or ``result``.
        body: the answer, or the data of the last event.
    """

    number: int
    began: float
    took: float
    status: int
    is_stream: bool
    ending: str
    body: dict[str, Any]


def ask(client: httpx.Client, number: int, start: float) -> Answer:
    """The images of seed ``number % 8``; every fourth request goes over its steps."""
    is_stream = number % 4 == 3
    fields = {"prompt": "a red circle", "seed": number % 8, "steps": STEPS, "stream": is_stream}
    began = time.monotonic()
    response = client.post("/v1/generate", json={**fields, "preview_every": 0})
    took = time.monotonic() - began
    ending, body = "result", dict[str, Any]()
    if response.status_code == 200 and is_stream:
        ending, body = events_of(response.text)[-1]
    elif response.status_code == 200:
        body = response.json()
    return Answer(number, began - start, took, response.status_code, is_stream, ending, body)


def test_no_request_is_lost_with_a_replica(application: str) -> None:
    before = replicas()
    assert len(before) == 2
    numbers = itertools.count()
    answers: list[Answer] = []
    is_enough = threading.Event()
    start = time.monotonic()

    def drive() -> None:
        with httpx.Client(base_url=application, timeout=120) as client:
            while not is_enough.is_set():
                answers.append(ask(client, next(numbers), start))

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(drive) for _ in range(CLIENTS)]
        try:
            until(lambda: len(answers) >= BEFORE)
            os.kill(before[0], signal.SIGKILL)
            killed = time.monotonic() - start
            until(lambda: len(set(replicas()) - {before[0]}) == 2 and _running() == 2, 120)
            back = time.monotonic() - start
            made = len(answers)
            until(lambda: len(answers) >= made + BEFORE)
        finally:
            is_enough.set()
    for each in clients:
        each.result()
    assert sorted(answer.number for answer in answers) == list(range(next(numbers)))
    took = time.monotonic() - start
    plain = [answer for answer in answers if not answer.is_stream]
    streams = [answer for answer in answers if answer.is_stream]
    broken = [answer for answer in streams if answer.ending != "result"]
    _report(answers, killed, back, took, len(broken))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.body["images"] for answer in plain)
    # Steps that a client has seen are not taken again: such a stream ends with a clear error.
    assert {answer.body["error"]["code"] for answer in broken} <= {"replica_lost"}
    assert len(broken) <= CLIENTS
    for seed in range(8):
        images = [
            np.asarray(image_of(answer.body["images"][0]["image"]), np.int16)
            for answer in answers
            if answer.number % 8 == seed and answer.ending == "result"
        ]
        assert max(np.abs(each - images[0]).max() for each in images) <= 1


def test_what_runs_is_finished_when_it_is_to_end(url: str, demo_bundle: Path) -> None:
    application = Application(models=[model(demo_bundle)], service=SERVICE)
    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=url, timeout=60) as client:
        with served(application, url):
            fields = {"prompt": "a red circle", "steps": 150}
            running = [pool.submit(client.post, "/v1/generate", json=fields) for _ in range(2)]
            until(
                lambda: b'kdrt_images_running{model="demo"} 2.0' in client.get("/metrics").content
            )
        assert [each.result().status_code for each in running] == [200, 200]


def test_models_take_turns_in_a_replica(url: str, demo_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(demo_bundle, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))
    settings = RaySettings(models_per_replica=1, num_cpus=0.5)
    models = [model(demo_bundle), model(other)]
    with (
        served(Application(models=models, service=SERVICE, ray=settings), url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for name in ("demo", "other", "demo"):
            fields = {"prompt": "a red circle", "seed": 7, "steps": 2, "model": name}
            answer = client.post("/v1/generate", json=fields)
            assert answer.status_code == 200
            assert answer.json()["model"] == name


def test_what_a_cluster_serves_already_stays(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_connected", lambda address: nullcontext())
    port = httpx.URL(url).port
    assert port is not None

    def refused(port: int) -> str:
        application = Application(models=[], server=ServerSettings(port=port))
        with pytest.raises(KdrtError) as caught:
            cluster.serve_on_ray(application, "auto", print)
        return str(caught.value)

    assert f"listens on '127.0.0.1', port {port}: give these" in refused(port + 1)
    theirs = ray.serve.deployment(Theirs).options(graceful_shutdown_timeout_s=0).bind()
    for name, said in (("kdrt", "an application 'kdrt' already"), ("other", "Prefix / is being")):
        ray.serve.run(theirs, name=name, route_prefix="/")
        try:
            assert said in refused(port)
            assert httpx.get(url).text == "theirs"
        finally:
            ray.serve.delete(name)


class Theirs:
    """Somebody else's application."""

    def __call__(self) -> str:
        return "theirs"


def _running() -> int:
    """Replicas that Ray sends requests to."""
    images = ray.serve.status().applications["kdrt"].deployments["images"]
    return images.replica_states.get("RUNNING", 0)


def _report(answers: list[Answer], killed: float, back: float, took: float, broken: int) -> None:
    """The figures of the test."""

    def seconds(chosen: list[float]) -> dict[str, float]:
        return {
            "requests": len(chosen),
            "median": round(statistics.median(chosen), 3) if chosen else 0.0,
            "longest": round(max(chosen, default=0.0), 3),
        }

    ends = [(answer.began, answer.began + answer.took, answer.took) for answer in answers]
    print(
        json.dumps(
            {
                "requests": len(answers),
                "streams": sum(answer.is_stream for answer in answers),
                "streams that failed": broken,
                "seconds": round(took, 2),
                "killed at": round(killed, 2),
                "back after": round(back - killed, 2),
                "before": seconds([took for _, end, took in ends if end < killed]),
                "across": seconds([took for began, end, took in ends if began < killed <= end]),
                "until back": seconds([took for began, _, took in ends if killed <= began < back]),
                "after": seconds([took for began, _, took in ends if began >= back]),
            }
        )
    )
