"""``kdrt serve --ray`` as a process: its cluster, an image, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.serving import until

pytestmark = pytest.mark.ray
pytest.importorskip("ray", reason="ray is an extra")

ROOT = Path(__file__).parents[3]


@contextmanager
def command(home: Path, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``kdrt serve … --ray`` while the block runs; what it says on standard error goes to a file
    in ``home``."""
    roots = [ROOT, ROOT / "export", ROOT / "engines", ROOT / "benchmarks"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "HOME": str(home),  # for Ray's token
    }
    words = [sys.executable, "-m", "kdrt", "serve", *map(str, arguments), "--ray"]
    with (
        (home / "stderr").open("w") as errors,
        subprocess.Popen(
            [*words, "--num-cpus", "0.5", "--threads", "1"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def test_it_serves_and_finishes_what_runs(demo_bundle: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        command(tmp_path, demo_bundle, "--port", port) as process,
        ThreadPoolExecutor(1) as pool,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        assert process.stdout is not None
        assert f"demo on http://127.0.0.1:{port}" in process.stdout.readline()
        fields = {"prompt": "a red circle", "steps": 150}
        running = pool.submit(client.post, "/v1/generate", json=fields)
        until(lambda: b'kdrt_images_running{model="demo"} 1.0' in client.get("/metrics").content)
        process.send_signal(signal.SIGTERM)
        until(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/v1/generate", json=fields)
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
        assert not running.done()
        assert running.result().status_code == 200
        assert process.wait(60) == 0


def test_what_keeps_it_from_starting_is_one_sentence(demo_bundle: Path, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        command(tmp_path, demo_bundle, "--port", taken.getsockname()[1]) as process,
    ):
        assert process.wait(120) == 2
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert "choose others with --host and --port" in last
    assert last.startswith("error: Ray cannot listen on '127.0.0.1'")
