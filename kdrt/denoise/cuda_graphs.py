"""How much of a run is captured in CUDA graphs.

    off     every operation is enqueued by itself
    step    one graph for a stage: input scaling, network, guidance, update; replayed each time;
            where some evaluations do less (`kdrt.denoise.shortcuts`), one for each kind of them
    loop    one graph for all stages: one launch an image

The images of a run take the slots of `kdrt.sampling.slots`, and a stage is a tick of all of them.
It reads its numbers from tables on the device, so a graph serves every plan with the same
features, whatever its noise levels, guidance scale or seed. A run whose steps are watched is
captured by steps. What cannot be captured runs one level lower, with a warning.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor

from kdrt.denoise.denoiser import for_one_run
from kdrt.denoise.graph_level import (
    CUDA_GRAPH_LEVELS,
    CaptureWarning,
    CudaGraphLevel,
    cuda_graph_level,
)
from kdrt.denoise.progress import places_of, steps_of
from kdrt.denoise.scaling import Numbers
from kdrt.denoise.shortcuts import NO_SHORTCUTS, DenoiseByKind, EvaluationKind, Shortcuts
from kdrt.sampling import Plan, Step, run
from kdrt.sampling.slots import SlotDenoise, Slots, Tick
from kdrt.sampling.table import Features, fits
from kdrt_engines.cuda_graphs import CaptureError, CudaGraph, CudaGraphCache, Graph

__all__ = [
    "CUDA_GRAPH_LEVELS",
    "CapturableDenoise",
    "Capture",
    "CaptureWarning",
    "CudaGraphLevel",
    "CudaGraphRunner",
    "capture_on",
    "cuda_graph_level",
]

_logger = logging.getLogger(__name__)


class CapturableDenoise(DenoiseByKind, SlotDenoise, Protocol):
    """What a captured run asks of a denoiser."""

    def numbers(self, sigma: float, place: float = 0.0) -> Numbers:
        """What a stage at this noise level and place has in its table."""
        ...

    def mode(self) -> Hashable:
        """Whatever else changes which operations `denoise` enqueues."""
        ...

    def held(self) -> Sequence[Tensor]:
        """Memory an enqueued evaluation uses that may be replaced later."""
        ...


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
        self._loop: _Loop | None = None

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
        if self.level != "off" and fits(plan):
            if self._loop is None:
                self._loop = _Loop(self._denoise, latents)
            loop = self._loop
            loop.load(plan, latents, noise)
            kinds = shortcuts.kinds(stage.sigma for stage in plan.stages)
            if self.level == "loop" and not watched:
                replay = self._captured(loop, kinds, what="loop")
                if replay is not None:
                    return loop.whole(plan, replay)
            replays = self._stages(loop, kinds)
            if replays is not None:
                return loop.steps(plan, [replays[kind] for kind in kinds])
        return run(plan, latents, for_one_run(self._denoise, shortcuts, places_of(plan)), noise)

    def close(self) -> None:
        """Let go of all graphs, and of the memory they hold."""
        if self._loop is not None:
            self._graphs.drop(self._loop)
            self._loop = None

    def _stages(
        self, loop: _Loop, kinds: Sequence[EvaluationKind]
    ) -> dict[EvaluationKind, Callable[[], None]] | None:
        """The replay of a stage by kind of evaluation; None where one cannot be captured."""
        replays: dict[EvaluationKind, Callable[[], None]] = {}
        for kind in dict.fromkeys(kinds):
            replay = self._captured(loop, (kind,), what="step")
            if replay is None:
                return None
            replays[kind] = replay
        return replays

    def _captured(
        self, loop: _Loop, kinds: tuple[EvaluationKind, ...], *, what: Literal["step", "loop"]
    ) -> Callable[[], None] | None:
        """The replay of stages of these kinds; None where they cannot be captured."""
        features, tick = loop.features, loop.tick

        def work() -> None:
            for kind in kinds:
                tick.stage(features, kind)

        def make() -> Graph:
            started = time.perf_counter()
            with loop.idle():
                graph = self._capture(work, self._denoise.held())
            seconds = time.perf_counter() - started
            _logger.info("captured a %s in a CUDA graph in %.3f s", what, seconds)
            return graph

        key = (loop, loop.slots.version, features, kinds, self._denoise.mode())
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


class _Loop:
    """The images of one run, each in a slot, and the tick that takes all of them further.

    Attributes:
        features: of the plan that was loaded last.
    """

    def __init__(self, denoise: CapturableDenoise, latents: Tensor) -> None:
        images, *shape = latents.shape
        self._denoise = denoise
        self.slots = Slots(images, shape, len(Numbers._fields), latents.device)
        self.tick = Tick(self.slots, images, denoise)
        self.features = Features()
        self._images = range(images)
        self.tick.take(self._images)

    def load(self, plan: Plan, latents: Tensor, noise: Tensor | None) -> None:
        """Begin a run; arguments as for `kdrt.sampling.run`."""
        self.features = Features.of(plan)
        numbers = [
            self._denoise.numbers(stage.sigma, place)
            for stage, place in zip(plan.stages, steps_of(plan), strict=True)
        ]
        self.slots.load(self._images, plan, latents, noise, numbers)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Within the block ticks work as always, and no image is taken further."""
        self.tick.take(())
        try:
            yield
        finally:
            self.tick.take(self._images)

    def steps(self, plan: Plan, stages: Sequence[Callable[[], None]]) -> Iterator[Step]:
        """The steps of the loaded run, by one call for each stage of its plan."""
        index = 0
        for stage, do_stage in zip(plan.stages, stages, strict=True):
            do_stage()
            if stage.ends_step:
                yield self._step(plan, index)
                index += 1

    def whole(self, plan: Plan, do_all: Callable[[], None]) -> Iterator[Step]:
        """The last step of the loaded run, by one call for all stages."""
        do_all()
        yield self._step(plan, plan.steps - 1)

    def _step(self, plan: Plan, index: int) -> Step:
        sigma, sigma_next = plan.sigmas[index : index + 2]
        state = self.slots.state[: len(self._images)]
        return Step(index, sigma, sigma_next, state, self.tick.denoised)


def capture_on(stream: torch.cuda.Stream) -> Capture:
    """Capture on ``stream``, which must not be the default one."""
    return lambda work, held: CudaGraph(work, stream, held)
