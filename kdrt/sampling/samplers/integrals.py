"""The integrals behind exponential integrators, and the weights they give to results.

In λ = -ln σ the probability flow is dx/dλ = D - x. Over a step of length h its linear part can be
integrated exactly, which leaves

    x' = e⁻ʰ·x + ∫₀¹ h·e^(-h(1-τ))·D(τ) dτ

with τ the elapsed share of the step. The SDE of strength η has h(1 + η) in the exponents. A method
replaces D(τ) by a polynomial through results it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def exponential_weights(h: float, nodes: Sequence[float]) -> list[float]:
    """Weights wⱼ with Σⱼ wⱼ·p(nodeⱼ) = ∫₀¹ h·e^(-h(1-τ))·p(τ) dτ for all polynomials p of a degree
    below the number of nodes (the weights of exponential Adams methods).

    Args:
        h: length of the step in the exponent; a negative one integrates a growing exponential.
        nodes: distinct places in shares of the step: 0 its start, 1 its end, the past below 0.
    """
    degrees = np.arange(len(nodes))
    vandermonde = np.asarray(nodes, dtype=np.float64) ** degrees[:, None]
    moments = [exponential_moment(h, int(degree)) for degree in degrees]
    return np.linalg.solve(vandermonde, moments).tolist()  # type: ignore[no-any-return]


def exponential_moment(h: float, degree: int) -> float:
    """∫₀¹ h·e^(-h(1-τ))·τᵏ dτ, which is k!·h·φₖ₊₁(-h) in the usual notation.

    By parts mₖ = 1 - (k/h)·mₖ₋₁; below |h| = 1 that would cancel, and the series is short.
    """
    if abs(h) < 1:
        term, total = h / (degree + 1), 0.0
        n = degree + 2
        while total + term != total:
            total += term
            term *= -h / n
            n += 1
        return total
    moment = -math.expm1(-h)
    for k in range(1, degree + 1):
        moment = 1 - k / h * moment
    return moment


def sde_noise(t: float, h: float, eta: float) -> float:
    """t·√(1 - e^(-2ηh)): the noise that a step of the SDE of strength η adds on its way to t."""
    return t * math.sqrt(-math.expm1(-2 * eta * h))


def past_nodes(h: float, past: Sequence[float]) -> list[float]:
    """Where the newest results lie, in shares of a step of length ``h`` that starts at the newest:
    0, and below it what the ``past`` steps' lengths, newest first, add up to."""
    nodes, place = [0.0], 0.0
    for length in past:
        place -= length / h
        nodes.append(place)
    return nodes
