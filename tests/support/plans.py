"""Plans whose steps are fixed: all but the adaptive one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from kdrt.sampling import Plan, make_plan


def fixed_plan(sampler: str, sigmas: Sequence[float] | NDArray[Any], /, **options: Any) -> Plan:
    """As `make_plan`, of a sampler that is not adaptive."""
    plan = make_plan(sampler, sigmas, **options)
    assert isinstance(plan, Plan)
    return plan
