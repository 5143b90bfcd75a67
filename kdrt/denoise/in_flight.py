"""Images of one shape on their way together, whatever their samplers, steps and guidance.

Each takes a slot when it is admitted, and gives it back when it leaves; in between, a tick takes
those that it is asked for one evaluation further. A tick is bound for a *bucket*: some number of
images and of rows of the UNet. On a CPU there is one for every number, as a row that is left over
would cost as much as any other. On CUDA there are few: 1, 2, 3, 4, 6, 8, 12, … rows, and as many
images as so many rows could be of, since an image that is left over costs next to nothing, and a
captured tick more has memory of its own.

What the samplers make of an evaluation is computed as the pipeline computes it, so that an image
in company is the image made alone: operation by operation, each image by its own program
(`kdrt.sampling.executor`); where ticks are captured in CUDA graphs, from tables on the device
(`kdrt.sampling.slots`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kdrt.common.lru import LruCache
from kdrt.denoise.conditioning_store import ConditioningStore, ImageShape
from kdrt.denoise.controls import ControlComponent, control_engines, no_component
from kdrt.denoise.cuda_graphs import Capture
from kdrt.denoise.flight_states import (
    BoundTick,
    CapturedStates,
    EagerStates,
    FlyingImage,
    States,
)
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.known_region import threshold_of
from kdrt.denoise.progress import steps_of
from kdrt.denoise.row_denoiser import ImageRows, RowDenoiser, RowKind
from kdrt.denoise.scaling import Scaling
from kdrt.denoise.shortcuts import Shortcuts
from kdrt.sampling import AnyPlan, Plan, Step
from kdrt.sampling.table import fits
from kdrt_engines import Engine
from kdrt_engines.cuda_graphs import CudaGraphCache

_logger = logging.getLogger(__name__)

_BUCKETS = 32
"""Buckets of a shape that are kept bound: on a CPU mixed requests need two dozen."""


def can_share(plan: AnyPlan, shortcuts: Shortcuts) -> bool:
    """Whether images can share their evaluations with those of other requests: their steps are
    fixed, and every evaluation is one of the whole UNet."""
    return isinstance(plan, Plan) and fits(plan) and shortcuts.deep_cache is None


class Bucket(NamedTuple):
    """The size of a tick: most images, most rows of the UNet."""

    images: int
    rows: int


class Ticked(NamedTuple):
    """What a tick did.

    Attributes:
        steps: for each of its images, in order, the step of one image that it has completed with
            it, if it has; its tensors are valid until the next tick.
        rows: of the UNet that it took.
        finished: whether one of its images has made its last evaluation.
    """

    steps: list[Step | None]
    rows: int
    finished: bool


@dataclass(slots=True)
class _Company:
    """Images that tick together, for as long as nothing changes: beside the UNet of a small model
    every line of Python is felt.

    Attributes:
        slots, images: which.
        rows: of the UNet that they take.
        bound: for so many; its UNet was told of them.
        kind: what they need together.
        ticks: for which all this holds, unless images come or leave.
        finishes: whether an image is finished after them.
    """

    slots: list[int]
    images: list[FlyingImage]
    rows: int
    bound: BoundTick
    kind: RowKind
    ticks: int
    finishes: bool


class InFlight:
    """The images of one shape that are on their way.

    Args:
        unet: the engine.
        scaling: of the model.
        shape: of the images.
        slots: most images at a time.
        controls: that all of them have.
        load_control: gives the engine of a component.
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
        controls: Sequence[ControlComponent] = (),
        load_control: Callable[[str], Engine] = no_component,
        capture: Capture | None = None,
        graphs: CudaGraphCache | None = None,
    ) -> None:
        self._scaling = scaling
        self._shape = shape
        self._control_components, self._load_control = tuple(controls), load_control
        self._graphs = CudaGraphCache() if graphs is None else graphs
        self._images: dict[int, FlyingImage] = {}
        self._free = sorted(range(slots), reverse=True)
        self._slots = slots
        self._admitted = 0
        self._company: _Company | None = None
        channels = unet.spec.outputs[0].resolve({"B": 1, "h": 1, "w": 1})[1]
        self._latents = latents = (channels, shape.height, shape.width)
        self._states: States
        if capture is None:
            self._states = EagerStates()
        else:
            self._states = CapturedStates(slots, latents, unet.device, capture, self._graphs)
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
        self._company = None

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
        parts = tuple(
            inputs.parts if kind.guided else inputs.parts.without_guidance for kind in kinds
        )
        guidance, scaling = inputs.guidance, self._scaling
        if inputs.noise_schedule is not None:
            scaling = replace(scaling, noise_schedule=inputs.noise_schedule)
        region = inputs.known_region
        self._admitted += 1
        image = FlyingImage(
            inputs,
            plan,
            [
                (guidance if own.unconditional else guidance.without_unconditional)
                .numbers(scaling.scalars(stage.sigma))
                ._replace(mask_threshold=threshold_of(region, stage.sigma), place=place)
                for stage, own, place in zip(plan.stages, parts, steps_of(plan), strict=True)
            ],
            parts,
            tuple(
                any(control.works_at(place) for control in inputs.controls)
                for place in steps_of(plan)
            ),
            RowKind(
                rescales=inputs.guidance_rescale > 0,
                unconditional=plan.needs_unconditional,
                region=region is not None,
                apg=guidance.method.is_apg,
                zero_star=guidance.method.is_zero_star,
            ),
            self._admitted,
        )
        slot = self._free[-1]
        self._states.load(slot, image, latents, noise)
        self._store.write(slot, inputs)
        self._images[slot] = image
        self._free.pop()
        return slot

    @torch.no_grad()
    def tick(self, slots: Sequence[int]) -> Ticked:
        """Take the images in these slots one evaluation further, with one run of the UNet.

        Raises:
            ShapeError: the engine does not allow so many rows; nothing has changed.
        """
        company, self._company = self._company, None  # should it fail half-way
        if company is None or not company.ticks or company.slots != slots:
            company = self._gathered(list(slots))
        steps = self._states.tick(company.bound, company.slots, company.images, company.kind)
        for image in company.images:
            image.done += 1
        company.ticks -= 1
        self._company = company
        return Ticked(steps, company.rows, company.finishes and not company.ticks)

    def _gathered(self, slots: list[int]) -> _Company:
        images = [self._images[slot] for slot in slots]
        rows = [
            ImageRows(slot, image.parts[image.done])
            for slot, image in zip(slots, images, strict=True)
        ]
        parts = [row.parts for row in rows]
        count = sum(each.rows for each in parts)
        bound = self._bound_for(len(rows), count)
        told = tuple((row, image.serial) for row, image in zip(rows, images, strict=True))
        if told != bound.told:
            bound.told = ()  # should it fail half-way
            bound.denoiser.take(rows)
            bound.told = told
        kind = RowKind(
            guided=any(each.unconditional for each in parts),
            perturbed=any(each.perturbed for each in parts),
            regions=max(each.regions for each in parts),
            controlled=any(image.controlled[image.done] for image in images),
        )
        for image in images:
            kind |= image.kind
        ticks = min(image.like_the_next for image in images)
        finishes = any(image.left == ticks for image in images)
        return _Company(slots, images, count, bound, kind, ticks, finishes)

    def is_finished(self, slot: int) -> bool:
        """Whether the image there has made its last evaluation."""
        return not self._images[slot].left

    def latents(self, slot: int) -> Tensor:
        """A copy of the newest state of an image, float32 ``[1, C, h, w]``."""
        return self._states.latents(slot).clone()

    def leave(self, slot: int) -> None:
        """The slot is free again, whether or not its image is finished."""
        self._company = None
        del self._images[slot]
        self._states.leave(slot)
        self._free.append(slot)

    def _bound_for(self, images: int, rows: int) -> BoundTick:
        least, most = self._row_limits
        if self._unet.device.type == "cpu":
            bucket = Bucket(images, max(least, rows))
        else:
            rows = max(least, rows, min(_rows_of_bucket(rows), most))
            bucket = Bucket(min(rows, self._slots), rows)
        return self._bound.get(bucket, lambda: self._bind(bucket))

    def _bind(self, bucket: Bucket) -> BoundTick:
        _logger.debug(
            "binding the UNet for %d image(s) in %d row(s) of %d by %d latents, %d tokens",
            *bucket,
            *self._shape,
        )
        denoiser = RowDenoiser(
            self._unet,
            self._store,
            self._scaling,
            self._shape,
            **bucket._asdict(),
            may_skip_gathering=isinstance(self._states, EagerStates),
        )
        return BoundTick(denoiser, torch.zeros(self._latents, device=self._unet.device))

    def _use(self, unet: Engine) -> None:
        self._unet = unet
        self._row_limits = unet.limits().get("B", (1, sys.maxsize))
        controls = control_engines(self._control_components, self._load_control)
        self._store = ConditioningStore(unet, self._slots, self._shape, controls)
        self._bound: LruCache[Bucket, BoundTick] = LruCache(_BUCKETS, on_evict=self._graphs.drop)


def _rows_of_bucket(rows: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, …: at most a third of the rows is left over."""
    power = 1 << (rows - 1).bit_length()
    return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power
