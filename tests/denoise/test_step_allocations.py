"""A request allocates before its first step and after its last, and in between nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import kdrt
from kdrt.bundle import PredictionType
from kdrt.denoise.controls import HINT, Control, control_engines
from kdrt.denoise.cuda_graphs import CudaGraphLevel, CudaGraphRunner
from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.guidance_methods import GuidanceMethod
from kdrt.denoise.inputs import DenoiserInputs, RegionalPrompts, UNetConditioning
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.parts import Parts
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.denoise.progress import window_of
from kdrt.denoise.scaling import Scaling
from kdrt.denoise.shortcuts import Shortcuts
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule
from kdrt_engines import EngineSpec
from kdrt_engines.cuda_graphs import CudaGraphCache
from kdrt_engines.spec import TensorSpec
from tests.support.controlled import EDGES, FEATURES, SCALING, SKETCH, EmptyNetworks
from tests.support.plans import fixed_plan
from tests.support.static_engine import StaticEngine
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, unet_spec

FEW_BYTES = 4096
"""What Python's own objects may grow by over some steps: caches of small numbers and the like."""


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> kdrt.Pipeline:
    return kdrt.load(demo_bundle)


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"sampler": "euler_ancestral"},
    {"sampler": "heun"},
    {"guidance_scale": 1.0},
    {"guidance_interval": (0.5, 5.0)},
    {"sampler": "euler_ancestral_cfg_pp"},
    # For a single image, PyTorch's standard deviation makes a number on the CPU.
    {"guidance_rescale": 0.7, "images_per_prompt": 2},
]


def begun(pipe: kdrt.Pipeline, arguments: dict[str, Any]) -> kdrt.Generation[Any]:
    """A run whose buffers of this size are made, three steps in."""
    pipe("a red circle", seed=1, steps=4, **arguments)
    generation = pipe.stream("a red circle", seed=1, steps=12, **arguments)
    for _ in range(3):
        next(generation)
    return generation


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_no_step_allocates_a_tensor(pipe: kdrt.Pipeline, arguments: dict[str, Any]) -> None:
    generation = begun(pipe, arguments)
    assert_no_allocation(generation)


@dataclass(frozen=True)
class Option:
    """A run with an option of the denoiser: on which kind of network, by which sampler, and what
    the denoiser is told besides."""

    name: str
    prediction_type: PredictionType = "epsilon"
    sigma_data: float | None = None
    sampler: str = "dpmpp_2m_sde"
    inputs: Mapping[str, Any] = field(default_factory=dict)


SHAPE = (2, CHANNELS, 6, 4)
MASK = torch.zeros(2, 1, 6, 4, dtype=torch.bool)
MASK[:, :, 2:] = True
SOFT = KnownRegion.soft(torch.ones(SHAPE), torch.rand(2, 1, 6, 4), (5.0, 2.0, 1.0, 0.0))
INTERVAL = (0.5, 5.0)
WEIGHTS = (2, 2, 1, 6, 4)
HALF = UNetConditioning(
    Conditioning(torch.ones(2, 5, sum(WIDTHS)), torch.ones(2, POOLED)), torch.ones(2, 6)
)
ZERO_STAR = GuidanceMethod("cfg_zero_star")
# Not half precision: on a CPU, PyTorch writes it by way of a temporary.
OPTIONS = [
    Option("plain"),
    Option("v-prediction", "v_prediction"),
    Option("sample prediction", "sample"),
    Option("EDM", "epsilon", 0.5),
    Option("guidance rescale", inputs={"guidance_rescale": 0.7}),
    Option("APG", inputs={"guidance_method": GuidanceMethod("apg", 0.5, 2.0)}),
    Option("CFG-Zero* on v", "v_prediction", inputs={"guidance_method": ZERO_STAR}),
    Option("CFG++", sampler="dpmpp_2m_cfg_pp"),
    Option("CFG++ on v", "v_prediction", sampler="euler_ancestral_cfg_pp"),
    Option("guidance interval", inputs={"shortcuts": Shortcuts(guidance_interval=INTERVAL)}),
    Option("deep cache", inputs={"shortcuts": Shortcuts(deep_cache=3)}),
    Option("both shortcuts", inputs={"shortcuts": Shortcuts(INTERVAL, 2)}),
    Option("PAG", inputs={"perturbed_attention": PerturbedAttention(3.0, 0.001)}),
    Option("regions", inputs={"regions": RegionalPrompts((HALF,), torch.full(WEIGHTS, 0.5))}),
    Option("known region", inputs={"known_region": KnownRegion(torch.ones(SHAPE), MASK)}),
    Option("soft region", inputs={"known_region": SOFT}),
    Option("inpainting network", inputs={"extra_channels": torch.ones(2, CHANNELS + 1, 6, 4)}),
]


