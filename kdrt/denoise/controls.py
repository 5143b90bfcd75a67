"""ControlNets and T2I-Adapters: what they add to the layers of a UNet.

A ControlNet is a network beside the UNet. At every evaluation it is told what the UNet is told,
and its *residuals* are added to the UNet's layers; those of several are summed. A T2I-Adapter sees
nothing but its image: its *features* are computed once for an image, and added with a factor.

Both have a scale, and work between two places of a run (`kdrt.denoise.progress`). Scales, places
and images lie on the device, row by row, so that a captured evaluation serves any of them. Outside
of its places a control adds 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from kdrt.bundle.components import is_residual
from kdrt.common.upload import upload
from kdrt.denoise.parts import Parts
from kdrt.denoise.progress import Window
from kdrt.errors import EngineError
from kdrt_engines import Engine
from kdrt_engines.torch_eager import allocate

HINT = "hint"
"""The input by which a ControlNet takes its image."""

_SCALES = "scales"
"""Its factors on the residuals, from the outermost to the middle."""

_TOLD = ("encoder_hidden_states", "text_embeds", "time_ids")
"""What it is told of the prompts, as the UNet is."""


class ControlComponent(NamedTuple):
    """A component that controls; ``is_network`` tells a ControlNet, which runs at every
    evaluation, from a T2I-Adapter."""

    name: str
    is_network: bool


@dataclass(frozen=True, kw_only=True)
class Control:
    """What one ControlNet or T2I-Adapter is told of B images.

    Attributes:
        component: which one.
        images: what was computed of its images once, ``[B, …]`` each: the hint of a ControlNet, or
            the features of an adapter by the UNet's inputs that take them.
        scale: the factor on all that it adds.
        window: where in the run it works.
        guess: of a ControlNet, guess mode: nothing is added to the unconditional part, and to the
            outer layers of the others less, from a tenth on.
        fades: False where guess mode leaves the outer layers as they are.
    """

    component: ControlComponent
    images: Mapping[str, Tensor]
    scale: float = 1.0
    window: Window = (0, 0)
    guess: bool = False
    fades: bool = True

    def works_at(self, place: float) -> bool:
        """Whether it adds anything at a place of the run."""
        first, last = self.window
        return first <= place <= last

    def one(self, image: int) -> Control:
        """That of one image, still as a batch: B = 1."""
        own = {name: tensor[image : image + 1] for name, tensor in self.images.items()}
        return replace(self, images=own)

    def weights(self, count: int) -> Tensor:
        """The factors on ``count`` residuals, float32 ``[2, count]``: of a row of the unconditional
        part, and of any other."""
        weights = torch.full((2, count), self.scale)
        if self.guess:
            weights[0] = 0
            if self.fades:
                weights[1] *= torch.logspace(-1, 0, count)
        return weights


def no_component(component: str) -> Engine:
    """Stands for what loads components where there are none."""
    raise EngineError(f"there is no {component} here")


class ControlEngine:
    """What one control is computed with.

    Args:
        component: which one.
        load: gives the engine of a component.
    """

    def __init__(self, component: ControlComponent, load: Callable[[str], Engine]) -> None:
        self.component = component
        self.engine = load(component.name)

    def images(self, dims: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
        """Zeroed tensors for what is computed of images: see `Control.images`."""
        spec = self.engine.spec
        tensors = (spec.input(HINT),) if self.component.is_network else spec.outputs
        return allocate(tensors, dict(dims), device)

    @property
    def count(self) -> int:
        """How many factors there are."""
        if not self.component.is_network:
            return 1
        size = self.engine.spec.input(_SCALES).shape[1]
        assert isinstance(size, int)  # it follows from the layers
        return size


ControlEngines = Sequence[ControlEngine]
"""In the order in which their residuals are summed."""


def control_engines(
    components: Sequence[ControlComponent], load: Callable[[str], Engine]
) -> ControlEngines | None:
    """The engines of some controls; None if there are none."""
    return [ControlEngine(component, load) for component in components] or None


class ControlStore:
    """What the controls of the images in S slots are told, on the device.

    Attributes:
        images: of each control, by name, ``[S, …]``.
        weights: of each, ``[2·S, n]``, two rows a slot: see `Control.weights`.
        windows: ``[2, K, S]``: the first and the last place of K controls.

    Args:
        engines: of the controls; all images have the same ones.
        slots: S.
        dims: rows and columns of the latents, and tokens.
        device: of the UNet.
    """

    def __init__(
        self, engines: ControlEngines, slots: int, dims: Mapping[str, int], device: torch.device
    ) -> None:
        sizes = {**dims, "B": slots}
        self.images = [engine.images(sizes, device) for engine in engines]
        self.weights = [torch.zeros(2 * slots, engine.count, device=device) for engine in engines]
        self.windows = torch.zeros(2, len(engines), slots, device=device)

    def write(self, slot: int, controls: Sequence[Control]) -> None:
        """Write what those of one image are told, in place of what the slot held."""
        for control, images, weights in zip(controls, self.images, self.weights, strict=True):
            for name, tensor in images.items():
                tensor[slot].copy_(control.images[name][0])
            upload(weights[2 * slot : 2 * slot + 2], control.weights(weights.shape[1]))
        windows = torch.tensor([control.window for control in controls], dtype=torch.float32)
        upload(self.windows[:, :, slot], windows.t())


class BoundControls:
    """The controls of one UNet of R rows.

    Args:
        engines: of the controls.
        dims: R as ``B``, rows and columns of the latents, and tokens.
        unet: the inputs of the UNet, at the addresses that it reads.

    Raises:
        ShapeError: an engine does not allow these sizes.
    """

    def __init__(
        self, engines: ControlEngines, dims: Mapping[str, int], unet: Mapping[str, Tensor]
    ) -> None:
        device = unet["timestep"].device
        self._residuals = [tensor for name, tensor in unet.items() if is_residual(name)]
        self._each = [
            _BoundNetwork(engine.engine, dims, unet)
            if engine.component.is_network
            else _BoundAdapter(engine.images(dims, device), unet)
            for engine in engines
        ]
        count = len(self._each)
        self._windows = torch.zeros(2, count, dims["B"], device=device)
        self._kept = torch.zeros(count, dims["B"], device=device)
        self._before_last = torch.zeros_like(self._kept)
        self._kept_by_control = self._kept[:, :, None].unbind()
        self._controls: Sequence[Control] = ()

    def write(self, controls: Sequence[Control], parts: Parts) -> None:
        """Write what they are told of the images in each part, after the UNet was told it."""
        for control, bound in zip(controls, self._each, strict=True):
            for name, tensor in bound.images.items():
                for part in tensor.chunk(parts.rows):
                    part.copy_(control.images[name])
            without, conditional = control.weights(bound.weights.shape[1])
            for index, part in enumerate(bound.weights.chunk(parts.rows)):
                weights = without if parts.unconditional and index == 0 else conditional
                upload(part, weights.repeat(len(part), 1))
            bound.take_prompts()
        self._controls = controls
        told = [control.window for control in controls]
        windows = torch.tensor(told, dtype=torch.float32).t()[:, :, None]
        upload(self._windows, windows.expand_as(self._windows).contiguous())

    def gather(self, store: ControlStore, slot_of_row: Tensor, is_conditional: Tensor) -> None:
        """Gather what they are told of the images in these rows, after the UNet was told it.

        Args:
            store: holds it.
            slot_of_row: int64 ``[R]``.
            is_conditional: int64 ``[R]``: 0 where a row is of the unconditional part, else 1.
        """
        row_of_weights = 2 * slot_of_row + is_conditional
        for bound, images, weights in zip(self._each, store.images, store.weights, strict=True):
            for name, tensor in images.items():
                torch.index_select(tensor, 0, slot_of_row, out=bound.images[name])
            torch.index_select(weights, 0, row_of_weights, out=bound.weights)
            bound.take_prompts()
        torch.index_select(store.windows, 2, slot_of_row, out=self._windows)

    def clear(self) -> None:
        """Let the UNet's inputs add nothing to its layers."""
        for residual in self._residuals:
            residual.zero_()

    def run(self, sample: Tensor, timestep: Tensor, place: Tensor, *, at: float | None) -> None:
        """Add what they give to the UNet's inputs, after :meth:`clear`.

        Args:
            sample: the scaled latents, ``[R, C, h, w]``.
            timestep: ``[R]``.
            place: of the evaluation in the run of each row, float32 ``[R]``.
            at: that of all rows, where the host knows it: controls that do not work there are not
                run.
        """
        first, last = self._windows
        torch.ge(place, first, out=self._kept)
        torch.le(place, last, out=self._before_last)
        self._kept.mul_(self._before_last)
        for index, (bound, kept) in enumerate(zip(self._each, self._kept_by_control, strict=True)):
            if at is None or self._controls[index].works_at(at):
                bound.add(sample, timestep, kept)

    def held(self) -> tuple[Tensor, ...]:
        """See `kdrt_engines.Binding.workspace`."""
        return tuple(chain.from_iterable(bound.held() for bound in self._each))


