"""Less work for some evaluations of a run, at the price of another image.

    guidance interval   outside of a range of σ the conditional prediction alone, half the batch
                        (Kynkäänniemi et al. 2024, arXiv:2404.07724)
    deep cache          between full evaluations only the UNet's outermost layers, on what the last
                        full one left of its depth (Ma et al. 2023, arXiv:2312.00858, branch 0)

Both are decided on the host, evaluation by evaluation, before anything is enqueued.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from kdrt.common.validation import check_int, excerpt, finite_or_none
from kdrt.errors import InvalidRequestError
from kdrt.sampling.step import HasUnconditional

Interval = tuple[float, float]


class EvaluationKind(NamedTuple):
    """What one evaluation of the denoiser runs: it decides which operations are enqueued.

    Attributes:
        guided: with the unconditional half, where the run has one.
        full: the whole UNet; otherwise its outermost layers.
    """

    guided: bool = True
    full: bool = True


WHOLE = EvaluationKind()
"""An evaluation without shortcuts."""


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts of a run.

    Attributes:
        guidance_interval: (σ_low, σ_high): guidance where σ_low < σ ≤ σ_high, as in the paper;
            None is everywhere.
        deep_cache: of that many evaluations one is full; None is all.
    """

    guidance_interval: Interval | None = None
    deep_cache: int | None = None

    def guides(self, sigma: float) -> bool:
        """Whether there is guidance at this noise level."""
        if self.guidance_interval is None:
            return True
        low, high = self.guidance_interval
        return low < sigma <= high

    def possible_kinds(self) -> tuple[EvaluationKind, ...]:
        """Every kind of evaluation that a run may need, `WHOLE` first."""
        guided = (True,) if self.guidance_interval is None else (True, False)
        full = (True,) if self.deep_cache is None else (True, False)
        return tuple(EvaluationKind(g, f) for g in guided for f in full)

    def kinds(self, sigmas: Iterable[float]) -> tuple[EvaluationKind, ...]:
        """The kind of each evaluation of a run at these noise levels, in order."""
        order = EvaluationOrder(self)
        return tuple(order.next(sigma) for sigma in sigmas)


NO_SHORTCUTS = Shortcuts()


class EvaluationOrder:
    """The kinds of a run's evaluations, one after the other, where its noise levels are not known
    beforehand.

    An evaluation is full where guidance begins or ends, since the deep feature that was kept is of
    the other batch; the count starts again from there.
    """

    def __init__(self, shortcuts: Shortcuts) -> None:
        self._shortcuts = shortcuts
        self._last: EvaluationKind | None = None
        self._since_full = 0

    def next(self, sigma: float) -> EvaluationKind:
        """The kind of the next evaluation, at this noise level."""
        guided, every = self._shortcuts.guides(sigma), self._shortcuts.deep_cache
        full = (
            every is None
            or self._last is None
            or self._last.guided != guided
            or self._since_full + 1 >= every
        )
        self._since_full = 0 if full else self._since_full + 1
        self._last = EvaluationKind(guided, full)
        return self._last


class DenoiseByKind(HasUnconditional, Protocol):
    """A denoiser that is told what kind each evaluation is, and its place in the run."""

    def __call__(
        self, x: Tensor, sigma: float, kind: EvaluationKind = WHOLE, place: float = 0.0
    ) -> Tensor: ...


class DenoiseInOrder:
    """A denoiser for one run: each call is the run's next evaluation.

    Args:
        denoise: the denoiser.
        shortcuts: of the run.
        place: gives the place of the next evaluation, from its noise level; None is no matter.
    """

    def __init__(
        self,
        denoise: DenoiseByKind,
        shortcuts: Shortcuts,
        place: Callable[[float], float] | None = None,
    ) -> None:
        self._denoise = denoise
        self._order = EvaluationOrder(shortcuts)
        self._place = place

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """Denoise ``x`` at noise level ``sigma``."""
        kind = self._order.next(sigma)
        if self._place is None:
            return self._denoise(x, sigma, kind)
        return self._denoise(x, sigma, kind, self._place(sigma))

    @property
    def unconditional(self) -> Tensor:
        """The last result without guidance."""
        return self._denoise.unconditional


def check_interval(name: str, value: object) -> Interval:
    """``value`` as (σ_low, σ_high).

    Raises:
        InvalidRequestError: it is something else.
    """
    numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    low, high = map(finite_or_none, numbers) if len(numbers) == 2 else (None, None)
    if low is None or high is None or not low < high:
        raise InvalidRequestError(
            f"{name} must be two finite noise levels, the lower one first, as in (0.3, 5.4), not "
            f"{excerpt(value)}"
        )
    return low, high


def check_deep_cache(name: str, value: object) -> int:
    """``value`` as how many evaluations share one full one.

    Raises:
        InvalidRequestError: it is something else.
    """
    number = check_int(name, value, 1)
    if number == 1:
        raise InvalidRequestError(
            f"{name}=1 would make every evaluation full; leave it out, or take 2"
        )
    return number
