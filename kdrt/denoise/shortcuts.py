"""Less work for some evaluations of a run, at the price of another image.

    guidance interval   outside of a range of σ the conditional prediction alone, half the batch
                        (Kynkäänniemi et al. 2024, arXiv:2404.07724)
    deep cache          between full evaluations only the UNet's outermost layers, on what the last
                        full one left of its depth (Ma et al. 2023, arXiv:2312.00858, branch 0)

Both are decided on the host, evaluation by evaluation, before anything is enqueued.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kdrt.common.validation import check_int, excerpt, finite_or_none
from kdrt.errors import InvalidRequestError

Interval = tuple[float, float]


class Evaluation(NamedTuple):
    """What one evaluation of the denoiser runs: it decides which operations are enqueued.

    Attributes:
        guided: with the unconditional half, where the run has one.
        full: the whole UNet.
    """

    guided: bool = True
    full: bool = True


@dataclass(frozen=True)
class Shortcuts:
    """The shortcuts of a run.

    Attributes:
        guidance_interval: (σ_low, σ_high): guidance where σ_low < σ ≤ σ_high, as in the paper;
            None is everywhere.
        deep_cache: every that many evaluations one is full; None is all.
    """

    guidance_interval: Interval | None = None
    deep_cache: int | None = None

    def guides(self, sigma: float) -> bool:
        """Whether there is guidance at this noise level."""
        if self.guidance_interval is None:
            return True
        low, high = self.guidance_interval
        return low < sigma <= high

    def kinds(self) -> tuple[Evaluation, ...]:
        """Every kind of evaluation that a run may have."""
        guided = (True,) if self.guidance_interval is None else (True, False)
        full = (True,) if self.deep_cache is None else (True, False)
        return tuple(Evaluation(g, f) for g in guided for f in full)

    def evaluations(self, sigmas: Iterable[float]) -> tuple[Evaluation, ...]:
        """What the evaluations of a run at these noise levels are, in order."""
        course = Course(self)
        return tuple(course.next(sigma) for sigma in sigmas)


class Course:
    """Walks through a run: what each evaluation is follows from those before it.

    Where guidance begins or ends the evaluation is full, since what is kept of the depth is of the
    other batch; the count starts again from there.
    """

    def __init__(self, shortcuts: Shortcuts) -> None:
        self._shortcuts = shortcuts
        self._last: Evaluation | None = None
        self._since = 0

    def next(self, sigma: float) -> Evaluation:
        """What the next evaluation is, at this noise level."""
        guided, every = self._shortcuts.guides(sigma), self._shortcuts.deep_cache
        full = (
            every is None
            or self._last is None
            or self._last.guided != guided
            or self._since + 1 >= every
        )
        self._since = 0 if full else self._since + 1
        self._last = Evaluation(guided, full)
        return self._last


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