def network(option: Option, *, shallow: bool = False) -> StaticEngine:
    spec = unet_spec(perturbed=True)
    extra = option.inputs.get("extra_channels")
    channels = CHANNELS + (0 if extra is None else extra.shape[1])
    sample = TensorSpec("sample", "float32", ("B", channels, "h", "w"))
    inputs, outputs = (sample, *spec.inputs[1:]), spec.outputs
    deep = TensorSpec("deep_feature", "float32", ("B", CHANNELS, "h", "w"))
    if shallow:
        inputs = (*inputs, deep)
    else:
        outputs = (*outputs, deep)
    return StaticEngine(EngineSpec(inputs, outputs))


class Replayed:
    """A stand-in for a captured graph, which does the work again."""

    size = 1

    def __init__(self, work: Callable[[], None], held: Sequence[torch.Tensor]) -> None:
        self.replay = work


@pytest.mark.parametrize("level", ["off", "step"])
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_no_option_allocates_a_tensor_in_a_step(option: Option, level: CudaGraphLevel) -> None:
    """One step after the other, and by the stage that a CUDA graph captures."""
    told = DenoiserInputs(positive=HALF, negative=HALF, guidance_scale=5.0, **option.inputs)
    denoiser = Denoiser(
        network(option),
        Scaling(
            option.prediction_type,
            NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear"),
            option.sigma_data,
        ),
        images=2,
        height=6,
        width=4,
        tokens=5,
        parts=told.parts,
        shallow=lambda: network(option, shallow=True),
    )
    plan = fixed_plan(option.sampler, [14.0, 9.0, 6.0, 4.5, 3.0, 2.0, 1.2, 0.8, 0.4, 0.2, 0.1, 0.0])
    denoiser.prepare(told, unconditional=plan.needs_unconditional)
    runner = CudaGraphRunner(denoiser, level, CudaGraphCache(), Replayed)
    noise = torch.ones(len(plan.slots), *SHAPE)
    steps = runner.run(plan, torch.ones(SHAPE), noise, shortcuts=told.shortcuts)
    for _ in range(3):
        next(steps)
    assert_no_allocation(steps)


@pytest.mark.parametrize("level", ["off", "step"])
def test_no_control_allocates_a_tensor_in_a_step(level: CudaGraphLevel) -> None:
    networks = EmptyNetworks()
    denoiser = Denoiser(
        networks.engine,
        SCALING,
        images=2,
        height=6,
        width=4,
        tokens=5,
        parts=Parts(unconditional=True),
        controls=control_engines((EDGES, SKETCH), networks.engines.__getitem__),
    )
    plan = fixed_plan("heun", [14.0, 9.0, 6.0, 4.5, 3.0, 2.0, 1.2, 0.8, 0.4, 0.2, 0.1, 0.0])
    half = UNetConditioning(Conditioning(torch.ones(2, 5, WIDTHS[0]), None))
    images = [{HINT: torch.ones(SHAPE)}, {FEATURES[0].name: torch.ones(SHAPE)}]
    told = DenoiserInputs(
        positive=half,
        negative=half,
        guidance_scale=5.0,
        controls=tuple(
            Control(component=component, images=each, window=window_of(plan, start, 0.9))
            for component, each, start in zip((EDGES, SKETCH), images, (0.0, 0.5), strict=True)
        ),
    )
    denoiser.prepare(told)
    runner = CudaGraphRunner(denoiser, level, CudaGraphCache(), Replayed)
    steps = runner.run(plan, torch.ones(SHAPE))
    for _ in range(3):
        next(steps)
    assert_no_allocation(steps)


def assert_no_allocation(steps: Iterator[object]) -> None:
    """That six more steps allocate no tensor."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for _ in range(6):
            next(steps)
    assert {event.key for event in record.key_averages()} & {"aten::lerp", "aten::add"}
    allocated = {e.key: e.self_cpu_memory_usage for e in record.key_averages()}
    assert not any(allocated.values()), allocated


def test_the_profiler_sees_an_allocation() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = torch.ones(8) * 2.0
    assert kept.numel() == 8
    assert any(event.self_cpu_memory_usage for event in record.key_averages())


def test_python_keeps_nothing_of_a_step(pipe: kdrt.Pipeline) -> None:
    generation = begun(pipe, {})
    gc.collect()
    tracemalloc.start()
    try:
        next(generation)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(6):
            next(generation)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < FEW_BYTES
