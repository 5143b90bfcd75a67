"""A sampler of your own in ten lines: Heun's method, with the signature of k-diffusion's samplers.

    python examples/custom_sampler.py [BUNDLE]

``model(x, sigma)`` gives the denoised latents, guidance included; ``sigmas`` are the noise levels
of the run, N + 1 for N steps. Parameters with defaults are options. Writes ``custom-sampler.png``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from torch import Tensor

import kdrt


def heun_then_euler(
    model: Callable[..., Tensor], x: Tensor, sigmas: Tensor, threshold: float = 1.0
) -> Tensor:
    """Two evaluations a step above ``threshold``, where images take shape, and one below."""
    for sigma, sigma_next in pairwise(sigmas):
        slope = (x - model(x, sigma)) / sigma
        euler = x + slope * (sigma_next - sigma)
        if sigma_next <= threshold:
            x = euler
            continue
        slope_next = (euler - model(euler, sigma_next)) / sigma_next
        x = x + (slope + slope_next) / 2 * (sigma_next - sigma)
    return x


def main(bundle: str = "demo") -> None:
    pipe = kdrt.load(bundle)
    own = pipe("a yellow heart", seed=3, steps=12, sampler=heun_then_euler)
    print(own.save("custom-sampler.png"))

    # With a threshold of 0 it is Heun's method, so kdrt's own sampler makes the same image. Options
    # of a function are given like those of kdrt's samplers.
    options = {"threshold": 0.0}
    pure = pipe(
        "a yellow heart",
        seed=3,
        steps=12,
        sampler=heun_then_euler,
        sampler_options=options,
        output_type="np",
    )
    heun = pipe("a yellow heart", seed=3, steps=12, sampler="heun", output_type="np")
    difference = np.abs(np.asarray(pure.images) - np.asarray(heun.images)).max()
    print(f"largest difference to heun: {difference:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
