"""Graph levels: the same images, the right captures, and a way back where none is possible."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence

import pytest
import torch
from torch import Tensor

from kdrt.denoise.cuda_graphs import (
    Capture,
    CaptureWarning,
    CudaGraphLevel,
    CudaGraphRunner,
)
from kdrt.denoise.denoiser import for_one_run
from kdrt.denoise.scaling import Numbers
from kdrt.denoise.shortcuts import WHOLE, EvaluationKind, Shortcuts
from kdrt.sampling import Plan, SeededNoise, Step, run
from kdrt_engines.cuda_graphs import CaptureError, CudaGraphCache, Graph
from tests.support.plans import fixed_plan

SHAPE = (2, 4, 3, 5)
SIGMAS = (14.6, 7.1, 3.0, 1.2, 0.5, 0.0)


class Network:
    def __init__(self) -> None:
        self._result = torch.zeros(SHAPE)
        self.unconditional = torch.zeros(SHAPE)
        self.is_rescaled = False

    def numbers(self, sigma: float, place: float = 0.0) -> Numbers:
        return Numbers(1 / math.sqrt(sigma**2 + 1), math.log(sigma), 1.0, -sigma, 1.0, 0.0)

    def denoise(self, x: Tensor, numbers: Tensor, kind: EvaluationKind) -> Tensor:
        scale, timestep, skip, out = numbers[:, :4].view(-1, 4, 1, 1, 1).unbind(1)
        noise = torch.tanh(x * scale + 0.1 * timestep).roll(1, -1)
        if not kind.guided:
            noise = 0.5 * noise
        self._result.copy_(skip * x + out * noise)
        return self._result

    def __call__(
        self, x: Tensor, sigma: float, kind: EvaluationKind = WHOLE, place: float = 0.0
    ) -> Tensor:
        return self.denoise(x, torch.tensor([self.numbers(sigma)] * len(x)), kind)

    def mode(self) -> Hashable:
        return self.is_rescaled

    def held(self) -> Sequence[Tensor]:
        return ()


Work = Callable[[], None]


class Recorded:
    """A stand-in for a captured graph: it can do the work again, and counts."""

    def __init__(self, work: Work, size: int = 1) -> None:
        work()  # the warm-up
        self._work, self.size, self.replays = work, size, 0

    def replay(self) -> None:
        self.replays += 1
        self._work()


@pytest.fixture
def made() -> list[Recorded]:
    return []


@pytest.fixture
def capture(made: list[Recorded]) -> Capture:
    def capture(work: Work, held: Sequence[Tensor]) -> Recorded:
        made.append(Recorded(work))
        return made[-1]

    return capture


def refuse(work: Work, held: Sequence[Tensor]) -> Graph:
    raise CaptureError("operation not permitted when stream is capturing")


def latents_and_noise(planned: Plan) -> tuple[Tensor, Tensor]:
    source = SeededNoise([1, 2], SHAPE[1:])
    return source.latents() * planned.sigmas[0], source.draw(planned.slots)


def ends(steps: Iterable[Step]) -> list[tuple[int, Tensor]]:
    return [(step.index, step.latents.clone()) for step in steps]


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_sde", "heun", "lms"])
@pytest.mark.parametrize("level", ["off", "step", "loop"])
@pytest.mark.parametrize("watched", [True, False])
def test_every_level_gives_the_same_states(
    sampler: str, level: CudaGraphLevel, watched: bool, capture: Capture
) -> None:
    planned = fixed_plan(sampler, SIGMAS)
    latents, noise = latents_and_noise(planned)
    expected = ends(run(planned, latents, Network(), noise))
    runner = CudaGraphRunner(Network(), level, CudaGraphCache(), capture)
    actual = ends(runner.run(planned, latents, noise, watched=watched))
    if level == "loop" and not watched:
        expected = expected[-1:]
    assert [index for index, _ in actual] == [index for index, _ in expected]
    for (_, state), (_, wanted) in zip(actual, expected, strict=True):
        torch.testing.assert_close(state, wanted, rtol=1e-5, atol=2e-5)


def test_one_step_graph_serves_all_plans_with_the_same_registers(
    capture: Capture, made: list[Recorded]
) -> None:
    runner = CudaGraphRunner(Network(), "step", CudaGraphCache(), capture)
    for sigmas in (SIGMAS, (9.0, 4.0, 1.0, 0.3, 0.1, 0.0)):
        planned = fixed_plan("dpmpp_2m", sigmas)
        latents, noise = latents_and_noise(planned)
        list(runner.run(planned, latents, noise))
    assert len(made) == 1
    assert made[0].replays == 10


def test_the_whole_loop_is_one_launch_unless_somebody_watches(
    capture: Capture, made: list[Recorded]
) -> None:
    runner = CudaGraphRunner(Network(), "loop", CudaGraphCache(), capture)
    planned = fixed_plan("dpmpp_2m", SIGMAS)
    latents, noise = latents_and_noise(planned)
    for _ in range(3):
        list(runner.run(planned, latents, noise, watched=False))
    assert [graph.replays for graph in made] == [3]
    list(runner.run(planned, latents, noise, watched=True))
    assert [graph.replays for graph in made] == [3, 5]


def test_another_guidance_mode_is_another_graph(capture: Capture, made: list[Recorded]) -> None:
    network = Network()
    runner = CudaGraphRunner(network, "step", CudaGraphCache(), capture)
    planned = fixed_plan("euler", SIGMAS)
    latents, noise = latents_and_noise(planned)
    for network.is_rescaled in (False, True, False):
        list(runner.run(planned, latents, noise))
    assert len(made) == 2


@pytest.mark.parametrize("level", ["step", "loop"])
def test_evaluations_that_do_less_are_graphs_of_their_own(
    level: CudaGraphLevel, capture: Capture, made: list[Recorded]
) -> None:
    """One a kind for steps; for a whole run one a sequence of kinds."""
    network = Network()
    runner = CudaGraphRunner(network, level, CudaGraphCache(), capture)
    for low, sigmas in (
        (2.0, SIGMAS),
        (2.0, (9.0, 4.0, 3.0, 1.1, 0.4, 0.0)),
        (0.8, SIGMAS),
    ):
        planned = fixed_plan("heun", sigmas)
        latents, noise = latents_and_noise(planned)
        shortcuts = Shortcuts(guidance_interval=(low, 20.0))
        expected = ends(run(planned, latents, for_one_run(network, shortcuts), noise))[-1]
        states = runner.run(planned, latents, noise, shortcuts=shortcuts, watched=False)
        *_, actual = ends(states)
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=2e-5)
    assert len(made) == 2
    replays = [graph.replays for graph in made]
    assert replays == ([2, 1] if level == "loop" else [5 + 5 + 7, 4 + 4 + 2])


def test_what_cannot_be_captured_runs_one_level_lower_and_says_so_once(capture: Capture) -> None:
    asked: list[Work] = []

    def only_steps(work: Work, held: Sequence[Tensor]) -> Graph:
        asked.append(work)
        return refuse(work, held) if len(asked) == 1 else Recorded(work)

    planned = fixed_plan("dpmpp_2m", SIGMAS)
    latents, noise = latents_and_noise(planned)
    expected = ends(run(planned, latents, Network(), noise))[-1]
    runner = CudaGraphRunner(Network(), "loop", CudaGraphCache(), only_steps)
    with pytest.warns(CaptureWarning, match="the loop cannot be captured .*cuda_graph='step'"):
        *_, actual = ends(runner.run(planned, latents, noise, watched=False))
    assert runner.level == "step"
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=2e-5)

    runner = CudaGraphRunner(Network(), "step", CudaGraphCache(), refuse)
    with pytest.warns(CaptureWarning, match="cuda_graph='off'"):
        *_, actual = ends(runner.run(planned, latents, noise))
    assert torch.equal(actual[1], expected[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(runner.run(planned, latents, noise))


def test_a_run_can_be_left_at_any_step(capture: Capture) -> None:
    runner = CudaGraphRunner(Network(), "step", CudaGraphCache(), capture)
    planned = fixed_plan("dpmpp_2m", SIGMAS)
    latents, noise = latents_and_noise(planned)
    for step in runner.run(planned, latents, noise):
        if step.index == 2:
            break
    expected = ends(run(planned, latents, Network(), noise))[-1]
    *_, actual = ends(runner.run(planned, latents, noise))
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=2e-5)


class Sized:
    def __init__(self, size: int) -> None:
        self.size = size

    def replay(self) -> None:
        pass


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache = CudaGraphCache(limit=100, count=3)
    for key in "abc":
        cache.get(key, lambda: Sized(10))
    kept = cache.get("a", pytest.fail)
    cache.get("d", lambda: Sized(10))
    assert len(cache) == 3
    assert cache.get("a", pytest.fail) is kept
    with pytest.raises(CaptureError):
        cache.get("b", lambda: refuse(lambda: None, ()))
    assert len(cache) == 3


def test_the_cache_is_bounded_by_memory() -> None:
    cache = CudaGraphCache(limit=100)
    for key in "abcd":
        cache.get(key, lambda: Sized(40))
    assert cache.size <= 100
    assert len(cache) == 2
    cache.get("huge", lambda: Sized(1000))
    assert len(cache) == 1
    cache.clear()
    assert cache.size == 0
