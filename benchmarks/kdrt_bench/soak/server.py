"""A server in a process of its own, and what it takes of the machine."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from kdrt_bench.jobs import Strict

_SECONDS_TO_LOAD = 600.0
_SECONDS_TO_END = 60.0
_MEBIBYTE = 2**20


class Sample(Strict):
    """What a server takes and does at a moment.

    Attributes:
        seconds: since the beginning of the load.
        memory: MiB that are resident, of all its processes.
        threads, files: of all its processes; files are open file descriptors.
        waiting, running: images.
        steps: of all images since it was started; two images in an evaluation make two.
    """

    seconds: float
    memory: float
    threads: int
    files: int
    waiting: int
    running: int
    steps: int


@dataclass(frozen=True)
class ServerProcess:
    """A server that is ready.

    Attributes:
        url: of it.
        pid: of its first process.
        log: what it writes on standard error.
    """

    url: str
    pid: int
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def taken(self) -> tuple[float, int, int]:
        """Memory, threads and open files; see `Sample`. What a process that is just ending has is
        left out."""
        first = psutil.Process(self.pid)
        memory, threads, files = 0.0, 0, 0
        for each in (first, *first.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                memory += each.memory_info().rss / _MEBIBYTE
                threads += each.num_threads()
                files += each.num_fds()
        return memory, threads, files

    def faults(self) -> int:
        """Tracebacks in the log."""
        return self.log.read_text(encoding="utf-8").count("Traceback (most recent call last)")


def totals_of(metrics: str) -> dict[str, float]:
    """The samples of a text for Prometheus by name, summed over their labels."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


async def sample(server: ServerProcess, http: httpx.AsyncClient, start: float) -> Sample:
    """Look at a server once.

    Args:
        server: it.
        http: a client of its own, so that no request of the load is in its way.
        start: of the load, by `time.monotonic`.
    """
    totals = totals_of((await http.get("/metrics")).raise_for_status().text)
    memory, threads, files = await asyncio.to_thread(server.taken)
    return Sample(
        seconds=time.monotonic() - start,
        memory=memory,
        threads=threads,
        files=files,
        waiting=int(totals["kdrt_images_waiting"]),
        running=int(totals["kdrt_images_running"]),
        steps=int(totals["kdrt_tick_images_sum"]),
    )


@contextmanager
def server_of(bundle: str, log: Path, options: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """``kdrt serve`` on a free port of this machine, which is ended afterwards.

    Args:
        bundle: name or folder.
        log: what it writes on standard error goes here.
        options: more of ``kdrt serve``.

    Raises:
        RuntimeError: it does not become ready; the message has what it wrote.
    """
    command = [sys.executable, "-m", "kdrt", "serve", bundle, "--port", "0", *options]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*command, "--log-format", "json"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        address = re.search(r"http://[\d.:]+", process.stdout.readline())
        if address is None or not _becomes_ready(address[0], process):
            raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8')}")
        yield ServerProcess(address[0], process.pid, log)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _becomes_ready(url: str, process: subprocess.Popen[str]) -> bool:
    end = time.monotonic() + _SECONDS_TO_LOAD
    while time.monotonic() < end and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return True
        time.sleep(0.1)
    return False
