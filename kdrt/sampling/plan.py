"""The plan of a run: every number a sampler needs, known before the first evaluation.

A fixed-step k-diffusion sampler is linear in the state, in the denoiser's results and in the
noise, with coefficients that depend on the σ grid alone (and for `tcd` on the timesteps of its
levels, which the training table tells). So a sampler is a function from a grid to a `Plan`, and
one executor (eager, or a captured graph reading a table of coefficients) runs all of them without
looking at a tensor.

Notation in this package: a *step* goes from one σ of the grid to the next and has one or two
*stages*, each of which evaluates the denoiser once. D is a result of the denoiser, ξ a standard
normal draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class NoiseSlot(NamedTuple):
    """One standard normal draw ξ of the latents' shape.

    ξ is the increment of a Brownian motion over [sigma_next, sigma], divided by the square root
    of its length. The motion runs in σ, so draws over disjoint intervals are independent and
    draws over overlapping ones are correlated. Equal ends mark a draw that belongs to no
    interval (churn) and is independent of every other.

    Attributes:
        sigma: upper end of the interval.
        sigma_next: lower end of the interval.
    """

    sigma: float
    sigma_next: float


class Correction(NamedTuple):
    """How a predictor-corrector method corrects the state at the start of a step, after the
    denoiser has evaluated the predicted state.

        corrected start = base · (state at the start of the step before) + Σⱼ denoised[j] · Dⱼ
                          + noise · ξ[slot]

    with D₀ the result of the stage that carries the correction.

    Attributes:
        base: coefficient of the state at the start of the step before.
        denoised: coefficients of D₀, D₁, …
        noise: standard deviation of the noise added, 0 for none.
        slot: index into `Plan.slots`, None where ``noise`` is 0.
    """

    base: float
    denoised: tuple[float, ...]
    noise: float = 0.0
    slot: int | None = None


class Stage(NamedTuple):
    """One evaluation of the denoiser, and the state that follows from it.

    The stage evaluates ``D₀ = denoise(current state, sigma)``; then

        new state = base · (state at the start of this step) + Σⱼ denoised[j] · Dⱼ
                    + Σⱼ unconditional[j] · Uⱼ + noise · ξ[slot]

    where D₁ is the result of the previous stage, D₂ that of the stage before it, and so on across
    step boundaries. Uⱼ is the result without guidance that belongs to Dⱼ.

    Attributes:
        sigma: noise level at which the denoiser is evaluated.
        base: coefficient of the state at the start of the step.
        denoised: coefficients of D₀, D₁, …; the last one is not zero.
        noise: standard deviation of the noise added, 0 for none.
        slot: index into `Plan.slots`, None where ``noise`` is 0.
        ends_step: the new state is the next step's start; otherwise it is only evaluated.
        unconditional: coefficients of U₀, U₁, …, which CFG++ samplers use.
        correction: applied to the start of the step before the new state is computed.
    """

    sigma: float
    base: float
    denoised: tuple[float, ...]
    noise: float
    slot: int | None
    ends_step: bool
    unconditional: tuple[float, ...] = ()
    correction: Correction | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A sampler applied to a grid. `kdrt.sampling.run` executes it.

    Noise that a sampler adds *before* an evaluation (churn) is part of the previous stage. For the
    first evaluation it is ``initial_noise · ξ[initial_slot]``, added to the given latents.

    Attributes:
        sampler: canonical name of the sampler.
        sigmas: the grid, descending; may end in 0.
        stages: all evaluations, in order.
        slots: the noise to draw, in the order in which the stages use it.
        initial_noise: standard deviation of the noise added before the first stage.
        initial_slot: its slot, None where ``initial_noise`` is 0.
        residual: the coefficients in `Stage.denoised` multiply ``x - D`` (x is the evaluated
            state) instead of D. A multistep method on the derivative (x - D)/σ has no finite form
            in D alone, because its memory also holds past states.
    """

    sampler: str
    sigmas: tuple[float, ...]
    stages: tuple[Stage, ...]
    slots: tuple[NoiseSlot, ...] = ()
    initial_noise: float = 0.0
    initial_slot: int | None = None
    residual: bool = False

    def __hash__(self) -> int:
        # Plans are keys of what is compiled from them, looked up for every image: the grid tells
        # most of them apart, and hashing every coefficient would cost more than a step.
        return hash((self.sampler, self.sigmas))

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.sigmas) - 1

    @property
    def evaluations(self) -> int:
        """Number of calls of the denoiser."""
        return len(self.stages)

    @property
    def history(self) -> int:
        """The number of results that the executor holds at once, including the newest."""
        return max(
            max(
                len(stage.denoised),
                len(stage.unconditional),
                len(stage.correction.denoised) if stage.correction else 0,
            )
            for stage in self.stages
        )

    @property
    def needs_unconditional(self) -> bool:
        """Whether the denoiser must also provide its results without guidance."""
        return any(stage.unconditional for stage in self.stages)
