"""Images in company are what they are alone, whoever comes and goes beside them."""

from __future__ import annotations

import gc
import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdrt.bundle import PredictionType
from kdrt.denoise.conditioning_store import ImageShape
from kdrt.denoise.cuda_graphs import Capture, CaptureWarning
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.guidance_methods import GuidanceMethod
from kdrt.denoise.in_flight import Bucket, InFlight, can_share
from kdrt.denoise.inputs import DenoiserInputs, RegionalPrompts, SamplingRun, UNetConditioning
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.denoise.regional import relative_weights
from kdrt.denoise.scaling import Scaling
from kdrt.denoise.shortcuts import NO_SHORTCUTS, Shortcuts
from kdrt.errors import EngineError, OutOfMemoryError, ShapeError
from kdrt.prompt import Conditioning
from kdrt.sampling import SAMPLERS, NoiseSchedule, Plan, SeededNoise, Step, make_plan
from kdrt.sampling.schedules import ContinuousSchedule
from kdrt_engines import Engine, EngineSpec
from kdrt_engines.cuda_graphs import CaptureError, CudaGraphCache, Graph
from kdrt_engines.spec import TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.support.plans import fixed_plan
from tests.support.static_engine import StaticEngine
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, Recorder, tiny_unet, unet_spec

SHAPE = ImageShape(height=4, width=6, tokens=5)
LATENTS = (CHANNELS, SHAPE.height, SHAPE.width)
SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
SIGMAS = (14.6, 7.1, 3.0, 1.2, 0.5, 0.1, 0.0)
INTERVAL = Shortcuts(guidance_interval=(0.7, 5.0))
FIXED = [name for name, info in SAMPLERS.items() if getattr(info, "capturable", True)]


def in_place_unet(sample: Tensor, timestep: Tensor, **rest: Tensor) -> Tensor:
    return tiny_unet(sample[:, :CHANNELS], timestep, **rest)


def engine(spec: EngineSpec | None = None, *, factor: float = 1.0) -> Engine:
    """A UNet that depends on everything it is told, and on each image of its batch alone."""
    spec = spec or unet_spec(perturbed=True)

    def network(**inputs: Tensor) -> Tensor:
        prediction = in_place_unet(**inputs)
        seen = inputs["sample"][:, CHANNELS:].double().mean((1, 2, 3), keepdim=True)
        if inputs["sample"].shape[1] > CHANNELS:
            prediction = prediction + seen.sin().to(prediction.dtype)
        return prediction * factor

    return TorchEngine(Recorder(network, [tensor.name for tensor in spec.inputs]), spec)


def inpainting_spec() -> EngineSpec:
    spec = unet_spec()
    sample = TensorSpec("sample", "float32", ("B", 2 * CHANNELS + 1, "h", "w"))
    return EngineSpec((sample, *spec.inputs[1:]), spec.outputs)


SCALING = Scaling("epsilon", SCHEDULE)


@dataclass(frozen=True)
class Wanted:
    """An image that is asked for: the parts of its run that differ from image to image."""

    seed: int = 0
    sampler: str = "euler"
    sigmas: tuple[float, ...] = SIGMAS
    guidance_scale: float = 5.0
    doubled: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> SamplingRun:
        plan = make_plan(self.sampler, self.sigmas)
        noise = SeededNoise([self.seed], LATENTS)
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=generator)

        def conditioning() -> UNetConditioning:
            prompt = Conditioning(random(SHAPE.tokens, sum(WIDTHS)), random(POOLED))
            return UNetConditioning(prompt, random(6) * 100)

        halves = [conditioning() for _ in range(2)]
        options = dict(self.options)
        if regions := options.pop("regions", 0):
            masks = torch.rand(regions, *LATENTS[1:], generator=generator)
            weights = relative_weights(masks, [1.0] * regions, 0.2)
            options["regions"] = RegionalPrompts(
                tuple(conditioning() for _ in range(regions)), weights[None]
            )
        if kind := options.pop("region", False):
            mask, known = random(1, *LATENTS[1:]), random(*LATENTS)
            options["known_region"] = KnownRegion(known, mask > 0)
            if kind == "soft":
                soft = KnownRegion.soft(known, mask.clamp(0, 1), tuple(self.sigmas))
                options["known_region"] = soft
        if options.pop("extra", False):
            options["extra_channels"] = random(CHANNELS + 1, *LATENTS[1:])
        inputs = DenoiserInputs(
            positive=halves[0],
            negative=halves[1] if self.doubled else None,
            guidance_scale=self.guidance_scale,
            **options,
        )
        return SamplingRun(
            plan=plan, latents=noise.latents() * self.sigmas[0], noise=noise, inputs=inputs
        )


