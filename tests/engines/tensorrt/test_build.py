"""The process that builds: followed, cancelled, and survived."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch  # noqa: F401  (makes this process large)

from kdrt_engines import EngineError
from kdrt_engines.tensorrt import build as building
from kdrt_engines.tensorrt.build import build_engine
from kdrt_engines.tensorrt.job import BuildJob

ROOT = Path(__file__).parents[3]


def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, **fake: str) -> BuildJob:
    """A job for a module whose builder runs the statement ``during``."""
    options = "".join(f", {name}={value}" for name, value in fake.items())
    (tmp_path / "stand_in.py").write_text(
        "import os, sys, time\n"
        "from tests.support.fake_trt import fake\n"
        f"def during():\n    {during}\n"
        f"sys.modules[__name__] = fake('tensorrt_rtx', during=during{options})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    shapes = {"sample": ((1, 4), (2, 4), (8, 4))}
    return BuildJob(
        "stand_in", "model.onnx", str(tmp_path / "engine.plan"), (89,), (shapes,), {"TF32": True}
    )


def test_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phases: list[str] = []
    # What native code prints to standard output must not disturb the events.
    task = job(tmp_path, monkeypatch, "os.write(1, b'noise\\n'); time.sleep(0.6)")
    built = build_engine(task, lambda phase, memory: phases.append(f"{phase} {memory > 0}"))
    assert built.fused_attention == 2
    assert built.warnings == ()
    # The worker's own: this process, from which it was forked, holds several times that.
    assert 1_000_000 < built.peak_memory < psutil.Process().memory_info().rss
    assert phases[-1] == "Building engine True"
    assert Path(task.output).read_bytes() == b"engine"


def test_messages_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = r"(('WARNING', 'caf\udce9'), ('ERROR', '\udcff\udcfe'))"
    task = job(tmp_path, monkeypatch, "pass", messages=messages)
    assert build_engine(task).warnings == ("caf\udce9",)
    refused = job(tmp_path, monkeypatch, "pass", messages=messages, content="None")
    with pytest.raises(EngineError, match=r"TensorRT cannot build model\.onnx"):
        build_engine(refused)


def test_an_engine_that_does_not_fit_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    task = job(tmp_path, monkeypatch, no_room)
    with pytest.raises(OSError, match="too large") as raised:
        build_engine(task)
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, task.output)


@pytest.mark.parametrize(
    ("during", "said"),
    [
        ("os.abort()", "was ended by SIGABRT"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL, as happens when memory runs out"),
        ("os.write(2, b'the end is near\\n'); os._exit(3)", "exit code 3; its last words: the end"),
        ("raise ZeroDivisionError('a bug')", "exit code 1; its last words: .*a bug"),
    ],
)
def test_a_dying_builder_is_an_error_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        build_engine(job(tmp_path, monkeypatch, during))


class Cancel(Exception):
    pass


@pytest.mark.parametrize("error", [Cancel, KeyboardInterrupt])
@pytest.mark.parametrize("during", ["time.sleep(0.5)", "time.sleep(600)"], ids=["listens", "deaf"])
def test_whatever_stops_the_caller_stops_the_builder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: str,
    error: type[BaseException],
) -> None:
    monkeypatch.setattr(building, "_GRACE_SECONDS", 1.0)

    def stop(phase: str, _memory: int) -> None:
        if phase == "Building engine":
            raise error

    with pytest.raises(error):
        build_engine(job(tmp_path, monkeypatch, during), stop)
    assert not [child for child in psutil.Process().children() if _is_worker(child)]
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize(
    ("during", "code"), [("time.sleep(0.3)", 0), ("time.sleep(600)", 1)], ids=["listens", "deaf"]
)
def test_an_orphaned_builder_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str, code: int
) -> None:
    """A parent that is killed closes its end of the pipe."""
    task = job(tmp_path, monkeypatch, during)
    worker = subprocess.Popen(
        [sys.executable, "-m", "kdrt_engines.tensorrt.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={"PYTHONPATH": ":".join(sys.path)},
        text=True,
    )
    assert worker.stdin is not None
    worker.stdin.write(task.to_json() + "\n")
    worker.stdin.close()
    assert worker.wait(60) == code
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_builder_whose_parent_is_killed_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even in native code that lets no thread of Python run."""
    task = job(tmp_path, monkeypatch, "import ctypes; ctypes.PyDLL(None).sleep(600)")
    script = (
        "import sys\n"
        "from kdrt_engines.tensorrt.build import build_engine\n"
        "from kdrt_engines.tensorrt.job import BuildJob\n"
        "build_engine(BuildJob.from_json(sys.argv[1]), lambda phase, _: print(phase, flush=True))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, task.to_json()],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
        text=True,
    )
    assert parent.stdout is not None
    next(line for line in parent.stdout if "Building engine" in line)
    (worker,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.communicate()
    psutil.wait_procs([worker], timeout=60)
    assert not worker.is_running()


def _is_worker(process: psutil.Process) -> bool:
    return "kdrt_engines.tensorrt.worker" in process.cmdline()
