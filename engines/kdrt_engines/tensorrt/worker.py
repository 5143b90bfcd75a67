"""The process that builds one engine: ``python -m kdrt_engines.tensorrt.worker``.

A process of its own, since a builder takes three times the memory of the weights and gives it back
only at its end, and since it is native code, which may abort where Python would raise.

The job comes on standard input as one line of JSON; on standard output go events, one JSON object a
line: ``phase`` whenever the builder enters one, then ``built``, ``failed``, ``unwritten`` or
``cancelled``. When standard input ends, because the parent closed it or is gone, the build is
cancelled at its next step. TensorRT takes no steps while it compiles, which is most of the time, so
the process exits by itself if that takes long; it has then written at most its output file. Should
native code let no Python run, Linux kills it with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from kdrt_engines.tensorrt.evidence import BuildLog
from kdrt_engines.tensorrt.job import BuildJob, Built

_GRACE = 5.0
"""Seconds from the request to stop until the process exits."""

_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of linux/prctl.h."""


class BuildError(Exception):
    """TensorRT refused; the message is its own."""


class EngineWriteError(Exception):
    """The output file cannot be written; the arguments are the system's number and reason."""


def build(trt: Any, job: BuildJob, monitor: Monitor, log: BuildLog) -> Built | None:
    """Build the engine of ``job`` with the module ``trt``; None if ``monitor`` cancelled it.

    Raises:
        BuildError: the network or the engine was refused.
        EngineWriteError: the output file cannot be written.
    """
    started = time.perf_counter()
    logger = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise BuildError("; ".join(errors) or "the network could not be read")
    config = _configuration(trt, builder, network, job)
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt, monitor)
    content = builder.build_serialized_network(network, config)
    if content is None:
        if monitor.cancelled.is_set():
            return None
        raise BuildError("; ".join(log.errors) or "TensorRT gave no reason")
    try:
        with Path(job.output).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise EngineWriteError(error.errno, error.strerror) from error
    return Built(
        version=trt.__version__,
        attention_sites=_attention_sites(trt, network),
        fused_attention=log.fused_attention,
        kernels=None if log.kernels is None else dict(log.kernels),
        scratch_memory=log.scratch_memory,
        peak_memory=_peak_memory(),
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time(),
        warnings=tuple(log.warnings),
        multiplying=None if log.multiplying is None else dict(log.multiplying),
    )


class Monitor:
    """Reports the builder's phases, and cancels the build at its next step."""

    def __init__(self, report: Callable[[str], None], cancelled: threading.Event) -> None:
        self.cancelled = cancelled
        self._report = report
        self._parents: dict[str, str | None] = {}

    def start(self, phase: str, parent: str | None) -> None:
        self._parents[phase] = parent
        self._report(phase)

    def finish(self, phase: str) -> None:
        """Back to the phase this one was part of, which may go on for long."""
        parent = self._parents.pop(phase, None)
        if parent is not None:
            self._report(parent)

    def step(self) -> bool:
        return not self.cancelled.is_set()


def _network_flags(trt: Any) -> int:
    """Strong typing, so that the graph states the precision; newer versions have nothing else."""
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if strong is None else 1 << int(strong)


def _configuration(trt: Any, builder: Any, network: Any, job: BuildJob) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for name, wanted in job.flags.items():
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise BuildError(f"{trt.__name__} {trt.__version__} has no builder flag {name}")
        (config.set_flag if wanted else config.clear_flag)(flag)
    if job.refittable:
        mark_refittable(trt, network, config, job.refittable)
    _set_targets(trt, config, job.compute_capabilities)
    names = {network.get_input(index).name for index in range(network.num_inputs)}
    for shapes in job.profiles:
        profile = builder.create_optimization_profile()
        for name, (least, best, most) in shapes.items():
            if name in names:
                profile.set_shape(name, least, best, most)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"the sizes {dict(shapes)} do not fit the network")
    return config


def mark_refittable(trt: Any, network: Any, config: Any, names: tuple[str, ...]) -> None:
    """Let these weights be changed in the engine, and if TensorRT can mark single weights, no
    others: every weight that may change prevents folding and fusing."""
    individual = getattr(trt.BuilderFlag, "REFIT_INDIVIDUAL", None)
    if individual is None or not hasattr(network, "mark_weights_refittable"):
        config.set_flag(trt.BuilderFlag.REFIT)
        return
    unknown = [name for name in names if not network.mark_weights_refittable(name)]
    if unknown:
        raise BuildError(f"it does not find the weight '{unknown[0]}' under that name")
    config.set_flag(individual)


def _set_targets(trt: Any, config: Any, capabilities: tuple[int, ...]) -> None:
    if not hasattr(config, "set_compute_capability"):
        return  # builds for the GPU it runs on
    config.num_compute_capabilities = len(capabilities)
    for index, number in enumerate(capabilities):
        target = getattr(trt.ComputeCapability, f"SM{number}", None)
        if target is None:
            raise BuildError(f"{trt.__name__} {trt.__version__} has no target sm{number}")
        config.set_compute_capability(target, index)


def _attention_sites(trt: Any, network: Any) -> int:
    kinds = (network.get_layer(index).type for index in range(network.num_layers))
    return sum(kind == trt.LayerType.SOFTMAX for kind in kinds)


def _logger(trt: Any, log: BuildLog) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(severity.name, message)

    return Logger()


def _monitor(trt: Any, monitor: Monitor) -> Any:
    class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            monitor.start(phase, parent)

        def step_complete(self, phase: str, step: int) -> bool:
            return monitor.step()

        def phase_finish(self, phase: str) -> None:
            monitor.finish(phase)

    return ProgressMonitor()


def _peak_memory() -> int:
    """The most memory this process held. Not ``getrusage``: that counts the process we were
    forked from."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def _cancel_at_end_of(stream: Any, cancelled: threading.Event) -> None:
    stream.read()
    cancelled.set()
    time.sleep(_GRACE)
    os._exit(1)


def main() -> None:
    """Build what standard input asks for."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    # What native code prints must not run into the events.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(event: str, **fields: Any) -> None:
        events.write(json.dumps({"event": event, **fields}) + "\n")
        events.flush()

    def report(phase: str) -> None:
        send("phase", name=phase)

    job = BuildJob.from_json(sys.stdin.readline())
    cancelled = threading.Event()
    threading.Thread(target=_cancel_at_end_of, args=(sys.stdin, cancelled), daemon=True).start()
    try:
        built = build(
            importlib.import_module(job.module), job, Monitor(report, cancelled), BuildLog()
        )
    except BuildError as error:
        send("failed", message=str(error))
    except EngineWriteError as error:
        number, reason = error.args
        send("unwritten", number=number, reason=reason)
    except BrokenPipeError:
        return  # nobody listens any more
    else:
        if built is None:
            send("cancelled")
        else:
            send("built", **asdict(built))
    # The interpreter's end would wait for the thread that reads standard input, and destroy
    # TensorRT's objects in an order of its own.
    events.close()
    os._exit(0)


if __name__ == "__main__":
    main()
