"""Images in slots, taken further by ticks, are what they are step by step."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt.sampling import SAMPLERS, SeededNoise, run
from kdrt.sampling.plan import Correction, NoiseSlot, Plan, Stage
from kdrt.sampling.slots import Slots, Tick
from kdrt.sampling.table import RING, Features, fits
from tests.support.operators import OperatorRecorder
from tests.support.plans import fixed_plan

SIGMAS = (14.6, 7.1, 3.0, 1.2, 0.5, 0.1, 0.0)
SHAPE = (2, 4, 3, 5)


class Network:
    """An ε network behind both interfaces, with buffers of its own as a runtime has them."""

    def __init__(self, images: int = SHAPE[0]) -> None:
        self._denoised = torch.zeros(images, *SHAPE[1:])
        self.unconditional = torch.zeros(images, *SHAPE[1:])
        self.evaluated: list[float] = []

    def numbers(self, sigma: float) -> tuple[float, ...]:
        return 1 / math.sqrt(sigma**2 + 1), math.log(sigma), 1.0, -sigma

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.denoise(x, torch.tensor([self.numbers(sigma)] * len(x)))

    def denoise(self, x: torch.Tensor, numbers: torch.Tensor, kind: object = None) -> torch.Tensor:
        scale, timestep, skip, out = numbers.view(-1, 4, 1, 1, 1).unbind(1)
        self.evaluated.append(float(timestep[0]))
        noise = torch.tanh(x * scale + 0.1 * timestep).roll(1, -1)
        self._denoised.copy_(skip * x + out * noise)
        self.unconditional.copy_(skip * x + 0.7 * out * noise)
        return self._denoised


State = tuple[torch.Tensor, torch.Tensor]


def by_ticks(
    planned: Plan, latents: torch.Tensor, noise: torch.Tensor | None, slots: Slots | None = None
) -> tuple[list[State], list[float]]:
    """The steps of a run whose images all take the same slots, and the timesteps at which it
    evaluated the network."""
    network = Network()
    slots = slots or new_slots()
    tick = Tick(slots, SHAPE[0], network)
    numbers = [network.numbers(stage.sigma) for stage in planned.stages]
    slots.load(range(SHAPE[0]), planned, latents, noise, numbers)
    tick.take(range(SHAPE[0]))
    states = []
    for stage in planned.stages:
        tick.stage(Features.of(planned))
        if stage.ends_step:
            states.append((slots.state[: SHAPE[0]].clone(), tick.denoised.clone()))
    return states, network.evaluated


def new_slots(count: int = SHAPE[0]) -> Slots:
    return Slots(count, SHAPE[1:], 4, torch.device("cpu"))


def drawn(planned: Plan, seeds: list[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
    source = SeededNoise(seeds, SHAPE[1:])
    latents = source.latents() * planned.sigmas[0]
    return latents, source.draw(planned.slots) if planned.slots else None


def assert_same(planned: Plan, slots: Slots | None = None) -> None:
    latents, noise = drawn(planned, [3, 4])
    network = Network()
    steps = run(planned, latents, network, noise)
    expected = [(step.latents.clone(), step.denoised.clone()) for step in steps]
    actual, timesteps = by_ticks(planned, latents, noise, slots)
    assert len(actual) == len(expected) == planned.steps
    assert timesteps == pytest.approx(network.evaluated)
    # A result is as exact as the states it comes from, which may be larger than itself.
    largest = max(float(state.abs().max()) for state, _ in [(latents, None), *expected])
    atol = 2e-5 * max(1.0, largest)
    for (state, denoised), (wanted, wanted_denoised) in zip(actual, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-5, atol=atol)
        torch.testing.assert_close(denoised, wanted_denoised, rtol=1e-5, atol=atol)


FIXED = [name for name, info in SAMPLERS.items() if getattr(info, "capturable", True)]


@pytest.mark.parametrize("sampler", FIXED)
@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:-1], SIGMAS[-2:]], ids=["zero", "open", "one"])
def test_every_sampler(sampler: str, sigmas: tuple[float, ...]) -> None:
    assert_same(fixed_plan(sampler, sigmas))


@pytest.mark.parametrize("sampler", FIXED)
def test_the_ring_holds_what_every_sampler_reads(sampler: str) -> None:
    assert fits(fixed_plan(sampler, SIGMAS))


def test_a_plan_that_reads_further_back_does_not_fit() -> None:
    stages = tuple(
        Stage(float(9 - i), 1.0, (1.0,) * min(i + 1, RING + 1), 0.0, None, True)
        for i in range(RING + 1)
    )
    planned = Plan("long memory", tuple(float(9 - i) for i in range(RING + 2)), stages)
    assert not fits(planned)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_churn_before_the_first_stage(sampler: str) -> None:
    assert_same(fixed_plan(sampler, SIGMAS, s_churn=3.0))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans no sampler makes: every register used, in every order."""
    number = st.floats(-2, 2)
    slots = draw(st.integers(0, 3))
    slot = st.none() if slots == 0 else st.none() | st.integers(0, slots - 1)
    steps = draw(st.integers(1, 4))
    stages: list[Stage] = []
    for step in range(steps):
        inner = draw(st.booleans())
        for ends in [False, True] if inner else [True]:
            # No stage reads a result that is not there yet.
            most = min(3, len(stages) + 1)
            some = st.lists(number, min_size=1, max_size=most).map(tuple)
            first = not stages or not stages[-1].ends_step
            correction = None
            if not first and draw(st.booleans()):
                where = draw(slot)
                noise = 0.0 if where is None else draw(number)
                correction = Correction(draw(number), draw(some), noise, where)
            where = draw(slot)
            noise = 0.0 if where is None else draw(number)
            unconditional = draw(st.just(()) | some)
            stages.append(
                Stage(
                    2.0 + steps - step,
                    draw(number),
                    draw(some),
                    noise,
                    where,
                    ends,
                    unconditional,
                    correction,
                )
            )
    initial = draw(slot)
    return Plan(
        "made up",
        tuple(float(steps + 2 - i) for i in range(steps + 1)),
        tuple(stages),
        tuple(NoiseSlot(1.0, 0.5) for _ in range(slots)),
        0.0 if initial is None else draw(number),
        initial,
        draw(st.booleans()),
    )


