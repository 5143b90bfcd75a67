"""A plan run from a table on the device is the plan run step by step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt.sampling import SAMPLERS, SeededNoise, run
from kdrt.sampling.plan import Correction, NoiseSlot, Plan, Stage
from kdrt.sampling.table import Layout, TableLoop, run_table
from tests.support.operators import OperatorRecorder
from tests.support.plans import fixed_plan

SIGMAS = (14.6, 7.1, 3.0, 1.2, 0.5, 0.1, 0.0)
SHAPE = (2, 4, 3, 5)


class Network:
    """An ε network behind both interfaces, with buffers of its own as a runtime has them."""

    def __init__(self) -> None:
        self._denoised = torch.zeros(SHAPE)
        self.unconditional = torch.zeros(SHAPE)
        self.evaluated: list[float] = []

    def scalars(self, sigma: float) -> tuple[float, float, float, float]:
        return 1 / math.sqrt(sigma**2 + 1), math.log(sigma), 1.0, -sigma

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        return self.denoise(x, torch.tensor(self.scalars(sigma)))

    def denoise(self, x: torch.Tensor, scalars: torch.Tensor, kind: object = None) -> torch.Tensor:
        scale, timestep, skip, out = scalars
        self.evaluated.append(float(timestep))
        noise = torch.tanh(x * scale + 0.1 * timestep).roll(1, -1)
        self._denoised.copy_(skip * x + out * noise)
        self.unconditional.copy_(skip * x + 0.7 * out * noise)
        return self._denoised


State = tuple[torch.Tensor, torch.Tensor]


def both(planned: Plan, loop: TableLoop | None = None) -> list[tuple[list[State], list[float]]]:
    """The steps of the usual loop and of the table's: ``[(latents, denoised), …]`` each, and the
    timesteps at which each evaluated the network."""
    source = SeededNoise([3, 4], SHAPE[1:])
    latents = source.latents() * planned.sigmas[0]
    noise = source.draw(planned.slots) if planned.slots else None
    results = []
    for by_table in (False, True):
        network = Network()
        if by_table:
            if loop is None:
                loop = TableLoop(Layout.of(planned), network, latents)
            else:
                assert isinstance(loop._denoise, Network)
                network = loop._denoise
                network.evaluated.clear()
            stages = [loop.stage] * len(planned.stages)
            steps = run_table(loop, planned, latents, noise, stages)
        else:
            steps = run(planned, latents, network, noise)
        states = [(s.latents.clone(), s.denoised.clone()) for s in steps]
        results.append((states, network.evaluated))
    return results


def assert_same(planned: Plan, loop: TableLoop | None = None) -> None:
    (expected, timesteps), (actual, same_timesteps) = both(planned, loop)
    assert len(actual) == len(expected) == planned.steps
    assert same_timesteps == pytest.approx(timesteps)
    for (latents, denoised), (wanted, wanted_denoised) in zip(actual, expected, strict=True):
        torch.testing.assert_close(latents, wanted, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(denoised, wanted_denoised, rtol=1e-5, atol=2e-5)


FIXED = [name for name, info in SAMPLERS.items() if getattr(info, "capturable", True)]


@pytest.mark.parametrize("sampler", FIXED)
@pytest.mark.parametrize("sigmas", [SIGMAS, SIGMAS[:-1], SIGMAS[-2:]], ids=["zero", "open", "one"])
def test_every_sampler(sampler: str, sigmas: tuple[float, ...]) -> None:
    assert_same(fixed_plan(sampler, sigmas))


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


def test_plans_of_one_layout_share_a_loop() -> None:
    planned = fixed_plan("dpmpp_2m", SIGMAS)
    shorter = fixed_plan("dpmpp_2m", (9.0, 4.0, 2.0, 1.0, 0.3, 0.2))
    assert Layout.of(planned) == Layout.of(shorter)
    loop = TableLoop(Layout.of(planned), Network(), torch.zeros(SHAPE))
    for again in (planned, shorter, planned):
        assert_same(again, loop)


def test_a_stage_reads_nothing_back_and_makes_no_view_of_new_memory() -> None:
    planned = fixed_plan("dpmpp_sde", SIGMAS)
    still = torch.zeros(SHAPE)

    class Nothing(Network):
        def denoise(
            self, x: torch.Tensor, scalars: torch.Tensor, kind: object = None
        ) -> torch.Tensor:
            return still

    loop = TableLoop(Layout.of(planned), Nothing(), still)
    noise = torch.zeros(len(planned.slots), *SHAPE)
    loop.load(planned, still, noise)
    loop.stage()
    with OperatorRecorder() as operations:
        loop.stage()
    assert "aten._local_scalar_dense.default" not in operations.names
    assert operations.allocating == []