class _BoundNetwork:
    """A ControlNet of R rows.

    Attributes:
        images: what was computed of its images.
        weights: the factors on its residuals where it works, ``[R, n]``.
    """

    def __init__(self, engine: Engine, dims: Mapping[str, int], unet: Mapping[str, Tensor]) -> None:
        self._binding = engine.bind(**dims)
        inputs, residuals = self._binding.inputs, self._binding.outputs
        self.images = {HINT: inputs[HINT]}
        self._inputs, self._scales = inputs, inputs[_SCALES]
        self.weights = torch.zeros_like(self._scales)
        self._prompts = [(inputs[name], unet[name]) for name in _TOLD if name in inputs]
        self._added = [(unet[name], residual) for name, residual in residuals.items()]

    def take_prompts(self) -> None:
        """Copy what the UNet was told of the prompts."""
        for own, told in self._prompts:
            own.copy_(told)

    def add(self, sample: Tensor, timestep: Tensor, kept: Tensor) -> None:
        """Run, and add the residuals; ``kept [R, 1]`` is 0 where it does not work."""
        torch.mul(self.weights, kept, out=self._scales)
        self._inputs["sample"].copy_(sample)
        self._inputs["timestep"].copy_(timestep)
        self._binding.run()
        for layer, residual in self._added:
            layer.add_(residual)

    def held(self) -> tuple[Tensor, ...]:
        return self._binding.workspace()


class _BoundAdapter:
    """The features of a T2I-Adapter for R rows; attributes as of `_BoundNetwork`."""

    def __init__(self, images: Mapping[str, Tensor], unet: Mapping[str, Tensor]) -> None:
        self.images = images
        some = next(iter(images.values()))
        self.weights = torch.zeros(len(some), 1, device=some.device)
        self._scale = torch.zeros_like(self.weights)
        # Of the features' dtype, or their product would be made in float32 first.
        self._factor = some.new_zeros(len(some), 1, 1, 1)
        self._added = [(unet[name], features) for name, features in images.items()]

    def take_prompts(self) -> None:
        """It sees nothing but its image."""

    def add(self, sample: Tensor, timestep: Tensor, kept: Tensor) -> None:
        """Add the features; ``kept [R, 1]`` is 0 where it does not work."""
        torch.mul(self.weights, kept, out=self._scale)
        self._factor.copy_(self._scale[:, :, None, None])
        for layer, features in self._added:
            layer.addcmul_(features, self._factor)

    def held(self) -> tuple[Tensor, ...]:
        return ()