@given(plans())
@settings(max_examples=60)
def test_any_plan(planned: Plan) -> None:
    assert_same(planned)


def test_slots_serve_one_plan_after_the_other() -> None:
    slots = new_slots()
    planned = fixed_plan("dpmpp_2m", SIGMAS)
    other = fixed_plan("unipc", (9.0, 4.0, 2.0, 1.0, 0.3, 0.2))
    for again in (planned, other, planned):
        assert_same(again, slots)


@dataclasses.dataclass
class Flying:
    """An image on its way: where it is, and what it should become, stage by stage."""

    slot: int
    plan: Plan
    expected: list[torch.Tensor]
    stage: int = 0


def flying(slots: Slots, slot: int, planned: Plan, seed: int) -> Flying:
    latents, noise = drawn(planned, [seed])
    alone = new_slots(1)
    network, tick = Network(1), None
    numbers = [network.numbers(stage.sigma) for stage in planned.stages]
    tick = Tick(alone, 1, network)
    alone.load(range(1), planned, latents, noise, numbers)
    tick.take([0])
    expected = []
    for _ in planned.stages:
        tick.stage(Features.of(planned))
        expected.append(alone.state[0].clone())
    slots.load(range(slot, slot + 1), planned, latents, noise, numbers)
    return Flying(slot, planned, expected)


@given(st.data())
@settings(max_examples=40)
def test_images_that_come_and_go_are_what_they_are_alone(data: st.DataObject) -> None:
    """Whatever their plans, and whoever runs beside them at each tick."""
    slots = new_slots(4)
    ticks = {n: Tick(slots, n, Network(n)) for n in (1, 2, 4)}
    images: dict[int, Flying] = {}
    for seed in range(data.draw(st.integers(3, 12))):
        free = [slot for slot in range(4) if slot not in images]
        joins: bool = data.draw(st.booleans())
        if free and joins:
            slot = data.draw(st.sampled_from(free))
            length = data.draw(st.integers(2, len(SIGMAS)))
            sampler = data.draw(st.sampled_from(FIXED))
            images[slot] = flying(slots, slot, fixed_plan(sampler, SIGMAS[:length]), seed)
        if not images:
            continue
        some = st.lists(st.sampled_from(sorted(images)), min_size=1, unique=True)
        chosen: list[int] = data.draw(some)
        tick = ticks[min(n for n in ticks if n >= len(chosen))]
        features = Features()
        for slot in chosen:
            features |= Features.of(images[slot].plan)
        tick.take(chosen)
        tick.stage(features)
        for slot in chosen:
            image = images[slot]
            wanted = image.expected[image.stage]
            torch.testing.assert_close(slots.state[slot], wanted, rtol=1e-5, atol=2e-5)
            image.stage += 1
            if image.stage == len(image.expected):
                del images[slot]


