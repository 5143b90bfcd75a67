"""A schedule of your own: any noise levels that descend.

    python examples/custom_schedule.py [BUNDLE]

This one is even in the logarithm of sigma, bent so that steps are shorter in the middle. The range
is that of Stable Diffusion and SDXL; ``kdrt schedules`` draws those that kdrt has. Writes
``custom-schedule.png``.
"""

from __future__ import annotations

import math
import sys

import numpy as np

import kdrt

SIGMA_MAX, SIGMA_MIN = 14.6, 0.03


def bent_logarithmic(steps: int, bend: float = 0.5) -> list[float]:
    """``steps + 1`` noise levels, the last 0."""
    ramp = np.linspace(0.0, 1.0, steps)
    bent = ramp + bend * np.sin(2 * math.pi * ramp) / (2 * math.pi)
    levels = np.exp(math.log(SIGMA_MAX) + bent * math.log(SIGMA_MIN / SIGMA_MAX))
    return [*levels.tolist(), 0.0]


def main(bundle: str = "demo") -> None:
    pipe = kdrt.load(bundle)
    sigmas = bent_logarithmic(12)
    print(", ".join(f"{sigma:.3g}" for sigma in sigmas))
    result = pipe("a purple cross on a white background", seed=5, sigmas=sigmas, sampler="euler")
    print(result.save("custom-schedule.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
