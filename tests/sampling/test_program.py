"""What a plan compiles to: few operations, and the same sums."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrt.sampling import SAMPLERS, NoiseSchedule, Plan, Stage, sample, sigmas_for
from kdrt.sampling.plan import Correction
from kdrt.sampling.program import compile_plan
from tests.support.plans import fixed_plan


def operations(planned: Plan, index: int) -> list[str]:
    return [i.operation for i in compile_plan(planned).stages[index].instructions]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("euler", ["lerp"]),
        ("euler_ancestral", ["lerp", "add"]),
        ("dpmpp_2m", ["copy", "lerp", "lerp"]),
        ("dpmpp_2m_sde", ["copy", "lerp", "lerp", "add"]),
        ("lms", ["add", "add", "add", "add", "add"]),
    ],
)
def test_a_step_is_few_operations(sd: NoiseSchedule, name: str, expected: list[str]) -> None:
    planned = fixed_plan(name, sigmas_for("karras", 8, sd))
    assert operations(planned, 4) == expected


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_3m_sde"])
def test_the_last_step_is_a_copy(sd: NoiseSchedule, name: str) -> None:
    planned = fixed_plan(name, sigmas_for("karras", 8, sd))
    assert operations(planned, -1) == ["copy"]


@pytest.mark.parametrize("name", [name for name, info in SAMPLERS.items() if info.capturable])
def test_evaluations_in_the_middle_differ_in_coefficients_only(
    sd: NoiseSchedule, name: str
) -> None:
    """What lets one captured graph serve many steps: the registers repeat with the ring."""
    # Noise between two levels only is another operation there than elsewhere.
    everywhere: dict[str, Any] = {"s_tmin": 0.0, "s_tmax": math.inf} if name == "sa_solver" else {}
    planned = fixed_plan(name, sigmas_for("exponential", 30, sd), **everywhere)
    shapes = [
        tuple(i._replace(coefficient=0.0, second=0) for i in each.instructions)
        for each in compile_plan(planned).stages[8:28]
    ]
    # Rings of up to four results, steps of up to three evaluations.
    assert any(
        all(shapes[n] == shapes[n + period] for n in range(len(shapes) - period))
        for period in range(1, 13)
    )


coefficients = st.floats(-3, 3).filter(lambda c: c == 0 or abs(c) > 1e-3)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans with terms of every kind, with and without coefficients that add up to 1."""
    count = draw(st.integers(1, 6))
    stages = []
    for index in range(count):
        seen = index + 1
        results = [draw(coefficients) for _ in range(draw(st.integers(1, min(seen, 4))))]
        results[-1] = results[-1] or 1.0
        base = draw(st.one_of(coefficients, st.just(1 - sum(results))))
        others = [draw(coefficients) for _ in range(draw(st.integers(0, min(seen, 2))))]
        correction = None
        if index > 0 and draw(st.booleans()):
            correction = Correction(draw(coefficients), (draw(coefficients), draw(coefficients)))
        slot = draw(st.sampled_from([None, index]))
        stages.append(
            Stage(
                sigma=float(count - index),
                base=base,
                denoised=tuple(results),
                noise=0.0 if slot is None else 0.7,
                slot=slot,
                ends_step=True,
                unconditional=tuple(others),
                correction=correction,
            )
        )
    sigmas = tuple(float(count - index) for index in range(count + 1))
    slots = tuple(NOISE_SLOT for _ in range(count))
    drawn = Plan("drawn", sigmas, tuple(stages), slots, residual=draw(st.booleans()))
    if draw(st.booleans()):
        drawn = dataclasses.replace(drawn, initial_noise=0.3, initial_slot=0)
    return drawn


NOISE_SLOT = fixed_plan("euler_ancestral", [2.0, 1.0]).slots[0]


class Bent:
    """A denoiser with a result without guidance; both in buffers that it uses again."""

    def __init__(self) -> None:
        self._guided, self.unconditional = torch.empty(2, 3).double(), torch.empty(2, 3).double()

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        torch.sin(x, out=self._guided)
        torch.tanh(x, out=self.unconditional)
        return self._guided


@given(plans())
def test_a_compiled_plan_is_the_plan(planned: Plan) -> None:
    """Against the formulas of `Stage` and `Correction`, written without any cleverness."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(planned.slots), 2, 3, generator=generator, dtype=torch.float64)
    start = latents + planned.initial_noise * noise[planned.initial_slot or 0]
    state, results, unguided = start, list[torch.Tensor](), list[torch.Tensor]()
    for index, stage in enumerate(planned.stages):
        denoised = state.sin()
        results.insert(0, state - denoised if planned.residual else denoised)
        unguided.insert(0, state.tanh())
        if stage.correction is not None:
            terms = zip(stage.correction.denoised, results, strict=False)
            start = stage.correction.base * start + sum(c * d for c, d in terms)
        state = stage.base * start + stage.noise * noise[index]
        for c, d in [*zip(stage.denoised, results, strict=False)]:
            state = state + c * d
        for c, u in zip(stage.unconditional, unguided, strict=False):
            state = state + c * u
        following = planned.stages[index + 1 : index + 2]
        if not (following and following[0].correction is not None):
            start = state
    result = sample(planned, latents, Bent(), noise)
    scale = max(1.0, float(state.abs().max()))
    assert float((result - state).abs().max()) <= 1e-9 * scale
