"""The two flavours of TensorRT, and which of them serves which GPU.

What differs beyond this table is probed (``hasattr``), never derived from a version number.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable
from dataclasses import dataclass

from kdrt_engines.errors import EngineError, EngineUnavailableError

RTX_TARGETS = (75, 80, 86, 89, 120, 121)
"""Compute capabilities TensorRT-RTX makes engines for: no 90, no 100 (data-centre GPUs)."""

DEFAULT_TARGETS = (80, 86, 89, 120)
"""Ampere to Blackwell. Turing (75) needs an engine of its own: in a common one the others
would lose their faster kernels."""

_OLDEST = 75


@dataclass(frozen=True)
class Flavour:
    """One flavour.

    ``name`` is kdrt's and the extra's, ``module`` Python's. ``builds_anywhere``: no GPU is needed
    to build. ``magic``: how its files begin, where that is known. ``flags``: builder flags that
    are always on.
    """

    name: str
    title: str
    module: str
    builds_anywhere: bool
    magic: bytes | None
    flags: tuple[str, ...]

    def version(self) -> str:
        """The installed version.

        Raises:
            EngineUnavailableError: it is not installed.
        """
        for distribution in (self.module, self.name):
            try:
                return importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
        raise EngineUnavailableError(
            f"{self.title} is not installed; pip install 'kdrt[{self.name}]'"
        )


# Execution contexts then take all memory from us; otherwise they could not be captured.
TENSORRT_RTX = Flavour(
    "tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", True, b"vtrt", ("REQUIRE_USER_ALLOCATION",)
)
TENSORRT = Flavour("tensorrt", "TensorRT", "tensorrt", False, None, ())
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}


def flavour_for(capability: int) -> Flavour:
    """The flavour that serves GPUs of a compute capability: TensorRT-RTX where it has kernels,
    TensorRT for the rest."""
    return TENSORRT_RTX if capability in RTX_TARGETS else TENSORRT


def parse_capabilities(texts: Iterable[str]) -> tuple[int, ...]:
    """Compute capabilities as people write them: ``sm89``, ``8.9`` or ``89``, several with commas.

    Returns:
        Each once, ascending.

    Raises:
        EngineError: one is not a compute capability, or older than TensorRT goes.
    """
    found = set()
    for text in ",".join(texts).split(","):
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip().lower())
        if match is None:
            raise EngineError(
                f"'{text.strip()}' is no compute capability; write sm89 or 8.9, several with commas"
            )
        number = int(match[1]) * 10 + int(match[2])
        if number < _OLDEST:
            raise EngineError(f"sm{number} is too old: TensorRT begins with sm{_OLDEST} (Turing)")
        found.add(number)
    return tuple(sorted(found))


def split_targets(capabilities: Iterable[int]) -> list[tuple[int, ...]]:
    """One group for each engine to build: Turing by itself, the others together."""
    ordered = sorted(set(capabilities))
    groups = [tuple(c for c in ordered if c < 80), tuple(c for c in ordered if c >= 80)]
    return [group for group in groups if group]
