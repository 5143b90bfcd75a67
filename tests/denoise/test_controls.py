"""What controls add, whoever runs the images: alone, by captured stages, or in company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.denoise.conditioning_store import ImageShape
from kdrt.denoise.controls import HINT, Control, control_engines
from kdrt.denoise.cuda_graphs import CudaGraphRunner
from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.inputs import DenoiserInputs, RegionalPrompts, SamplingRun, UNetConditioning
from kdrt.denoise.parts import Parts
from kdrt.denoise.progress import places_of, steps_of, window_of
from kdrt.denoise.shortcuts import Shortcuts
from kdrt.prompt import Conditioning
from kdrt.sampling import AnyPlan, SeededNoise, foreign_plan, make_plan
from kdrt_engines.cuda_graphs import CudaGraphCache
from tests.support.controlled import EDGES, FEATURES, LAYERS, SCALING, SKETCH, Networks
from tests.support.plans import fixed_plan
from tests.support.tiny_model import CHANNELS, WIDTHS

SHAPE = ImageShape(height=4, width=6, tokens=5)
LATENTS = (CHANNELS, SHAPE.height, SHAPE.width)
SIGMAS = (14.6, 7.1, 3.0, 1.2, 0.5, 0.1, 0.0)


def controls(seed: int, plan: AnyPlan, *, guess: bool = False, start: float = 0.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(1, *LATENTS, generator=generator) for _ in range(2)]
    return (
        Control(
            component=EDGES,
            images={HINT: images[0]},
            scale=0.5 + seed / 4,
            window=window_of(plan, start, 0.9),
            guess=guess,
        ),
        Control(
            component=SKETCH,
            images={FEATURES[0].name: images[1]},
            scale=0.3 + seed / 8,
            window=window_of(plan, 0.0, 0.5),
        ),
    )


def run_of(
    seed: int, sampler: str = "euler", *, doubled: bool = True, guess: bool = False, **told: Any
) -> SamplingRun:
    plan = make_plan(sampler, SIGMAS)
    noise = SeededNoise([seed], LATENTS)
    generator = torch.Generator().manual_seed(seed)
    halves = [
        UNetConditioning(Conditioning(torch.randn(1, 5, WIDTHS[0], generator=generator), None))
        for _ in range(2)
    ]
    if told.pop("in_halves", False):  # a prompt for the left, and the image's own for the right
        weights = torch.zeros(1, 2, 1, *LATENTS[1:])
        weights[:, 1, ..., :3] = weights[:, 0, ..., 3:] = 1
        told["regions"] = RegionalPrompts((halves[1],), weights)
    inputs = DenoiserInputs(
        positive=halves[0],
        negative=halves[1] if doubled else None,
        guidance_scale=2.0 if doubled else 1.0,
        controls=controls(seed, plan, guess=guess, start=seed / 10),
        **told,
    )
    return SamplingRun(plan=plan, latents=noise.latents() * SIGMAS[0], noise=noise, inputs=inputs)


def alone(networks: Networks, run: SamplingRun) -> Tensor:
    """The image, of a run whose noise is not drawn yet."""
    *_, last = networks.denoising().sample(run, watched=True)
    return last.latents.clone()


def test_what_is_added_and_when() -> None:
    networks, run = Networks(), run_of(2, guess=True)
    alone(networks, run)
    edges, sketch = run.inputs.controls
    assert (edges.window, sketch.window) == ((2, 4), (0, 2))  # 0.2 of 6 steps is within the second
    for step, call in enumerate(networks.unet.calls):
        features = sketch.images[FEATURES[0].name] * sketch.scale * (step <= 2)
        torch.testing.assert_close(call[FEATURES[0].name], features.repeat(2, 1, 1, 1))
        # In guess mode nothing of a ControlNet is added to the unconditional half.
        working = 2 <= step <= 4
        assert [bool(call["mid_residual"][half].any()) for half in (0, 1)] == [False, working]
    # Where it does not work, it is not run.
    assert len(networks.edges.calls) == 3
    torch.testing.assert_close(
        networks.edges.calls[0]["scales"], torch.tensor([[0, 0], [0.1, 1.0]]) * edges.scale
    )


SAMPLERS = ["euler", "heun", "dpmpp_2m_sde", "unipc", "euler_ancestral_cfg_pp"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_in_company_is_the_image_alone(sampler: str) -> None:
    """With other images, scales, places and guidance beside it, in rows that change."""
    networks = Networks()
    interval = Shortcuts(guidance_interval=(0.7, 5.0))

    def asked() -> list[SamplingRun]:
        return [
            run_of(0, sampler),
            run_of(3, sampler, guess=True),
            run_of(1, "dpmpp_2m", shortcuts=interval),
            run_of(2, "lcm", doubled=False),
            run_of(4, sampler, guess=True, in_halves=True),
        ]

    runs = asked()
    expected = [alone(networks, run) for run in asked()]
    flight = networks.denoising().in_flight(SHAPE, 5, (EDGES, SKETCH))
    slots: dict[int, int] = {}
    made: dict[int, Tensor] = {}
    waiting = list(range(len(runs)))
    while waiting or slots:
        if waiting:  # one more with every tick
            index = waiting.pop(0)
            plan = runs[index].plan
            drawn = runs[index].noise.draw(plan.slots) if plan.slots else None  # type: ignore[union-attr]
            slots[flight.admit(plan, runs[index].latents, drawn, runs[index].inputs)] = index  # type: ignore[arg-type]
        flight.tick(list(slots))
        for slot in [slot for slot in slots if flight.is_finished(slot)]:
            made[slots.pop(slot)] = flight.latents(slot)
            flight.leave(slot)
    for index, latents in enumerate(expected):
        assert torch.equal(made[index], latents), index


def test_a_network_that_works_for_nobody_is_not_run() -> None:
    """Of images in flight at steps of their own."""
    networks = Networks()
    flight = networks.denoising().in_flight(SHAPE, 2, (EDGES, SKETCH))
    runs = [run_of(0), run_of(3)]
    for run in runs:
        flight.admit(run.plan, run.latents, None, run.inputs)  # type: ignore[arg-type]
    assert [run.inputs.controls[0].window for run in runs] == [(0, 4), (2, 4)]
    working = 0
    for step in range(6):
        flight.tick([0, 1])
        working += step <= 4
        assert len(networks.edges.calls) == working


class Replayed:
    """A stand-in for a captured graph, which does the work again."""

    size = 1

    def __init__(self, work: Callable[[], None], held: Sequence[Tensor]) -> None:
        self.replay = work


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_captured_stages_read_scales_and_places_on_the_device(sampler: str) -> None:
    networks, run = Networks(), run_of(1, sampler)
    denoiser = Denoiser(
        networks.engine,
        SCALING,
        images=1,
        **SHAPE._asdict(),
        parts=Parts(unconditional=True),
        controls=control_engines((EDGES, SKETCH), networks.engines.__getitem__),
    )
    plan = fixed_plan(sampler, SIGMAS)
    runner = CudaGraphRunner(denoiser, "step", CudaGraphCache(), Replayed)
    noise = run.noise.draw(plan.slots) if plan.slots else None
    denoiser.prepare(run.inputs, unconditional=plan.needs_unconditional)
    *_, last = runner.run(plan, run.latents, noise)
    torch.testing.assert_close(
        last.latents, alone(networks, run_of(1, sampler)), rtol=1e-5, atol=1e-5
    )


def test_no_control_is_no_residual() -> None:
    """After a run with controls, one without is that of the plain UNet."""
    networks = Networks()
    denoising = networks.denoising()
    for told in ({}, {"controls": ()}):
        run = run_of(1)
        inputs = DenoiserInputs(**{**vars(run.inputs), **told})
        run = SamplingRun(plan=run.plan, latents=run.latents, noise=run.noise, inputs=inputs)
        networks.unet.calls.clear()
        list(denoising.sample(run, watched=True))
    for call in networks.unet.calls:
        assert not any(call[name].any() for name in LAYERS)


def test_places_of_a_window() -> None:
    plan = make_plan("heun", SIGMAS)
    assert steps_of(plan) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5]  # type: ignore[arg-type]
    for start, end in ((0.0, 1.0), (0.25, 0.75), (1 / 3, 2 / 3), (0.5, 0.55)):
        kept = [i for i in range(6) if not (i / 6 < start or (i + 1) / 6 > end)]
        first, last = window_of(plan, start, end)
        assert [i for i in range(6) if first <= i <= last] == kept
    # By the range of σ, where the order of evaluations is not known.
    place = places_of(foreign_plan(lambda model, x, sigmas: x, SIGMAS))
    assert [place(sigma) for sigma in (14.6, 10.0, 7.1, 3.0, 0.05)] == [0, 0, 1, 2, 5]
    # By the way in ln σ, where there are no steps beforehand.
    adaptive = make_plan("dpm_adaptive", SIGMAS)
    assert window_of(adaptive, 0.2, 0.7) == (0.2, 0.7)
    place = places_of(adaptive)
    assert place(14.6) == 0
    assert place(0.1) == pytest.approx(1)
    assert place((14.6 * 0.1) ** 0.5) == pytest.approx(0.5)
    for sigma, bound in ((14.600001, 0), (0.0999999, 1)):  # as rounding may leave them
        assert place(sigma) == bound
