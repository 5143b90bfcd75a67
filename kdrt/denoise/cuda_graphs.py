"""How much of a run is captured in CUDA graphs.

    off     every operation is enqueued by itself
    step    one graph for a stage: input scaling, network, guidance, update; replayed each time;
            where some evaluations do less (`kdrt.denoise.shortcuts`), one for each kind of them
    loop    one graph for all stages: one launch an image

The stages read their scalars from a table on the device (`kdrt.sampling.table`), so a graph serves
every plan that needs the same registers, whatever its noise levels, guidance scale or seed. A run
whose steps are watched is captured by steps. What cannot be captured runs one level lower, with a
warning.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdrt.common.lru import LruCache
from kdrt.denoise.denoiser import for_one_run
from kdrt.denoise.shortcuts import NO_SHORTCUTS, DenoiseByKind, EvaluationKind, Shortcuts
from kdrt.errors import InvalidRequestError
from kdrt.sampling import Plan, Step, run
from kdrt.sampling.table import Layout, TableDenoise, TableLoop, run_table
from kdrt_engines import Engine
from kdrt_engines.cuda_graphs import CaptureError, CudaGraph, CudaGraphCache, Graph

_logger = logging.getLogger(__name__)

CudaGraphLevel = Literal["off", "step", "loop"]
CUDA_GRAPH_LEVELS: tuple[CudaGraphLevel, ...] = ("off", "step", "loop")

_LOOPS = 4
"""Layouts whose registers are kept for one size of image."""


class CapturableDenoise(DenoiseByKind, TableDenoise, Protocol):
    """What a captured run asks of a denoiser."""

    def mode(self) -> Hashable:
        """Whatever else changes which operations `denoise` enqueues."""
        ...

    def held(self) -> Sequence[Tensor]:
        """Memory an enqueued evaluation uses that may be replaced later."""
        ...


class CaptureWarning(UserWarning):
    """A run could not be captured and went one level lower."""


Capture = Callable[[Callable[[], None], Sequence[Tensor]], Graph]


class CudaGraphRunner:
    """Runs plans with one denoiser at a graph level.

    Args:
        denoise: the denoiser, of one size of image.
        level: how much to capture.
        graphs: shared by all runners of a pipeline, so that one bound holds for all.
        capture: makes a graph of some work.
    """

    def __init__(
        self,
        denoise: CapturableDenoise,
        level: CudaGraphLevel,
        graphs: CudaGraphCache,
        capture: Capture,
    ) -> None:
        self._denoise = denoise
        self.level: CudaGraphLevel = level
        self._graphs = graphs
        self._capture = capture
        self._loops: LruCache[Layout, TableLoop] = LruCache(_LOOPS, on_evict=graphs.drop)

    def run(
        self,
        plan: Plan,
        latents: Tensor,
        noise: Tensor | None = None,
        *,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        watched: bool = True,
    ) -> Iterator[Step]:
        """As `kdrt.sampling.run`, with the evaluations that the shortcuts make of a plan. Not
        ``watched``, only the last step may be yielded."""
        if self.level != "off":
            loop = self._loop(plan, latents)
            kinds = shortcuts.kinds(stage.sigma for stage in plan.stages)
            if self.level == "loop" and not watched:
                replay = self._captured(loop, plan, latents, kinds, what="loop")
                if replay is not None:
                    return _whole(loop, plan, latents, noise, replay)
            replays = self._stages(loop, plan, latents, kinds)
            if replays is not None:
                stages = [replays[kind] for kind in kinds]
                return run_table(loop, plan, latents, noise, stages)
        return run(plan, latents, for_one_run(self._denoise, shortcuts), noise)

    def close(self) -> None:
        """Let go of all graphs, and of the memory they hold."""
        self._loops.clear()

    def _loop(self, plan: Plan, latents: Tensor) -> TableLoop:
        layout = Layout.of(plan)
        return self._loops.get(layout, lambda: TableLoop(layout, self._denoise, latents))

    def _stages(
        self, loop: TableLoop, plan: Plan, latents: Tensor, kinds: Sequence[EvaluationKind]
    ) -> dict[EvaluationKind, Callable[[], None]] | None:
        """The replay of a stage by kind of evaluation; None where one cannot be captured."""
        replays: dict[EvaluationKind, Callable[[], None]] = {}
        for kind in dict.fromkeys(kinds):
            replay = self._captured(loop, plan, latents, (kind,), what="step")
            if replay is None:
                return None
            replays[kind] = replay
        return replays

    def _captured(
        self,
        loop: TableLoop,
        plan: Plan,
        latents: Tensor,
        kinds: tuple[EvaluationKind, ...],
        *,
        what: Literal["step", "loop"],
    ) -> Callable[[], None] | None:
        """The replay of stages of these kinds; None where they cannot be captured."""

        def work() -> None:
            for kind in kinds:
                loop.stage(kind)

        def make() -> Graph:
            loop.load(plan, latents, None)
            started = time.perf_counter()
            graph = self._capture(work, self._denoise.held())
            seconds = time.perf_counter() - started
            _logger.info("captured a %s in a CUDA graph in %.3f s", what, seconds)
            return graph

        key = (loop, kinds, self._denoise.mode())
        try:
            return self._graphs.get(key, make).replay
        except CaptureError as error:
            self.level = "step" if what == "loop" else "off"
            warnings.warn(
                f"the {what} cannot be captured in a CUDA graph ({error}); "
                f"running with cuda_graph={self.level!r}",
                CaptureWarning,
                stacklevel=2,
            )
            return None


def _whole(
    loop: TableLoop,
    plan: Plan,
    latents: Tensor,
    noise: Tensor | None,
    replay: Callable[[], None],
) -> Iterator[Step]:
    loop.load(plan, latents, noise)
    replay()
    *_, sigma, sigma_next = plan.sigmas
    yield Step(plan.steps - 1, sigma, sigma_next, loop.state, loop.denoised)


def cuda_graph_level(asked: object, engine: Engine) -> CudaGraphLevel:
    """The level for a UNet: the one asked for. None is ``step`` on CUDA, and ``off`` on a CPU and
    for engines that only they themselves can capture.

    Raises:
        InvalidRequestError: there is no such level, or none but ``off`` is possible there.
    """
    on_cuda = engine.device.type == "cuda"
    if asked is None:
        return "step" if on_cuda and engine.capturable else "off"
    if asked not in CUDA_GRAPH_LEVELS:
        raise InvalidRequestError(
            f"unknown cuda_graph {asked!r}; known: {', '.join(CUDA_GRAPH_LEVELS)}"
        )
    if asked != "off" and not on_cuda:
        raise InvalidRequestError(
            f"cuda_graph={asked!r} needs CUDA, and this engine runs on {engine.device.type}: leave "
            "cuda_graph out, or choose an engine on CUDA"
        )
    return asked


def capture_on(stream: torch.cuda.Stream) -> Capture:
    """Capture on ``stream``, which must not be the default one."""
    return lambda work, held: CudaGraph(work, stream, held)
