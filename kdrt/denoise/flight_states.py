"""The states of images in flight: what takes each of them further after an evaluation.

Either every image goes on by the program of its own plan, operation by operation; or one captured
tick takes all of them further, whatever their plans, from tables on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kdrt.common.upload import uploaded
from kdrt.denoise.cuda_graphs import Capture, CaptureWarning
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.parts import Parts
from kdrt.denoise.row_denoiser import ImageRows, RowDenoiser, RowKind
from kdrt.denoise.scaling import Numbers
from kdrt.sampling import Plan, Step
from kdrt.sampling.executor import FixedRun
from kdrt.sampling.slots import Slots, Tick
from kdrt.sampling.table import Features
from kdrt_engines.cuda_graphs import CaptureError, CudaGraphCache, Graph


@dataclass
class FlyingImage:
    """An image on its way.

    Attributes:
        inputs: of this image alone.
        plan: the sampler on its grid.
        numbers: for every evaluation.
        parts: for every evaluation, the rows that it takes.
        controlled: for every evaluation, whether one of its controls works at it.
        kind: what it needs of every evaluation, its parts and controls apart.
        serial: no other image had or will have it.
        done: evaluations.
    """

    inputs: DenoiserInputs
    plan: Plan
    numbers: list[Numbers]
    parts: tuple[Parts, ...]
    controlled: tuple[bool, ...]
    kind: RowKind
    serial: int
    done: int = 0

    @property
    def left(self) -> int:
        """Evaluations that are to be made."""
        return len(self.parts) - self.done

    @property
    def like_the_next(self) -> int:
        """For how many evaluations, the next one counted, it has the same parts, and controls that
        work or none."""
        following = [*zip(self.parts, self.controlled, strict=True)][self.done :]
        others = (place for place, each in enumerate(following) if each != following[0])
        return next(others, len(following))


class BoundTick:
    """What is kept for a bucket.

    Attributes:
        denoiser: of its images.
        told: whose rows the UNet was told last.
        x, numbers: what the denoiser is given where ticks are not captured.
        x_by_image, numbers_by_image: views of them, ``[1, C, h, w]`` and ``[12]``.
    """

    def __init__(self, denoiser: RowDenoiser, like: Tensor) -> None:
        self.denoiser = denoiser
        self.told: tuple[tuple[ImageRows, int], ...] = ()
        self.x = like.new_zeros(denoiser.images, *like.shape)
        self.numbers = like.new_zeros(denoiser.images, len(Numbers._fields))
        self.x_by_image, self.numbers_by_image = torch.split(self.x, 1), self.numbers.unbind()
        self._views: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def by_image(self, results: Tensor) -> tuple[Tensor, ...]:
        """Views of what the denoiser returned, ``[1, C, h, w]`` each, made once as it returns the
        same tensors every time."""
        if id(results) not in self._views:
            self._views[id(results)] = results, torch.split(results, 1)
        return self._views[id(results)][1]


class States(Protocol):
    """The states of images in slots, and what takes them further."""

    def load(self, slot: int, image: FlyingImage, latents: Tensor, noise: Tensor | None) -> None:
        """Put an image into a slot: ``latents [1, C, h, w]``, ``noise [draws, 1, C, h, w]``."""
        ...

    def leave(self, slot: int) -> None: ...

    def latents(self, slot: int) -> Tensor:
        """The newest state of an image, ``[1, C, h, w]``."""
        ...

    def tick(
        self, bound: BoundTick, slots: Sequence[int], images: Sequence[FlyingImage], kind: RowKind
    ) -> list[Step | None]:
        """See :meth:`InFlight.tick`; ``bound`` was told of the images. Without gradients: that is
        for the caller to see to."""
        ...


class _EagerImage(NamedTuple):
    """An image, with its `Numbers` by evaluation, as tensors ``[12]``."""

    run: FixedRun
    numbers: Sequence[Tensor]


class EagerStates:
    """Every image is taken further by the program of its own plan, as the pipeline does it."""

    def __init__(self) -> None:
        self._images: dict[int, _EagerImage] = {}

    def load(self, slot: int, image: FlyingImage, latents: Tensor, noise: Tensor | None) -> None:
        drawn = None if noise is None else uploaded(noise, latents.device)
        numbers = uploaded(torch.tensor(image.numbers), latents.device).unbind()
        self._images[slot] = _EagerImage(FixedRun(image.plan, latents, drawn), numbers)

    def leave(self, slot: int) -> None:
        del self._images[slot]

    def latents(self, slot: int) -> Tensor:
        return self._images[slot].run.state

    def tick(
        self, bound: BoundTick, slots: Sequence[int], images: Sequence[FlyingImage], kind: RowKind
    ) -> list[Step | None]:
        runs = []
        for place, (slot, image) in enumerate(zip(slots, images, strict=True)):
            run, numbers = self._images[slot]
            bound.numbers_by_image[place].copy_(numbers[image.done])
            runs.append(run)
        x = bound.x
        if len(runs) == bound.denoiser.images == 1:
            x = runs[0].state
        else:
            for into, run in zip(bound.x_by_image, runs, strict=False):  # some may be left over
                into.copy_(run.state)
        denoised = bound.by_image(bound.denoiser.denoise(x, bound.numbers, kind))
        unconditional = denoised
        if kind.unconditional:
            unconditional = bound.by_image(bound.denoiser.unconditional)
        return [
            run.advance(result, without if run.needs_unconditional else None)
            for run, result, without in zip(runs, denoised, unconditional, strict=False)
        ]


class CapturedStates:
    """One captured tick a bucket takes all images further, whatever their plans."""

    def __init__(
        self,
        slots: int,
        shape: Sequence[int],
        device: torch.device,
        capture: Capture,
        graphs: CudaGraphCache,
    ) -> None:
        self._slots = Slots(slots, shape, len(Numbers._fields), device)
        self._capture: Capture | None = capture
        self._graphs = graphs
        self._ticks: WeakKeyDictionary[BoundTick, Tick] = WeakKeyDictionary()
        self._steps: dict[int, int] = {}
        # What every captured tick does, so that few have to be captured.
        self._features, self._kind = Features(), RowKind()

    def load(self, slot: int, image: FlyingImage, latents: Tensor, noise: Tensor | None) -> None:
        self._slots.load(range(slot, slot + 1), image.plan, latents, noise, image.numbers)
        self._features |= Features.of(image.plan)
        self._kind |= image.kind
        self._steps[slot] = 0

    def leave(self, slot: int) -> None:
        del self._steps[slot]

    def latents(self, slot: int) -> Tensor:
        return self._slots.state[slot : slot + 1]

    def tick(
        self, bound: BoundTick, slots: Sequence[int], images: Sequence[FlyingImage], kind: RowKind
    ) -> list[Step | None]:
        tick = self._ticks.get(bound)
        if tick is None:
            tick = self._ticks[bound] = Tick(self._slots, bound.denoiser.images, bound.denoiser)
        self._kind |= kind
        self._replay(bound, tick, slots)
        denoised = bound.by_image(tick.denoised)
        return [
            self._step(slot, image, result)
            for slot, image, result in zip(slots, images, denoised, strict=False)
        ]

    def _replay(self, bound: BoundTick, tick: Tick, slots: Sequence[int]) -> None:
        features, kind = self._features, self._kind

        def stage() -> None:
            tick.stage(features, kind)

        def make(capture: Capture) -> Graph:
            # What was captured with less, or where the slots lay before, is of no use any more.
            self._graphs.drop(bound)
            tick.take(())  # the run before the capture takes nobody further
            return capture(stage, bound.denoiser.held())

        if self._capture is not None:
            capture = self._capture
            key = (bound, self._slots.version, features, kind)
            try:
                graph = self._graphs.get(key, lambda: make(capture))
                tick.take(slots)
                graph.replay()
                return
            except CaptureError as error:
                self._capture = None
                warnings.warn(
                    f"a tick cannot be captured in a CUDA graph ({error}); running without",
                    CaptureWarning,
                    stacklevel=2,
                )
        tick.take(slots)
        stage()

    def _step(self, slot: int, image: FlyingImage, denoised: Tensor) -> Step | None:
        if not image.plan.stages[image.done].ends_step:
            return None
        index, sigmas = self._steps[slot], image.plan.sigmas
        self._steps[slot] += 1
        return Step(index, sigmas[index], sigmas[index + 1], self.latents(slot), denoised)
