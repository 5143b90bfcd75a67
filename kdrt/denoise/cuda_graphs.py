"""How much of a run is captured in CUDA graphs.

    off     every operation is enqueued by itself
    step    one graph for a stage: input scaling, network, guidance, update; replayed each time;
            where some evaluations do less (`kdrt.denoise.shortcuts`), one for each kind of them
    loop    one graph for all stages: one launch an image

The stages read their numbers from a table on the device (`kdrt.sampling.table`), so a graph serves
every plan that needs the same registers, whatever its noise levels, guidance scale or seed. A run
that somebody watches goes by steps; what cannot be captured goes one level lower and says so once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Literal, Protocol, cast

import torch
from torch import Tensor

from kdrt.common.lru import LruCache
from kdrt.errors import InvalidRequestError
from kdrt.sampling import Plan, Step, run
from kdrt.sampling.table import Layout, TableDenoise, TableLoop, run_table
from kdrt_engines import Engine
from kdrt_engines.cuda_graphs import CaptureError, CudaGraph, CudaGraphCache, Graph

CudaGraphLevel = Literal["off", "step", "loop"]
GRAPH_LEVELS: tuple[CudaGraphLevel, ...] = ("off", "step", "loop")

_LOOPS = 4
"""Layouts whose registers are kept for one size of image."""


class CapturableDenoise(TableDenoise, Protocol):
    """What a captured run asks of a denoiser."""

    def __call__(self, x: Tensor, sigma: float) -> Tensor: ...

    def mode(self) -> Hashable:
        """Whatever changes which operations `denoise` enqueues."""
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
        capture: makes a graph of some work; needed for every level but ``off``.
    """

    def __init__(
        self,
        denoise: CapturableDenoise,
        level: CudaGraphLevel,
        graphs: CudaGraphCache,
        capture: Capture | None = None,
    ) -> None:
        self._denoise = denoise
        self.level: CudaGraphLevel = level if capture is not None else "off"
        self._graphs = graphs
        self._capture = capture
        self._loops: LruCache[Layout, TableLoop] = LruCache(_LOOPS, on_evict=graphs.drop)

    def run(
        self, plan: Plan, latents: Tensor, noise: Tensor | None = None, *, watched: bool = True
    ) -> Iterator[Step]:
        """As `kdrt.sampling.run`. Not ``watched``, only the last step may be yielded."""
        if self.level == "loop" and not watched:
            loop = self._loop(plan, latents)
            replay = self._captured(loop, plan, latents, loop.evaluations(plan), what="loop")
            if replay is not None:
                return self._whole(plan, latents, noise, replay)
        if self.level != "off":
            loop = self._loop(plan, latents)
            replays = self._stages(loop, plan, latents)
            if replays is not None:
                return run_table(
                    loop, plan, latents, noise, do_stage=lambda evaluation: replays[evaluation]()
                )
        return run(plan, latents, self._denoise, noise)

    def close(self) -> None:
        """Let go of all graphs, and of the memory they hold."""
        self._loops.clear()

    def _whole(
        self, plan: Plan, latents: Tensor, noise: Tensor | None, replay: Callable[[], None]
    ) -> Iterator[Step]:
        loop = self._loop(plan, latents)
        loop.load(plan, latents, noise)
        replay()
        *_, sigma, sigma_next = plan.sigmas
        yield Step(plan.steps - 1, sigma, sigma_next, loop.state, loop.denoised)

    def _loop(self, plan: Plan, latents: Tensor) -> TableLoop:
        layout = Layout.of(plan)
        return self._loops.get(layout, lambda: TableLoop(layout, self._denoise, latents))

    def _stages(
        self, loop: TableLoop, plan: Plan, latents: Tensor
    ) -> dict[Hashable, Callable[[], None]] | None:
        """The replay of a stage by kind of evaluation; None where one cannot be captured."""
        replays: dict[Hashable, Callable[[], None]] = {}
        for evaluation in dict.fromkeys(loop.evaluations(plan)):
            replay = self._captured(loop, plan, latents, (evaluation,), what="step")
            if replay is None:
                return None
            replays[evaluation] = replay
        return replays

    def _captured(
        self,
        loop: TableLoop,
        plan: Plan,
        latents: Tensor,
        evaluations: tuple[Hashable, ...],
        *,
        what: Literal["step", "loop"],
    ) -> Callable[[], None] | None:
        """The replay of stages with these evaluations; None where they cannot be captured."""
        capture = cast(Capture, self._capture)

        def work() -> None:
            for evaluation in evaluations:
                loop.stage(evaluation)

        def make() -> Graph:
            loop.load(plan, latents, None)
            return capture(work, self._denoise.held())

        key = (loop, evaluations, self._denoise.mode())
        try:
            return self._graphs.get(key, make).replay
        except CaptureError as error:
            self.level = "step" if what == "loop" else "off"
            warnings.warn(
                f"the {what} cannot be captured in a CUDA graph ({error}); "
                f"running with graph={self.level!r}",
                CaptureWarning,
                stacklevel=2,
            )
            return None


def cuda_graph_level(asked: object, engine: Engine) -> CudaGraphLevel:
    """The level for a UNet: the one asked for. None is ``step`` on CUDA, and ``off`` on a CPU and
    for engines that only they themselves can capture.

    Raises:
        InvalidRequestError: there is no such level, or none but ``off`` is possible there.
    """
    on_cuda = engine.device.type == "cuda"
    if asked is None:
        return "step" if on_cuda and engine.capturable else "off"
    if asked not in GRAPH_LEVELS:
        raise InvalidRequestError(f"unknown graph {asked!r}; known: {', '.join(GRAPH_LEVELS)}")
    if asked != "off" and not on_cuda:
        raise InvalidRequestError(
            f"graph={asked!r} needs CUDA, and this engine runs on {engine.device.type}: leave "
            "graph out, or choose an engine on CUDA"
        )
    return asked


def capture_on(stream: torch.cuda.Stream) -> Capture:
    """Capture on ``stream``, which must not be the default one."""
    return lambda work, held: CudaGraph(work, stream, held)
