"""How far a run is at each of its evaluations, for what works in some of the steps only.

our own samplers    the number of the step that an evaluation belongs to, from 0, whatever noise
                    level it is at
foreign samplers    the step in whose range of σ an evaluation lies: more is not known of them
dpm_adaptive        makes its own steps: the share of the way in ln σ, from 0 to 1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

from kdrt.sampling import AdaptivePlan, AnyPlan, Plan

Window = tuple[float, float]
"""The first and the last place, both included, at which something works."""

_ROUNDING = 1e-6
"""Foreign samplers compute their noise levels in float32."""


def window_of(plan: AnyPlan, start: float, end: float) -> Window:
    """From fractions of a run to its places, by diffusers' rule: of n steps, step i is within
    ``start`` and ``end`` unless ``i/n < start`` or ``(i + 1)/n > end``."""
    if isinstance(plan, AdaptivePlan):
        return start, end
    n = plan.steps
    within = [i for i in range(n) if not (i / n < start or (i + 1) / n > end)]
    return (within[0], within[-1]) if within else (n, -1)


def steps_of(plan: Plan) -> list[int]:
    """The step of each stage, in order."""
    ended = accumulate((stage.ends_step for stage in plan.stages), initial=0)
    return list(ended)[:-1]


def places_of(plan: AnyPlan) -> Callable[[float], float]:
    """A function for one run, called at each of its evaluations, in order, with the noise level:
    the place of the evaluation."""
    if isinstance(plan, Plan):
        steps = iter(steps_of(plan))
        return lambda sigma: next(steps)
    if isinstance(plan, AdaptivePlan):
        length = math.log(plan.highest / plan.lowest)

        def share(sigma: float) -> float:
            gone = math.log(plan.highest / sigma) / length if length else 0.0
            # By rounding the first noise level may lie before the beginning, or the last behind
            # the end, where nothing works.
            return min(max(gone, 0.0), 1.0)

        return share
    grid = plan.sigmas[1:-1]
    return lambda sigma: sum(sigma <= level * (1 + _ROUNDING) for level in grid)