def test_what_is_not_finite_stays_in_its_slot() -> None:
    planned = fixed_plan("dpmpp_2m", SIGMAS)
    slots = new_slots(2)
    sound = flying(slots, 0, planned, 1)
    broken = flying(slots, 1, planned, 2)
    slots.state[broken.slot].fill_(math.nan)
    tick = Tick(slots, 4, Network(4))
    tick.take([0, 1])
    for wanted in sound.expected:
        tick.stage(Features(True, True, True, True))
        torch.testing.assert_close(slots.state[0], wanted, rtol=1e-5, atol=2e-5)
    assert slots.state[1].isnan().any()


def test_an_idle_tick_takes_nobody_further() -> None:
    planned = fixed_plan("euler_ancestral", SIGMAS)
    slots = new_slots(2)
    images = [flying(slots, slot, planned, slot) for slot in range(2)]
    before = slots.state[:2].clone(), slots.cursor[:2].clone(), slots.registers[:2].clone()
    tick = Tick(slots, 2, Network())
    for _ in range(3):
        tick.stage(Features.of(planned))
    after = slots.state[:2], slots.cursor[:2], slots.registers[:2]
    assert all(map(torch.equal, before, after))
    tick.take([image.slot for image in images])
    tick.stage(Features.of(planned))
    assert not torch.equal(slots.state[:2], before[0])


def test_room_for_a_longer_plan_is_made_while_others_are_on_their_way() -> None:
    slots = new_slots(2)
    first = flying(slots, 0, fixed_plan("euler_ancestral", SIGMAS), 1)
    tick = Tick(slots, 1, Network(1))
    tick.take([0])
    tick.stage(Features.of(first.plan))
    version = slots.version
    longer = fixed_plan("dpmpp_2s_ancestral", [20.0 / (i + 1) for i in range(40)])
    second = flying(slots, 1, longer, 2)
    assert slots.version > version
    for image in (first, second):
        tick.take([image.slot])
        for wanted in image.expected[image.slot == 0 :]:
            tick.stage(Features.of(image.plan))
            torch.testing.assert_close(slots.state[image.slot], wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("allocation", range(3))
def test_a_plan_for_which_there_is_no_room_changes_nothing(
    allocation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = new_slots(2)
    first = flying(slots, 0, fixed_plan("euler_ancestral", SIGMAS), 1)
    tick = Tick(slots, 1, Network(1))
    tick.take([0])
    allocations = itertools.count()
    new_zeros = torch.Tensor.new_zeros

    def scarce(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if next(allocations) == allocation:
            raise torch.OutOfMemoryError
        return new_zeros(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "new_zeros", scarce)
    longer = fixed_plan("dpmpp_2s_ancestral", [20.0 / (i + 1) for i in range(40)])
    with pytest.raises(torch.OutOfMemoryError):
        slots.load(range(1, 2), longer, torch.zeros(1, *SHAPE[1:]), None, [[0.0] * 4] * 80)
    monkeypatch.undo()
    for wanted in first.expected:
        tick.stage(Features.of(first.plan))
        torch.testing.assert_close(slots.state[0], wanted, rtol=1e-5, atol=2e-5)
    second = flying(slots, 1, longer, 2)
    tick.take([1])
    for wanted in second.expected:
        tick.stage(Features.of(longer))
        torch.testing.assert_close(slots.state[1], wanted, rtol=1e-5, atol=2e-5)


def test_a_stage_reads_nothing_back_and_makes_no_view_of_new_memory() -> None:
    planned = fixed_plan("dpmpp_sde", SIGMAS)
    still = torch.zeros(SHAPE)

    class Nothing(Network):
        def denoise(
            self, x: torch.Tensor, numbers: torch.Tensor, kind: object = None
        ) -> torch.Tensor:
            return still

    slots, network = new_slots(), Nothing()
    tick = Tick(slots, SHAPE[0], network)
    numbers = [network.numbers(stage.sigma) for stage in planned.stages]
    noise = torch.zeros(len(planned.slots), *SHAPE)
    slots.load(range(SHAPE[0]), planned, still, noise, numbers)
    tick.take(range(SHAPE[0]))
    everything = Features(True, True, True, True)
    tick.stage(everything)
    with OperatorRecorder() as operations:
        tick.stage(everything)
    assert "aten._local_scalar_dense.default" not in operations.names
    assert operations.allocating == []
