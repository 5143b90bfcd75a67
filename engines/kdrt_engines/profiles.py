"""Optimization profiles: the sizes a built engine takes, and the choice among them.

A profile gives every symbol of a network's inputs a least size, a size to be fastest at, and a
greatest size. An engine may hold several; kernels are made for each, so its size, and the time to
build it, grow with their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kdrt_engines.errors import ShapeError


@dataclass(frozen=True)
class Range:
    """Sizes from ``min`` to ``max``, fastest at ``opt``."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ShapeError(
                f"a range needs 1 ≤ min ≤ opt ≤ max, not {self.min}, {self.opt}, {self.max}"
            )

    @classmethod
    def fixed(cls, size: int) -> Range:
        return cls(size, size, size)

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}..{self.max}"


@dataclass(frozen=True)
class Profile:
    """A named set of ranges, one a symbol (``B``, ``h``, ``w``, ``L``)."""

    name: str
    ranges: Mapping[str, Range]

    def allows(self, dims: Mapping[str, int]) -> bool:
        """Whether every symbol of the profile has a size, and one that lies in its range."""
        return all(symbol in dims and dims[symbol] in r for symbol, r in self.ranges.items())

    def sizes(self, which: str) -> dict[str, int]:
        """The ``min``, ``opt`` or ``max`` of every symbol."""
        return {symbol: getattr(r, which) for symbol, r in self.ranges.items()}

    def volume(self, which: str) -> int:
        """The product of the ``min``, ``opt`` or ``max`` of every symbol."""
        return math.prod(self.sizes(which).values())

    @property
    def looseness(self) -> int:
        """How many sets of sizes the profile allows: 1 for a static one."""
        return math.prod(r.max - r.min + 1 for r in self.ranges.values())

    def __str__(self) -> str:
        return f"{self.name} ({' '.join(f'{s}={r}' for s, r in self.ranges.items())})"


def choose_profile(profiles: Iterable[Profile], dims: Mapping[str, int]) -> Profile:
    """The tightest profile that allows ``dims``; among equals the one whose optimum is nearest,
    then the first.

    No profile that allows ``dims`` lies strictly inside the chosen one.

    Raises:
        ShapeError: none allows them; the message lists what there is.
    """
    known = tuple(profiles)
    fitting = [profile for profile in known if profile.allows(dims)]
    if not fitting:
        raise ShapeError(
            f"no optimization profile takes {sizes(dims)}; the engine has "
            + "; ".join(map(str, known))
        )
    return min(fitting, key=lambda profile: (profile.looseness, _distance(profile, dims)))


def limits(profiles: Iterable[Profile]) -> dict[str, tuple[int, int]]:
    """Least and greatest size of each symbol in the loosest profile: one profile allows all of them
    together, while between the profiles of an engine there may be sizes that none allows."""
    loosest = max(profiles, key=lambda profile: profile.looseness)
    return {symbol: (r.min, r.max) for symbol, r in loosest.ranges.items()}


def sizes(dims: Mapping[str, int]) -> str:
    """``B=2 h=64``."""
    return " ".join(f"{symbol}={size}" for symbol, size in dims.items())


def _distance(profile: Profile, dims: Mapping[str, int]) -> float:
    return sum(abs(math.log(dims[s] / r.opt)) for s, r in profile.ranges.items())
