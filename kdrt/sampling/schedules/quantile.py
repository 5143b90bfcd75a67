"""Quantiles of the beta distribution, so that two schedules do not need SciPy."""

from __future__ import annotations

import math

_TINY = 1e-300
_RELATIVE = 1e-15


def beta_quantile(probability: float, alpha: float, beta: float) -> float:
    """The x in [0, 1] at which the beta distribution's cumulative probability is reached.

    Newton's method on the regularised incomplete beta function, with bisection wherever a step
    would leave the bracket or is not half as long as the one before (far out in a tail, Newton's
    steps are short and many). Accurate to 1e-9, and mostly to 1e-13.

    Args:
        probability: from 0 to 1.
        alpha: first shape parameter, above 0.
        beta: second shape parameter, above 0.
    """
    if probability <= 0:
        return 0.0
    if probability >= 1:
        return 1.0
    if probability > 0.5:
        # Close to 1 the rest is what has digits, and it is exact.
        return 1 - beta_quantile(1 - probability, beta, alpha)
    log_beta = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    low, high = 0.0, 1.0
    x, step = alpha / (alpha + beta), 1.0
    for _ in range(200):
        error = _incomplete(x, alpha, beta, log_beta) - probability
        if error > 0:
            high = x
        else:
            low = x
        density = math.exp((alpha - 1) * math.log(x) + (beta - 1) * math.log1p(-x) - log_beta)
        following = x - error / density if density > _TINY else low
        if not low < following < high or abs(following - x) > step / 2:
            following = (low + high) / 2
        step = abs(following - x)
        if step <= _RELATIVE * x or not low < following < high:
            return following
        x = following
    return x


def _incomplete(x: float, alpha: float, beta: float, log_beta: float) -> float:
    """The regularised incomplete beta function Iₓ(α, β), for 0 < x < 1."""
    # The fraction converges fast below the mean; above it the symmetry Iₓ(α, β) = 1 - I₁₋ₓ(β, α)
    # leads back there.
    if x > (alpha + 1) / (alpha + beta + 2):
        return 1 - _incomplete_below(1 - x, beta, alpha, log_beta)
    return _incomplete_below(x, alpha, beta, log_beta)


def _incomplete_below(x: float, alpha: float, beta: float, log_beta: float) -> float:
    front = math.exp(alpha * math.log(x) + beta * math.log1p(-x) - log_beta) / alpha
    return front * _fraction(x, alpha, beta)


def _fraction(x: float, alpha: float, beta: float) -> float:
    """The continued fraction of Iₓ (Abramowitz and Stegun 26.5.8) by Lentz's algorithm."""
    c, d = 1.0, 1 / _away_from_zero(1 - (alpha + beta) * x / (alpha + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (beta - m) * x / ((alpha + 2 * m - 1) * (alpha + 2 * m))
        odd = -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / _away_from_zero(1 + numerator * d)
            c = _away_from_zero(1 + numerator / c)
            value *= c * d
        if abs(c * d - 1) < _RELATIVE:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
