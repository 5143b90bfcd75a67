"""Schedules that were optimised by their authors and published as tables of noise levels.

Numbers of steps that a table does not have are made by interpolating ln σ along the table.
"""

from __future__ import annotations

import numpy as np

from kdrt.errors import InvalidRequestError
from kdrt.sampling.schedules.training import Float64Array, NoiseSchedule

MODELS = ("sd", "sdxl")
END_RULES = ("replace", "append")

_ALIGN_YOUR_STEPS = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
_GITS_FORGE = {
    "sd": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
    "sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
}
_GITS = """
    14.61464119 0.803307 0.02916753

    14.61464119 1.56271636 0.52423614 0.02916753

    14.61464119 2.36326075 0.92192322 0.36617002 0.02916753

    14.61464119 2.84484982 1.24153244 0.59516323 0.25053367 0.02916753

    14.61464119 5.85520077 2.05039096 0.95350921 0.45573691 0.17026083 0.02916753

    14.61464119 5.85520077 2.45070267 1.24153244 0.64427125 0.29807833 0.09824532 0.02916753

    14.61464119 5.85520077 2.45070267 1.36964464 0.803307 0.45573691 0.25053367 0.09824532
    0.02916753

    14.61464119 5.85520077 2.84484982 1.61558151 0.95350921 0.59516323 0.36617002 0.19894916
    0.09824532 0.02916753

    14.61464119 5.85520077 2.84484982 1.67050016 1.08895338 0.74807048 0.50118381 0.32104823
    0.19894916 0.09824532 0.02916753

    14.61464119 5.85520077 2.95596409 1.84880662 1.24153244 0.83188516 0.59516323 0.41087446
    0.27464288 0.17026083 0.09824532 0.02916753

    14.61464119 5.85520077 3.07277966 1.98035145 1.36964464 0.95350921 0.69515091 0.50118381
    0.36617002 0.25053367 0.17026083 0.09824532 0.02916753

    14.61464119 6.77309084 3.46139455 2.36326075 1.56271636 1.08895338 0.803307 0.59516323
    0.45573691 0.34370604 0.25053367 0.17026083 0.09824532 0.02916753

    14.61464119 6.77309084 3.46139455 2.45070267 1.61558151 1.162866 0.86115354 0.64427125
    0.50118381 0.38853383 0.29807833 0.22545385 0.17026083 0.09824532 0.02916753

    14.61464119 7.49001646 4.65472794 3.07277966 2.12350607 1.51179266 1.08895338 0.83188516
    0.64427125 0.50118381 0.38853383 0.29807833 0.22545385 0.17026083 0.09824532 0.02916753

    14.61464119 7.49001646 4.65472794 3.07277966 2.12350607 1.51179266 1.08895338 0.83188516
    0.64427125 0.50118381 0.41087446 0.32104823 0.25053367 0.19894916 0.13792117 0.09824532
    0.02916753

    14.61464119 7.49001646 4.65472794 3.07277966 2.12350607 1.51179266 1.08895338 0.83188516
    0.64427125 0.50118381 0.41087446 0.34370604 0.27464288 0.22545385 0.17026083 0.13792117
    0.09824532 0.02916753

    14.61464119 7.49001646 4.65472794 3.07277966 2.19988537 1.61558151 1.20157266 0.92192322
    0.72133851 0.57119018 0.45573691 0.36617002 0.29807833 0.25053367 0.19894916 0.17026083
    0.13792117 0.09824532 0.02916753

    14.61464119 7.49001646 4.65472794 3.07277966 2.19988537 1.61558151 1.24153244 0.95350921
    0.74807048 0.59516323 0.4783645 0.38853383 0.32104823 0.27464288 0.22545385 0.19894916
    0.17026083 0.13792117 0.09824532 0.02916753

    14.61464119 7.49001646 4.65472794 3.07277966 2.19988537 1.61558151 1.24153244 0.95350921
    0.74807048 0.59516323 0.50118381 0.41087446 0.34370604 0.29807833 0.25053367 0.22545385
    0.19894916 0.17026083 0.13792117 0.09824532 0.02916753
"""
"""One run a paragraph, of 2 to 20 steps, for the coefficient 1.20."""

_GITS_RUNS = [np.array(run.split(), dtype=np.float64) for run in _GITS.split("\n\n")]


def align_your_steps(
    steps: int, table: NoiseSchedule, *, model: str = "sd", end_rule: str = "replace"
) -> Float64Array:
    """Align Your Steps (Sabour et al. 2024): optimised for ten steps.

    Args:
        steps: how many.
        table: not used: the levels belong to the models they were found for.
        model: ``sd`` or ``sdxl``.
        end_rule: ``replace``: steps + 1 points, and 0 in place of the last (ComfyUI, diffusers;
            ten steps are the published table). ``append``: as many points as steps, and 0 after
            them (A1111, Forge).
    """
    return _ended(np.array(_ALIGN_YOUR_STEPS[model]), steps, end_rule)


def gits_forge(
    steps: int, table: NoiseSchedule, *, model: str = "sd", end_rule: str = "append"
) -> Float64Array:
    """Ten steps found with the method of GITS, as Forge lists them; arguments as for
    `align_your_steps`."""
    return _ended(np.array(_GITS_FORGE[model]), steps, end_rule)


def gits(steps: int, table: NoiseSchedule) -> Float64Array:
    """GITS (Chen et al. 2024) with its coefficient 1.20: an own table for each of 2 to 20 steps,
    for Stable Diffusion; 0 replaces the last level (ComfyUI's node)."""
    if steps < 2:
        raise InvalidRequestError(f"gits has tables for 2 steps and more, not for {steps}")
    return _ended(_GITS_RUNS[min(steps, 20) - 2], steps, "replace")


def _ended(levels: Float64Array, steps: int, end_rule: str) -> Float64Array:
    if end_rule == "append":
        return np.append(_interpolated(levels, steps), 0.0)
    grid = _interpolated(levels, steps + 1)
    grid[-1] = 0.0
    return grid


def _interpolated(levels: Float64Array, points: int) -> Float64Array:
    """``points`` levels from the first to the last, even in the table's index, linear in ln σ."""
    if points == len(levels):
        return levels.copy()
    index = np.linspace(0.0, len(levels) - 1, points)
    return np.exp(np.interp(index, np.arange(len(levels)), np.log(levels)))
