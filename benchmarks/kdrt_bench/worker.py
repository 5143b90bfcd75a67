"""One process, one row: ``python -m kdrt_bench.worker``.

Reads a :class:`~kdrt_bench.jobs.Job` as the first line of standard input, loads and warms up, and
answers :class:`~kdrt_bench.jobs.Ready`. Each further line is a command: run a workload once, or
finish. The conductor decides when, so that processes take turns. At the end of input it ends.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import IO

import numpy as np
import torch
from pydantic import BaseModel

from kdrt.backends.fallback import FallbackWarning
from kdrt.bundle import Bundle, open_bundle
from kdrt.errors import KdrtError
from kdrt.images.output import save_image, to_images
from kdrt_bench import memory
from kdrt_bench.energy import EnergyMeter
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import (
    BenchJob,
    Command,
    Failed,
    Finished,
    Forward,
    ImageWorkload,
    Ready,
    Server,
    Timing,
    Workload,
)
from kdrt_bench.peers import info_of, load_peer, versions_of
from kdrt_bench.peers.base import Peer, components_of
from kdrt_bench.runners import Runner, serve
from kdrt_bench.stages import StageClock


def main() -> int:
    """Serve one conductor."""
    answers = _take_standard_output()
    try:
        job = BenchJob.model_validate_json(sys.stdin.readline())
        _work(job, answers)
    except Exception as error:
        fell_back = isinstance(error, FallbackWarning)
        known = fell_back or isinstance(error, KdrtError)
        say(
            answers,
            Failed(
                failed=f"{error}" or type(error).__name__,
                known=known,
                unavailable=fell_back or isinstance(error, PeerUnavailableError),
            ),
        )
        if not known:
            raise
        return 2
    return 0


def _take_standard_output() -> IO[str]:
    """Answers go where standard output went; what libraries print there goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def say(answers: IO[str], message: BaseModel) -> None:
    """Send one line."""
    answers.write(message.model_dump_json() + "\n")
    answers.flush()


def _work(job: BenchJob, answers: IO[str]) -> None:
    torch.set_num_threads(job.threads)
    begun = time.perf_counter()
    bundle = open_bundle(str(job.model.bundle))
    options = {**info_of(job.peer).options, **job.options}
    peer = load_peer(job.peer)(job, bundle, options)
    if job.prepare:
        peer.prepare(components_of(job.workloads, bundle))
        say(
            answers,
            Finished(memory_peak=memory.peak(), memory_running=None, flops=_flops(job, bundle)),
        )
        return
    on_cuda = torch.cuda.is_available()
    clock = StageClock("cuda" if on_cuda else "cpu")
    runners = [_runner(peer, workload, clock) for workload in job.workloads]
    loaded = time.perf_counter()
    held = memory.resident()
    warmed = runners if job.first_call else []
    first_calls = tuple(_warmed_up(runner, job.warmups) for runner in warmed)
    say(
        answers,
        Ready(
            load=loaded - begun,
            first_calls=first_calls,
            memory_loaded=held,
            settings=peer.settings(),
            versions=versions_of(peer.packages),
        ),
    )
    _serve_commands(job, runners, clock, answers)


def _flops(job: BenchJob, bundle: Bundle) -> tuple[float, ...]:
    if not job.count_flops:
        return ()
    from kdrt_bench.flops import FlopCounter

    counter = FlopCounter(job.model, bundle)
    return tuple(counter.of(workload) for workload in job.workloads)


def _runner(peer: Peer, workload: Workload, clock: StageClock) -> Runner:
    match workload:
        case Forward():
            return peer.caller(workload, clock)
        case ImageWorkload():
            return peer.generator(workload, clock)
        case Server():
            return peer.generator(workload.generation, clock)


def _warmed_up(runner: Runner, warmups: int) -> float:
    """Seconds of the first call, in which compilers compile."""
    begun = time.perf_counter()
    runner.run()
    _synchronize()
    first = time.perf_counter() - begun
    for _ in range(warmups):
        runner.run()
    _synchronize()
    return first


def _serve_commands(
    job: BenchJob, runners: list[Runner], clock: StageClock, answers: IO[str]
) -> None:
    meter = EnergyMeter()
    peak_loading = memory.peak()
    memory.reset_peak()
    idle_since = time.process_time()
    for line in sys.stdin:
        command = Command.model_validate_json(line)
        if command.finish:
            _finish(job, runners, peak_loading, answers)
            return
        if command.run is None:
            continue
        idle_cpu = time.process_time() - idle_since
        workload, runner = job.workloads[command.run], runners[command.run]
        say(answers, _timed(workload, runner, clock, meter, idle_cpu))
        idle_since = time.process_time()


def _timed(
    workload: Workload, runner: Runner, clock: StageClock, meter: EnergyMeter, idle_cpu: float
) -> Timing:
    clock.reset()
    latencies: list[float] = []
    work: Callable[[], object] = runner.run
    if isinstance(workload, Server):
        server = workload
        work = lambda: latencies.extend(serve(_waiting(runner), server))  # noqa: E731
    faults = _major_faults()
    joules, cpu, begun = meter.joules(), time.process_time(), time.perf_counter()
    work()
    _synchronize()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    after = meter.joules()
    return Timing(
        seconds=seconds,
        cpu=cpu,
        idle_cpu=idle_cpu,
        faults=_major_faults() - faults,
        stages=clock.seconds(),
        energy=None if joules is None or after is None else after - joules,
        latencies=tuple(latencies),
    )


def _waiting(runner: Runner) -> Callable[[], None]:
    """A request is answered when its image is there, not when it is enqueued."""

    def run() -> None:
        runner.run()
        _synchronize()

    return run


def _finish(
    job: BenchJob, runners: list[Runner], peak_loading: int | None, answers: IO[str]
) -> None:
    peak_running = memory.peak()
    peaks = [value for value in (peak_loading, peak_running) if value is not None]
    job.folder.mkdir(parents=True, exist_ok=True)
    calls: tuple[dict[str, int], ...] = ()
    device_peak = None
    if torch.cuda.is_available():
        from kdrt_bench.cuda_calls import count_calls

        device_peak = torch.cuda.max_memory_allocated()
        calls = tuple(count_calls(runner.run) for runner in runners)
    for index, (workload, runner) in enumerate(zip(job.workloads, runners, strict=True)):
        outputs = runner.outputs()
        np.savez(job.folder / f"{index}.npz", *outputs)
        if not isinstance(workload, Forward):
            pixels = torch.from_numpy(outputs[0][:1]).permute(0, 3, 1, 2) * 2 - 1
            save_image(to_images(pixels, "pil")[0], job.folder / f"{index}.png")
    say(
        answers,
        Finished(
            memory_peak=max(peaks, default=None),
            memory_running=peak_running,
            device_memory_peak=device_peak,
            calls=calls,
        ),
    )


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