def alone(wanted: Wanted, unet: Engine, scaling: Scaling = SCALING) -> list[Step]:
    """The steps of the image, made by the pipeline's loop."""

    def shallow() -> Engine:
        raise AssertionError("no image of these tests has a deep cache")

    denoising = Denoising(unet, scaling, shallow=shallow, cuda_graph="off", stream=None)
    return [kept(step) for step in denoising.sample(wanted.run(), watched=True)]


def kept(step: Step) -> Step:
    return replace(step, latents=step.latents.clone(), denoised=step.denoised.clone())


@dataclass
class Flight:
    """Images on their way together, each with the steps it has taken."""

    room: InFlight
    slots: dict[Wanted, int] = field(default_factory=dict)
    taken: dict[Wanted, list[Step]] = field(default_factory=dict)

    def admit(self, wanted: Wanted) -> None:
        run = wanted.run()
        assert isinstance(run.plan, Plan)
        noise = run.noise.draw(run.plan.slots) if run.plan.slots else None
        self.slots[wanted] = self.room.admit(run.plan, run.latents, noise, run.inputs)
        self.taken[wanted] = []

    def tick(self, images: Sequence[Wanted]) -> list[Wanted]:
        """One evaluation of these; those that are finished leave, and are returned."""
        ticked = self.room.tick([self.slots[image] for image in images])
        finished = []
        for image, step in zip(images, ticked.steps, strict=True):
            if step is not None:
                self.taken[image].append(kept(step))
            if self.room.is_finished(self.slots[image]):
                state = self.room.latents(self.slots[image])
                assert torch.equal(state, self.taken[image][-1].latents)
                self.leave(image)
                finished.append(image)
        assert ticked.finished == bool(finished)
        return finished

    def leave(self, image: Wanted) -> None:
        self.room.leave(self.slots.pop(image))

    def to_the_end(self, images: Sequence[Wanted]) -> None:
        for image in images:
            self.admit(image)
        while self.slots:
            self.tick(list(self.slots))


def room(unet: Engine, scaling: Scaling = SCALING, slots: int = 16, **options: Any) -> InFlight:
    return InFlight(unet, scaling, SHAPE, slots, **options)


def assert_same(taken: Sequence[Step], expected: Sequence[Step], *, exactly: bool) -> None:
    assert len(taken) == len(expected)
    for step, wanted in zip(taken, expected, strict=True):
        assert (step.index, step.sigma, step.sigma_next) == (
            wanted.index,
            wanted.sigma,
            wanted.sigma_next,
        )
        assert step.latents.shape == step.denoised.shape == (1, *LATENTS)
        for actual, right in ((step.latents, wanted.latents), (step.denoised, wanted.denoised)):
            if exactly:
                assert torch.equal(actual, right), (actual - right).abs().max()
            else:
                torch.testing.assert_close(
                    actual, right, rtol=1e-5, atol=1e-5 * wanted.sigma + 1e-5
                )


def wanted(seed: int, sampler: str = "euler", **options: Any) -> Wanted:
    own = {name: options.pop(name) for name in ("sigmas", "guidance_scale") if name in options}
    doubled = options.pop("doubled", True)
    return _Hashable(seed, sampler, doubled=doubled, options=options, **own)


