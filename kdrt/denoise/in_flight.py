"""Images of one shape on their way together, whatever their samplers, steps and guidance.

Each takes a slot when it is admitted, and gives it back when it leaves; in between, a tick takes
those that it is asked for one evaluation further. A tick is bound for a *bucket*: some number of
images and of rows of the UNet. On a CPU there is one for every number, as a row that is left over
would cost as much as any other. On CUDA there are few: the rows are a power of two, and the images
as many as so many rows could be of, since an image that is left over costs next to nothing, and a
captured tick more has memory of its own.

What the samplers make of an evaluation is computed as the pipeline computes it, so that an image
in company is the image made alone: operation by operation, each image by its own program
(`kdrt.sampling.executor`); where ticks are captured in CUDA graphs, from tables on the device
(`kdrt.sampling.slots`).
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from kdrt.common.lru import LruCache
from kdrt.common.upload import upload
from kdrt.denoise.cuda_graphs import Capture, CaptureWarning
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.row_denoiser import (
    ConditioningStore,
    ImageRows,
    ImageShape,
    RowDenoiser,
    RowKind,
)
from kdrt.denoise.scaling import Numbers, Scaling
from kdrt.denoise.shortcuts import Shortcuts
from kdrt.sampling import AnyPlan, Plan, Step
from kdrt.sampling.executor import FixedRun
from kdrt.sampling.slots import Slots, Tick
from kdrt.sampling.table import Features, fits
from kdrt_engines import Engine
from kdrt_engines.cuda_graphs import CaptureError, CudaGraphCache, Graph

_logger = logging.getLogger(__name__)

_BUCKETS = 8
"""Buckets of a shape that are kept bound."""


def can_share(plan: AnyPlan, shortcuts: Shortcuts) -> bool:
    """Whether images can share their evaluations with those of other requests: their steps are
    fixed, and every evaluation is one of the whole UNet."""
    return isinstance(plan, Plan) and fits(plan) and shortcuts.deep_cache is None


class Bucket(NamedTuple):
    """The size of a tick: most images, most rows of the UNet."""

    images: int
    rows: int


@dataclass
class _Image:
    """An image on its way.

    Attributes:
        inputs: of this image alone.
        plan: the sampler on its grid.
        numbers: for every evaluation.
        guided: for every evaluation, whether it has an unconditional half.
        kind: what it needs of every evaluation, guidance apart.
        serial: no other image had or will have it.
        done: evaluations.
    """

    inputs: DenoiserInputs
    plan: Plan
    numbers: list[Numbers]
    guided: tuple[bool, ...]
    kind: RowKind
    serial: int
    done: int = 0

    @property
    def is_finished(self) -> bool:
        return self.done == len(self.plan.stages)


class _Bound:
    """What is kept for a bucket.

    Attributes:
        denoiser: of its images.
        told: whose rows the UNet was told last.
        x, numbers: what the denoiser is given where ticks are not captured.
        places: ``x`` by image.
    """

    def __init__(self, denoiser: RowDenoiser, like: Tensor) -> None:
        self.denoiser = denoiser
        self.told: tuple[tuple[ImageRows, int], ...] = ()
        self.x = like.new_zeros(denoiser.images, *like.shape)
        self.numbers = like.new_zeros(denoiser.images, len(Numbers._fields))
        self.places = torch.split(self.x, 1)
        self._views: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def by_image(self, results: Tensor) -> tuple[Tensor, ...]:
        """Views of what the denoiser returned, ``[1, C, h, w]`` each, made once as it returns the
        same tensors every time."""
        if id(results) not in self._views:
            self._views[id(results)] = results, torch.split(results, 1)
        return self._views[id(results)][1]


class _States(Protocol):
    """The states of images in slots, and what takes them further."""

    def load(self, slot: int, image: _Image, latents: Tensor, noise: Tensor | None) -> None:
        """Put an image into a slot: ``latents [1, C, h, w]``, ``noise [draws, 1, C, h, w]``."""
        ...

    def leave(self, slot: int) -> None: ...

    def latents(self, slot: int) -> Tensor:
        """The newest state of an image, ``[1, C, h, w]``."""
        ...

    def tick(
        self, bound: _Bound, slots: Sequence[int], images: Sequence[_Image], kind: RowKind
    ) -> list[Step | None]:
        """See :meth:`InFlight.tick`; ``bound`` was told of the images."""
        ...


class InFlight:
    """The images of one shape that are on their way.

    Args:
        unet: the engine.
        scaling: of the model.
        shape: of the images.
        slots: most images at a time.
        capture: captures a tick in a CUDA graph; None enqueues every operation by itself.
        graphs: what is captured, for all shapes together.
    """

    def __init__(
        self,
        unet: Engine,
        scaling: Scaling,
        shape: ImageShape,
        slots: int,
        *,
        capture: Capture | None = None,
        graphs: CudaGraphCache | None = None,
    ) -> None:
        self._scaling = scaling
        self._shape = shape
        self._graphs = CudaGraphCache() if graphs is None else graphs
        self._images: dict[int, _Image] = {}
        self._free = sorted(range(slots), reverse=True)
        self._slots = slots
        self._admitted = 0
        channels = unet.spec.outputs[0].resolve({"B": 1, "h": 1, "w": 1})[1]
        self._latents = latents = (channels, shape.height, shape.width)
        self._states: _States
        if capture is None:
            self._states = _EagerStates()
        else:
            self._states = _CapturedStates(slots, latents, unet.device, capture, self._graphs)
        self._use(unet)

    def __len__(self) -> int:
        return len(self._images)

    def use(self, unet: Engine) -> None:
        """Go on with another UNet, or with the same one after its weights have changed."""
        self.release()
        self._use(unet)
        for slot, image in self._images.items():
            self._store.write(slot, image.inputs)

    def release(self) -> None:
        """Let go of all that was bound and captured, when no tick uses it any more; the images
        stay where they are."""
        device = self._unet.device
        if device.type == "cuda" and len(self._bound):
            torch.cuda.current_stream(device).synchronize()
        self._bound.clear()

    def admit(
        self, plan: Plan, latents: Tensor, noise: Tensor | None, inputs: DenoiserInputs
    ) -> int:
        """Put an image into a free slot.

        Args:
            plan: one that :func:`can_share`.
            latents: ``[1, C, h, w]``, at the noise level ``plan.sigmas[0]``.
            noise: ``[len(plan.slots), 1, C, h, w]``; None where the plan has no slots.
            inputs: what the denoiser is told, of one image.

        Returns:
            The slot.

        Raises:
            OutOfMemoryError: it does not fit; nothing has changed.
        """
        kinds = inputs.shortcuts.kinds(stage.sigma for stage in plan.stages)
        guidance = inputs.guidance_scale, inputs.guidance_rescale
        self._admitted += 1
        image = _Image(
            inputs,
            plan,
            [Numbers(*self._scaling.scalars(stage.sigma), *guidance) for stage in plan.stages],
            tuple(inputs.negative is not None and kind.guided for kind in kinds),
            RowKind(
                rescales=inputs.guidance_rescale > 0,
                unconditional=plan.needs_unconditional,
                region=inputs.known_region is not None,
            ),
            self._admitted,
        )
        slot = self._free[-1]
        self._states.load(slot, image, latents, noise)
        self._store.write(slot, inputs)
        self._images[slot] = image
        self._free.pop()
        return slot

    def tick(self, slots: Sequence[int]) -> list[Step | None]:
        """Take the images in these slots one evaluation further, with one run of the UNet.

        Returns:
            For each, in order, the step of one image that it has completed with it, if it has;
            its tensors are valid until the next tick.

        Raises:
            ShapeError: the engine does not allow so many rows; nothing has changed.
        """
        images = [self._images[slot] for slot in slots]
        rows = [
            ImageRows(slot, image.guided[image.done])
            for slot, image in zip(slots, images, strict=True)
        ]
        guided = sum(row.guided for row in rows)
        bound = self._bound_for(len(rows), len(rows) + guided)
        told = tuple((row, image.serial) for row, image in zip(rows, images, strict=True))
        if told != bound.told:
            bound.told = ()  # should it fail half-way
            bound.denoiser.take(rows)
            bound.told = told
        kind = RowKind(guided=guided > 0)
        for image in images:
            kind |= image.kind
        steps = self._states.tick(bound, slots, images, kind)
        for image in images:
            image.done += 1
        return steps

    def is_finished(self, slot: int) -> bool:
        """Whether the image there has made its last evaluation."""
        return self._images[slot].is_finished

    def latents(self, slot: int) -> Tensor:
        """A copy of the newest state of an image, float32 ``[1, C, h, w]``."""
        return self._states.latents(slot).clone()

    def leave(self, slot: int) -> None:
        """The slot is free again, whether or not its image is finished."""
        del self._images[slot]
        self._states.leave(slot)
        self._free.append(slot)

    def _bound_for(self, images: int, rows: int) -> _Bound:
        least, most = self._row_limits
        if self._unet.device.type == "cpu":
            bucket = Bucket(images, max(least, rows))
        else:
            rows = max(least, rows, min(_power_of_two(rows), most))
            bucket = Bucket(min(rows, self._slots), rows)
        return self._bound.get(bucket, lambda: self._bind(bucket))

    def _bind(self, bucket: Bucket) -> _Bound:
        _logger.debug(
            "binding the UNet for %d image(s) in %d row(s) of %d by %d latents, %d tokens",
            *bucket,
            *self._shape,
        )
        denoiser = RowDenoiser(
            self._unet, self._store, self._scaling, self._shape, **bucket._asdict()
        )
        return _Bound(denoiser, torch.zeros(self._latents, device=self._unet.device))

    def _use(self, unet: Engine) -> None:
        self._unet = unet
        self._row_limits = unet.limits().get("B", (1, sys.maxsize))
        self._store = ConditioningStore(unet, self._slots, self._shape)
        self._bound: LruCache[Bucket, _Bound] = LruCache(_BUCKETS, on_evict=self._graphs.drop)


class _EagerStates:
    """Every image is taken further by the program of its own plan, as the pipeline does it."""

    def __init__(self) -> None:
        self._runs: dict[int, FixedRun] = {}

    def load(self, slot: int, image: _Image, latents: Tensor, noise: Tensor | None) -> None:
        drawn = None if noise is None else noise.to(latents.device)
        self._runs[slot] = FixedRun(image.plan, latents, drawn)

    def leave(self, slot: int) -> None:
        del self._runs[slot]

    def latents(self, slot: int) -> Tensor:
        return self._runs[slot].state

    @torch.no_grad()
    def tick(
        self, bound: _Bound, slots: Sequence[int], images: Sequence[_Image], kind: RowKind
    ) -> list[Step | None]:
        runs = [self._runs[slot] for slot in slots]
        for place, run in zip(bound.places, runs, strict=False):  # some places may be left over
            place.copy_(run.state)
        told = torch.tensor([image.numbers[image.done] for image in images])
        upload(bound.numbers[: len(told)], told)
        denoised = bound.by_image(bound.denoiser.denoise(bound.x, bound.numbers, kind))
        unconditional = denoised
        if kind.unconditional:
            unconditional = bound.by_image(bound.denoiser.unconditional)
        return [
            run.advance(result, without if run.needs_unconditional else None)
            for run, result, without in zip(runs, denoised, unconditional, strict=False)
        ]


class _CapturedStates:
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
        self._ticks: WeakKeyDictionary[_Bound, Tick] = WeakKeyDictionary()
        self._steps: dict[int, int] = {}
        # What every captured tick does, so that few have to be captured.
        self._features, self._kind = Features(), RowKind()

    def load(self, slot: int, image: _Image, latents: Tensor, noise: Tensor | None) -> None:
        self._slots.load(range(slot, slot + 1), image.plan, latents, noise, image.numbers)
        self._features |= Features.of(image.plan)
        self._kind |= image.kind
        self._steps[slot] = 0

    def leave(self, slot: int) -> None:
        del self._steps[slot]

    def latents(self, slot: int) -> Tensor:
        return self._slots.state[slot : slot + 1]

    def tick(
        self, bound: _Bound, slots: Sequence[int], images: Sequence[_Image], kind: RowKind
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

    def _replay(self, bound: _Bound, tick: Tick, slots: Sequence[int]) -> None:
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

    def _step(self, slot: int, image: _Image, denoised: Tensor) -> Step | None:
        if not image.plan.stages[image.done].ends_step:
            return None
        index, sigmas = self._steps[slot], image.plan.sigmas
        self._steps[slot] += 1
        return Step(index, sigmas[index], sigmas[index + 1], self.latents(slot), denoised)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
