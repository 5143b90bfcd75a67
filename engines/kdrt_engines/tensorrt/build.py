"""Building an engine file in a process of its own, and reporting on its progress."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

import psutil

from kdrt_engines.errors import EngineError
from kdrt_engines.tensorrt.job import BuildJob, Built

Follow = Callable[[str, int], None]
"""Called a few times a second with the builder's phase and the memory (bytes) it holds."""

_POLL_SECONDS = 0.25
_GRACE_SECONDS = 3.0
_STDERR_CHARACTERS = 400


def build_engine(job: BuildJob, follow: Follow = lambda _phase, _memory: None) -> Built:
    """Build the engine of ``job`` and return its figures; ``job.output`` then holds the engine,
    written to disk.

    An exception out of ``follow``, or Ctrl-C, stops the builder before it propagates;
    ``job.output`` may then hold part of an engine.

    Raises:
        EngineError: TensorRT refused, or its process died.
        OSError: ``job.output`` cannot be written.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdrt_engines.tensorrt.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            # Ctrl-C in a terminal goes to every process of the group. We stop this one ourselves.
            start_new_session=True,
        )
        try:
            outcome = _run(process, job, follow)
        finally:
            _end(process)
        if outcome is None:
            raise EngineError(_death_of_worker(process.returncode, job, stderr))
    event = outcome.pop("event")
    if event == "failed":
        raise EngineError(f"TensorRT cannot build {job.onnx}: {outcome['message']}")
    if event == "unwritten":
        raise OSError(outcome["number"], outcome["reason"], job.output)
    return Built(**outcome | {"warnings": tuple(outcome["warnings"])})


def _run(process: subprocess.Popen[str], job: BuildJob, follow: Follow) -> dict[str, Any] | None:
    """The worker's last event, or None if it ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.to_json() + "\n")
        process.stdin.flush()
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    phase = "starting"
    while True:
        follow(phase, _memory(process.pid))
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return None
        event: dict[str, Any] = json.loads(line)
        if event["event"] != "phase":
            return event
        phase = event["name"]


def _read(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _memory(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the worker to stop, and wait; kill it if it does not."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _death_of_worker(code: int, job: BuildJob, stderr: IO[bytes]) -> str:
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", as happens when memory runs out"
    else:
        how = f"ended with exit code {code}"
    stderr.seek(0)
    said = " ".join(stderr.read().decode(errors="replace").split())[-_STDERR_CHARACTERS:]
    return f"the process that built {job.onnx} {how}" + (
        f"; its last words: {said}" if said else ""
    )
