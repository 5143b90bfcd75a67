"""From a sampling run to its steps: the denoiser of its size, and the loop that its plan needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from kdrt.common.log import timed_steps
from kdrt.common.lru import LruCache
from kdrt.denoise.controls import ControlComponent, control_engines, no_component
from kdrt.denoise.denoiser import Denoiser, for_one_run
from kdrt.denoise.graph_level import CudaGraphLevel
from kdrt.denoise.inputs import DenoiserInputs, SamplingRun
from kdrt.denoise.parts import Parts
from kdrt.denoise.progress import places_of
from kdrt.denoise.scaling import Scaling
from kdrt.sampling import (
    AdaptivePlan,
    Denoise,
    ForeignPlan,
    SeededNoise,
    Step,
    run_adaptive,
    run_foreign,
)
from kdrt.sampling.executor import run_fixed
from kdrt_engines import Engine
from kdrt_engines.cuda_graphs import CudaGraphCache

if TYPE_CHECKING:
    from kdrt.denoise.conditioning_store import ImageShape
    from kdrt.denoise.cuda_graphs import Capture, CudaGraphRunner
    from kdrt.denoise.in_flight import InFlight

_logger = logging.getLogger(__name__)

SIZES_KEPT = 4
"""Sizes whose buffers are kept: enough for a service that alternates, little enough to fit."""


class _Size(NamedTuple):
    """What the buffers depend on: see `Denoiser`."""

    images: int
    height: int
    width: int
    tokens: int
    parts: Parts
    controls: tuple[ControlComponent, ...]


class _Bound(NamedTuple):
    """What is kept for a size; without a runner nothing is captured."""

    denoiser: Denoiser
    runner: CudaGraphRunner | None

    def close(self) -> None:
        if self.runner is not None:
            self.runner.close()


class Denoising:
    """Samples the runs of a pipeline. Buffers of a size are kept for the next run of it; ``len``
    is the number of sizes that have some.

    Attributes:
        graphs: what was captured, for all sizes together.
        unet: the engine.
        version: another number whenever the UNet or its weights have changed.

    Args:
        unet: the engine.
        scaling: of the model.
        shallow: gives the shallow UNet, called when it is first needed.
        control: gives the engine of a control, likewise.
        cuda_graph: how much to capture.
        stream: to capture on; None on a CPU.
    """

    def __init__(
        self,
        unet: Engine,
        scaling: Scaling,
        *,
        shallow: Callable[[], Engine],
        control: Callable[[str], Engine] = no_component,
        cuda_graph: CudaGraphLevel,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self.unet = unet
        self.version = 0
        self._scaling = scaling
        self._shallow = shallow
        self._control = control
        self._cuda_graph = cuda_graph
        self._stream = stream
        self.graphs = CudaGraphCache()
        self._bound: LruCache[_Size, _Bound] = LruCache(SIZES_KEPT, on_evict=_Bound.close)

    def __len__(self) -> int:
        return len(self._bound)

    def use(self, unet: Engine) -> None:
        """Go on with another UNet, or with the same one after its weights have changed."""
        self.unet = unet
        self.version += 1
        self.clear()

    def clear(self) -> None:
        """Free the buffers and captured graphs of every size."""
        self._bound.clear()

    def in_flight(
        self, shape: ImageShape, slots: int, controls: Sequence[ControlComponent] = ()
    ) -> InFlight:
        """Room for images of one shape, with the same ``controls``, that come from different runs,
        ``slots`` at a time."""
        from kdrt.denoise.in_flight import InFlight  # only a batcher needs it

        return InFlight(
            self.unet,
            self._scaling,
            shape,
            slots,
            controls=controls,
            load_control=self._control,
            capture=self._capture(),
            graphs=self.graphs,
        )

    def sample(self, run: SamplingRun, *, watched: bool) -> Iterator[Step]:
        """Sample a run, step by step.

        Args:
            run: what to sample.
            watched: whether every step is wanted, or only the last.

        Raises:
            ShapeError: the engine does not allow these sizes.
        """
        stage = f"sampled {len(run.latents)} image(s), {run.plan.steps} step(s)"
        steps = self._sample(run, watched=watched)
        return timed_steps(_logger, stage, steps, self.unet.device)

    def _sample(self, run: SamplingRun, *, watched: bool) -> Iterator[Step]:
        plan, latents, inputs = run.plan, run.latents, run.inputs
        if isinstance(plan, AdaptivePlan):
            return self._sample_adaptively(plan, run)
        denoiser, runner = self._prepared(run, inputs)
        if isinstance(plan, ForeignPlan):
            denoise = for_one_run(denoiser, inputs.shortcuts, _places(run))
            schedule = inputs.noise_schedule or self._scaling.noise_schedule
            return run_foreign(plan, latents, denoise, run.noise, schedule, run.seed)
        noise = run.noise.draw(plan.slots).to(latents.device)
        if runner is None:
            denoise = for_one_run(denoiser, inputs.shortcuts, _places(run))
            return run_fixed(plan, latents, denoise, noise)
        return runner.run(plan, latents, noise, shortcuts=inputs.shortcuts, watched=watched)

    def _sample_adaptively(self, plan: AdaptivePlan, run: SamplingRun) -> Iterator[Step]:
        """Image by image: the step size of one must not depend on its neighbours."""

        def denoiser_of(image: int) -> Denoise:
            inputs = run.inputs.one(image)
            denoiser = self._prepared(run, inputs).denoiser
            return for_one_run(denoiser, inputs.shortcuts, _places(run))

        noise = run.noise.another if isinstance(run.noise, SeededNoise) else None
        return run_adaptive(plan, run.latents, denoiser_of, noise)

    def _prepared(self, run: SamplingRun, inputs: DenoiserInputs) -> _Bound:
        """What runs all images of a run, or the one whose inputs these are."""
        images, tokens, _ = inputs.positive.prompt.encoder_hidden_states.shape
        height, width = run.latents.shape[-2:]
        size = _Size(images, height, width, tokens, inputs.parts, inputs.control_components)
        bound = self._bound.get(size, lambda: self._bind(size))
        bound.denoiser.prepare(inputs, unconditional=run.plan.needs_unconditional)
        return bound

    def _bind(self, size: _Size) -> _Bound:
        _logger.debug(
            "binding the UNet for %d image(s) of %d by %d latents, %d tokens, %d row(s) an image",
            *size[:4],
            size.parts.rows,
        )
        denoiser = Denoiser(
            self.unet,
            self._scaling,
            **{**size._asdict(), "controls": control_engines(size.controls, self._control)},
            shallow=self._shallow,
        )
        return _Bound(denoiser, self._runner(denoiser))

    def _runner(self, denoiser: Denoiser) -> CudaGraphRunner | None:
        capture = self._capture()
        if capture is None:
            return None
        from kdrt.denoise.cuda_graphs import CudaGraphRunner

        return CudaGraphRunner(denoiser, self._cuda_graph, self.graphs, capture)

    def _capture(self) -> Capture | None:
        """What captures CUDA graphs of this UNet; None where there are none."""
        if self._cuda_graph == "off" or self._stream is None or not self.unet.capturable:
            return None
        from kdrt.denoise.cuda_graphs import capture_on

        return capture_on(self._stream)


def _places(run: SamplingRun) -> Callable[[float], float] | None:
    """Where its evaluations are, if that matters."""
    return places_of(run.plan) if run.inputs.controls else None