class _Hashable(Wanted):
    """An image is itself alone, whatever it is made of."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


PAG = PerturbedAttention(2.5, 0.001)
MIXED = [
    wanted(1),
    wanted(2, guidance_scale=1.0, doubled=False),
    wanted(3, "dpmpp_2m_sde", guidance_scale=9.0, guidance_rescale=0.7),
    wanted(4, "euler_ancestral", shortcuts=INTERVAL),
    wanted(5, "heun", sigmas=SIGMAS[3:], region=True),
    wanted(6, "euler_ancestral_cfg_pp", guidance_scale=1.3),
    wanted(7, "dpmpp_2m", sigmas=SIGMAS[1:], doubled=False, region="soft"),
    wanted(8, "unipc", guidance_rescale=0.3, shortcuts=INTERVAL),
    wanted(9, "dpmpp_2m", guidance_method=GuidanceMethod("apg", 0.2, 3.0), region=True),
    wanted(10, "tcd", guidance_method=GuidanceMethod("cfg_zero_star"), shortcuts=INTERVAL),
    wanted(11, "heun", perturbed_attention=PAG, guidance_rescale=0.7),
    wanted(12, perturbed_attention=PAG, doubled=False, guidance_rescale=0.7, shortcuts=INTERVAL),
    wanted(13, "dpmpp_2m", regions=2, region=True),
    wanted(14, "euler_ancestral_cfg_pp", regions=3, perturbed_attention=PAG, guidance_scale=1.2),
    wanted(15, regions=1, doubled=False),
    wanted(16, "lcm", regions=1, guidance_method=GuidanceMethod("apg", 0.2, 3.0)),
]
"""One of every kind, from one evaluation to a dozen."""


def test_images_of_every_kind_are_bit_for_bit_what_they_are_alone() -> None:
    unet = engine()
    flight = Flight(room(unet))
    flight.to_the_end(MIXED)
    for image in MIXED:
        assert_same(flight.taken[image], alone(image, unet), exactly=True)
    assert len(flight.room) == 0


@pytest.mark.parametrize("sampler", FIXED)
def test_every_sampler_beside_another(sampler: str) -> None:
    unet = engine()
    image = wanted(1, sampler)
    beside = wanted(2, "dpmpp_sde", guidance_scale=2.0)
    flight = Flight(room(unet))
    flight.to_the_end([beside, image])
    assert_same(flight.taken[image], alone(image, unet), exactly=True)


MODELS: list[tuple[PredictionType, float | None]] = [
    ("v_prediction", None),
    ("sample", None),
    ("epsilon", 0.5),
    ("v_prediction", 0.5),
]


@pytest.mark.parametrize(("prediction", "sigma_data"), MODELS)
def test_every_kind_of_model(prediction: PredictionType, sigma_data: float | None) -> None:
    schedule = SCHEDULE if sigma_data is None else ContinuousSchedule.from_range(0.002, 80.0)
    scaling, unet = Scaling(prediction, schedule, sigma_data), engine()
    flight = Flight(room(unet, scaling))
    flight.to_the_end(MIXED)
    for image in MIXED:
        assert_same(flight.taken[image], alone(image, unet, scaling), exactly=False)


def test_the_unet_is_told_of_each_image_what_it_is_told_alone() -> None:
    """FreeU, the guidance of a distilled model, sizes, pooled prompts: each in its own rows."""
    unet = engine(unet_spec(distilled=True))
    images = [
        wanted(1, doubled=False, guidance_scale=8.5, freeu=(1.3, 1.4, 0.9, 0.2)),
        wanted(2, doubled=False, guidance_scale=2.0),
        wanted(3, "dpmpp_2m", doubled=False, guidance_scale=4.0, freeu=(1.1, 1.2, 0.5, 0.7)),
    ]
    flight = Flight(room(unet))
    flight.to_the_end(images)
    for image in images:
        assert_same(flight.taken[image], alone(image, unet), exactly=True)
    apart = alone(replace(images[0], options={}), unet)
    assert not torch.equal(flight.taken[images[0]][-1].latents, apart[-1].latents)


def test_an_inpainting_network_sees_the_channels_of_each_image() -> None:
    unet = engine(inpainting_spec())
    images = [
        wanted(1, extra=True),
        wanted(2, doubled=False, extra=True),
        wanted(3, extra=True, shortcuts=INTERVAL),
    ]
    flight = Flight(room(unet))
    flight.to_the_end(images)
    for image in images:
        assert_same(flight.taken[image], alone(image, unet), exactly=True)


def test_a_network_of_half_precision() -> None:
    unet = engine(unet_spec("float16"))
    flight = Flight(room(unet))
    flight.to_the_end(MIXED)
    for image in MIXED:
        for step, expected in zip(flight.taken[image], alone(image, unet), strict=True):
            scale = float(expected.latents.abs().max())
            torch.testing.assert_close(step.latents, expected.latents, rtol=0, atol=1e-2 * scale)


def test_a_tick_has_a_row_for_each_half_that_is_needed() -> None:
    """An image outside of its guidance interval takes one row of two."""
    spec = unet_spec()
    unet = Recorder(tiny_unet, [tensor.name for tensor in spec.inputs])
    flight = Flight(room(TorchEngine(unet, spec)))
    images = [wanted(1), wanted(2, doubled=False), wanted(3, shortcuts=INTERVAL)]
    flight.to_the_end(images)
    within = [INTERVAL.guides(sigma) for sigma in SIGMAS[:-1]]
    assert [len(call["sample"]) for call in unet.calls] == [3 + 1 + guided for guided in within]
    assert len(set(within)) == 2


class Limited(TorchEngine):
    """A UNet that was built for batches of some sizes."""

    def __init__(self, least: int, most: int) -> None:
        inner = engine()
        assert isinstance(inner, TorchEngine)
        super().__init__(inner.module, inner.spec)
        self._limits = least, most
        self.batches: list[int] = []

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {"B": self._limits}

    def bind(self, **dims: int) -> Any:
        if not self.allows(**dims):
            raise ShapeError(f"a batch of {dims['B']}")
        self.batches.append(dims["B"])
        return super().bind(**dims)


def test_rows_that_an_engine_asks_for_are_filled_up() -> None:
    unet = Limited(2, 4)
    image, guided = wanted(1, doubled=False), wanted(2, "dpmpp_2m")
    flight = Flight(room(unet))
    flight.admit(image)
    flight.tick([image])
    flight.to_the_end([guided])
    assert unet.batches == [2, 3]
    assert_same(flight.taken[image], alone(image, engine()), exactly=True)
    assert_same(flight.taken[guided], alone(guided, engine()), exactly=True)


def test_more_rows_than_an_engine_allows_change_nothing() -> None:
    unet = Limited(2, 4)
    images = [wanted(1), wanted(2), wanted(3)]
    flight = Flight(room(unet))
    for image in images:
        flight.admit(image)
    with pytest.raises(ShapeError):
        flight.tick(images)
    while flight.slots:
        flight.tick(list(flight.slots)[:2])
    for image in images:
        assert_same(flight.taken[image], alone(image, engine()), exactly=True)


class OneBucket(InFlight):
    """Runs every tick in a bucket with room to spare, as on CUDA."""

    def _bound_for(self, images: int, rows: int) -> Any:
        assert images <= 8
        assert rows <= 24
        return self._bound.get(Bucket(8, 24), lambda: self._bind(Bucket(8, 24)))


@pytest.mark.parametrize("captured", [False, True])
def test_places_left_over_touch_nobody(captured: bool) -> None:
    unet = engine()
    capture = Recorded.capture if captured else None
    flight = Flight(OneBucket(unet, SCALING, SHAPE, 8, capture=capture))
    for first, end in ((0, 3), (3, 9), (9, None)):
        flight.to_the_end(MIXED[first:end])
    for image in MIXED:
        assert_same(flight.taken[image], alone(image, unet), exactly=not captured)


@pytest.mark.parametrize("captured", [False, True])
def test_another_network_from_the_middle_on(captured: bool) -> None:
    first, second = engine(), engine(factor=0.5)
    image, beside = wanted(1, region=True), wanted(2, "dpmpp_2m", doubled=False)
    flight = Flight(room(first, capture=Recorded.capture if captured else None))
    flight.admit(image)
    flight.admit(beside)
    for _ in range(3):
        flight.tick([image, beside])
    flight.room.use(second)
    for _ in range(3):
        flight.tick([image, beside])
    before, after = alone(image, first), alone(image, second)
    assert_same(flight.taken[image][:3], before[:3], exactly=not captured)
    middle = flight.taken[image][2].latents
    # Euler's step needs nothing but the state: the rest is the second network's run from there.
    continued = _Hashable(1, sigmas=SIGMAS[3:], options={"region": True})
    run = replace(continued.run(), latents=middle, inputs=image.run().inputs)
    denoising = Denoising(second, SCALING, shallow=lambda: second, cuda_graph="off", stream=None)
    rest = [kept(step) for step in denoising.sample(run, watched=True)]
    shifted = [replace(step, index=step.index + 3) for step in rest]
    assert_same(flight.taken[image][3:], shifted, exactly=not captured)
    assert not torch.allclose(flight.taken[image][-1].latents, before[-1].latents)
    assert not torch.allclose(flight.taken[image][-1].latents, after[-1].latents)


def test_buffers_that_are_let_go_of_are_made_again() -> None:
    unet, images = engine(), MIXED[:3]
    flight = Flight(room(unet))
    for image in images:
        flight.admit(image)
    while flight.slots:
        flight.tick(list(flight.slots))
        flight.room.release()
    for image in images:
        assert_same(flight.taken[image], alone(image, unet), exactly=True)


def test_what_is_not_finite_stays_with_its_image() -> None:
    unet = engine()
    images = [MIXED[0], MIXED[2], MIXED[4]]
    for capture in (None, Recorded.capture):
        flight = Flight(room(unet, slots=3, capture=capture))
        broken = wanted(9, "dpmpp_2m_sde", guidance_rescale=0.5, region=True)
        run = broken.run()
        assert isinstance(run.plan, Plan)
        noise = run.noise.draw(run.plan.slots)
        ruined = torch.full_like(run.latents, torch.inf)
        slot = flight.room.admit(run.plan, ruined, noise, run.inputs)
        for image in images[:2]:
            flight.admit(image)
        for _ in run.plan.stages:
            flight.room.tick([slot])
        assert not flight.room.latents(slot).isfinite().all()
        flight.room.leave(slot)
        flight.admit(images[2])  # takes the slot of the broken one
        while flight.slots:
            flight.tick(list(flight.slots))
        for image in images:
            assert_same(flight.taken[image], alone(image, unet), exactly=capture is None)


@dataclass
class Recorded:
    """A stand-in for a captured graph: it does the work again, and counts."""

    work: Callable[[], None]
    held: Sequence[Tensor]
    size: int = 1
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        self.work()

    @classmethod
    def capture(cls, work: Callable[[], None], held: Sequence[Tensor]) -> Graph:
        work()  # the warm-up
        return cls(work, held)


@pytest.fixture
def made() -> list[Recorded]:
    return []


@pytest.fixture
def capture(made: list[Recorded]) -> Capture:
    def capture(work: Callable[[], None], held: Sequence[Tensor]) -> Graph:
        work()
        made.append(Recorded(work, held))
        return made[-1]

    return capture


def test_captured_ticks_take_images_of_every_kind_where_they_come_alone(capture: Capture) -> None:
    unet = engine()
    flight = Flight(room(unet, capture=capture))
    flight.to_the_end(MIXED)
    for image in MIXED:
        assert_same(flight.taken[image], alone(image, unet), exactly=False)


@pytest.mark.parametrize("sampler", FIXED)
def test_captured_ticks_of_every_sampler(sampler: str, capture: Capture) -> None:
    unet = engine()
    image = wanted(1, sampler)
    beside = wanted(2, "dpmpp_sde", guidance_scale=2.0, doubled=False)
    flight = Flight(room(unet, capture=capture))
    flight.to_the_end([beside, image])
    assert_same(flight.taken[image], alone(image, unet), exactly=False)


def test_a_bucket_is_captured_once(capture: Capture, made: list[Recorded]) -> None:
    graphs = CudaGraphCache()
    flight = Flight(room(engine(), capture=capture, graphs=graphs))
    flight.to_the_end([wanted(seed) for seed in range(3)])
    assert [graph.replays for graph in made] == [len(SIGMAS) - 1]
    # Others of the same kind, of other samplers and numbers that need no more than those.
    flight.to_the_end([wanted(seed, "dpmpp_2m", guidance_scale=2.0) for seed in range(3)])
    assert [graph.replays for graph in made] == [2 * (len(SIGMAS) - 1)]
    flight.to_the_end([wanted(seed) for seed in range(2)])
    assert len(made) == len(graphs) == 2
    flight.room.use(engine(factor=0.5))
    assert len(graphs) == 0
    flight.to_the_end([wanted(seed) for seed in range(2)])
    assert len(graphs) == 1
    flight.room.release()
    assert len(graphs) == 0


def test_a_tick_is_captured_anew_when_memory_has_moved(
    capture: Capture, made: list[Recorded]
) -> None:
    flight = Flight(room(engine(), capture=capture))
    flight.to_the_end([wanted(1)])
    flight.to_the_end([wanted(2)])
    assert len(made) == 1
    longer = tuple(15.0 / (i + 1) for i in range(40))
    flight.to_the_end([wanted(3, sigmas=longer)])
    assert len(made) == 2


def test_what_cannot_be_captured_runs_without_and_says_so() -> None:
    def refuse(work: Callable[[], None], held: Sequence[Tensor]) -> Graph:
        work()  # the warm-up must take nobody further
        raise CaptureError("operation not permitted when stream is capturing")

    unet = engine()
    flight = Flight(room(unet, capture=refuse))
    flight.admit(MIXED[0])
    with pytest.warns(CaptureWarning, match="not permitted.*running without"):
        flight.tick(MIXED[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is tried once
        flight.to_the_end(MIXED[1:])
    for image in MIXED:
        assert_same(flight.taken[image], alone(image, unet), exactly=False)


def no_allocation(work: Callable[[], object]) -> None:
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    assert {event.key for event in record.key_averages()} & {"aten::lerp", "aten::addcmul"}
    allocated = {e.key: e.self_cpu_memory_usage for e in record.key_averages()}
    assert not any(allocated.values()), allocated


STILL = Shortcuts(guidance_interval=(0.001, 20.0))


@pytest.mark.parametrize(
    "images",
    [
        [wanted(1, "dpmpp_2m_sde"), wanted(2, "dpmpp_2m_sde", doubled=False)],
        [wanted(1, "euler_ancestral_cfg_pp"), wanted(2, "heun", region=True)],
        [wanted(1, "euler", guidance_rescale=0.7), wanted(2, "unipc", shortcuts=STILL)],
        [wanted(1, perturbed_attention=PAG), wanted(2, regions=2)],
    ],
    ids=["plain", "CFG++ and a known region", "rescale and an interval", "PAG and regions"],
)
def test_a_captured_tick_allocates_no_tensor(
    images: list[Wanted], capture: Capture, made: list[Recorded]
) -> None:
    flight = Flight(room(StaticEngine(unet_spec()), capture=capture))
    for image in images:
        flight.admit(image)
    for _ in range(3):
        flight.tick(images)
    no_allocation(made[-1].work)


def test_a_plan_of_the_users_or_with_a_deep_cache_does_not_share() -> None:
    assert all(can_share(fixed_plan(name, SIGMAS), NO_SHORTCUTS) for name in FIXED)
    assert can_share(fixed_plan("euler", SIGMAS), INTERVAL)
    assert not can_share(make_plan("dpm_adaptive", SIGMAS), NO_SHORTCUTS)
    assert not can_share(fixed_plan("euler", SIGMAS), Shortcuts(deep_cache=2))


def test_a_slot_is_free_again_when_its_image_has_left() -> None:
    flight = Flight(room(engine(), slots=2))
    for seed in range(5):
        first, second = wanted(seed), wanted(seed, doubled=False)
        flight.admit(first)
        flight.admit(second)
        assert set(flight.slots.values()) == {0, 1}
        flight.tick([first])
        flight.leave(first)
        flight.leave(second)
    assert len(flight.room) == 0


@pytest.mark.parametrize("captured", [False, True])
def test_the_latents_of_an_image_outlive_its_slot(captured: bool) -> None:
    flight = Flight(room(engine(), slots=1, capture=Recorded.capture if captured else None))
    image = wanted(1, sigmas=(3.0, 0.0))
    flight.admit(image)
    slot = flight.slots[image]
    flight.room.tick([slot])
    latents = flight.room.latents(slot)
    flight.leave(image)
    before = latents.clone()
    flight.to_the_end([wanted(2)])
    assert torch.equal(latents, before)


def test_nothing_of_an_image_stays_when_it_has_left() -> None:
    flight = Flight(room(engine()))
    image = wanted(1, "euler_ancestral", region=True)
    run = image.run()
    assert isinstance(run.plan, Plan)
    noise = run.noise.draw(run.plan.slots)
    slot = flight.room.admit(run.plan, run.latents, noise, run.inputs)
    flight.room.tick([slot])
    kept: list[weakref.ref[Any]] = [weakref.ref(x) for x in (run.latents, noise, run.inputs)]
    flight.room.leave(slot)
    del run, noise
    gc.collect()
    assert [ref() for ref in kept] == [None, None, None]


class Scarce(TorchEngine):
    """Has no memory for more than some rows."""

    def __init__(self, most: int) -> None:
        inner = engine()
        assert isinstance(inner, TorchEngine)
        super().__init__(inner.module, inner.spec)
        self._most = most

    def bind(self, **dims: int) -> Any:
        if dims["B"] > self._most:
            raise OutOfMemoryError("no memory")
        return super().bind(**dims)


def test_a_tick_that_has_no_memory_takes_nobody_further() -> None:
    images = [wanted(1), wanted(2)]
    flight = Flight(room(Scarce(2)))
    for image in images:
        flight.admit(image)
    with pytest.raises(OutOfMemoryError):
        flight.tick(images)
    while flight.slots:
        flight.tick(list(flight.slots)[:1])
    for image in images:
        assert_same(flight.taken[image], alone(image, engine()), exactly=True)


class Interrupted(Scarce):
    """Fails in the middle of a run while it is told to."""

    fails = False

    def bind(self, **dims: int) -> Any:
        binding = super().bind(**dims)
        run = binding.run

        def checked() -> None:
            if self.fails:
                raise EngineError("broken off")
            run()

        binding.run = checked
        return binding


def test_a_tick_that_was_broken_off_leaves_the_others_as_they_were() -> None:
    first, second = wanted(1), wanted(2)
    unet = Interrupted(8)
    flight = Flight(room(unet))
    flight.admit(first)
    flight.admit(second)
    flight.tick([first])
    unet.fails = True
    with pytest.raises(EngineError):
        flight.tick([second])  # its rows were gathered in place of the other's
    unet.fails = False
    while first in flight.slots:
        flight.tick([first])
    assert_same(flight.taken[first], alone(first, engine()), exactly=True)


@st.composite
def images(draw: st.DrawFn, numbers: Iterator[int]) -> Wanted:
    doubled = draw(st.booleans())
    sampler = draw(st.sampled_from([n for n in FIXED if doubled or "cfg_pp" not in n]))
    options: dict[str, Any] = {
        "guidance_rescale": draw(st.sampled_from([0.0, 0.6])),
        "region": draw(st.sampled_from([False, True, "soft"])),
        "freeu": draw(st.sampled_from([(1.0, 1.0, 1.0, 1.0), (1.3, 1.4, 0.9, 0.2)])),
    }
    if "cfg_pp" not in sampler:
        options["shortcuts"] = draw(st.sampled_from([NO_SHORTCUTS, INTERVAL]))
    return wanted(
        next(numbers),
        sampler,
        sigmas=SIGMAS[draw(st.integers(0, 4)) :],
        doubled=doubled,
        guidance_scale=draw(st.sampled_from([0.5, 1.0, 3.0, 7.5])),
        **options,
    )


@given(st.data())
@settings(max_examples=25)
@pytest.mark.parametrize("captured", [False, True])
def test_images_that_come_and_go_are_what_they_are_alone(
    captured: bool, data: st.DataObject
) -> None:
    """Any of those in flight run at a tick, and any of them leave early."""
    unet = engine()
    flight = Flight(room(unet, slots=4, capture=Recorded.capture if captured else None))
    numbers = itertools.count()
    for _ in range(data.draw(st.integers(4, 20))):
        joins: bool = data.draw(st.booleans())
        if joins and len(flight.slots) < 4:
            flight.admit(data.draw(images(numbers)))
        if not flight.slots:
            continue
        some = st.lists(st.sampled_from(list(flight.slots)), min_size=1, unique_by=id)
        flight.tick(data.draw(some))
        leaves: bool = data.draw(st.integers(0, 7)) == 0
        if leaves and flight.slots:
            flight.leave(data.draw(st.sampled_from(list(flight.slots))))
    for image, taken in flight.taken.items():
        expected = alone(image, unet)[: len(taken)]
        assert_same(taken, expected, exactly=not captured)
