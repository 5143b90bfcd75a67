"""The samplers: planners from a σ grid to a `Plan`, and the registry that finds them by name.

``karras`` integrates the probability-flow ODE in σ, ``ancestral`` adds noise after every step,
``dpmpp`` integrates in -ln σ. Planners are pure arithmetic on Python floats and check nothing;
`plan` checks the request.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kdrt.errors import InvalidRequest
from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers import ancestral, dpmpp, karras

__all__ = ["SAMPLERS", "SamplerInfo", "find_sampler", "plan"]


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """What there is to know about a sampler.

    Attributes:
        name: canonical name, k-diffusion's without ``sample_``.
        label: its name in AUTOMATIC1111's web UI.
        planner: from a grid and keyword options to a plan; does not check its arguments.
        order: order of convergence of the deterministic form on a smooth grid.
        stochastic: draws noise with its default options.
        evaluations: calls of the denoiser in N steps down to 0.
    """

    name: str
    label: str
    planner: Callable[..., Plan]
    order: int
    stochastic: bool
    evaluations: str

    @property
    def options(self) -> Mapping[str, Any]:
        """The options `plan` accepts for this sampler, with their defaults."""
        parameters = inspect.signature(self.planner).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


_ALL = (
    SamplerInfo("euler", "Euler", karras.euler, 1, False, "N"),
    SamplerInfo("heun", "Heun", karras.heun, 2, False, "2N-1"),
    SamplerInfo("dpm_2", "DPM2", karras.dpm_2, 2, False, "2N-1"),
    SamplerInfo("lms", "LMS", karras.lms, 4, False, "N"),
    SamplerInfo("euler_ancestral", "Euler a", ancestral.euler_ancestral, 1, True, "N"),
    SamplerInfo("dpm_2_ancestral", "DPM2 a", ancestral.dpm_2_ancestral, 2, True, "2N-1"),
    SamplerInfo("dpmpp_2s_ancestral", "DPM++ 2S a", ancestral.dpmpp_2s_ancestral, 2, True, "2N-1"),
    SamplerInfo("dpmpp_sde", "DPM++ SDE", dpmpp.dpmpp_sde, 2, True, "2N-1"),
    SamplerInfo("dpmpp_2m", "DPM++ 2M", dpmpp.dpmpp_2m, 2, False, "N"),
    SamplerInfo("dpmpp_2m_sde", "DPM++ 2M SDE", dpmpp.dpmpp_2m_sde, 2, True, "N"),
    SamplerInfo("dpmpp_3m_sde", "DPM++ 3M SDE", dpmpp.dpmpp_3m_sde, 2, True, "N"),
)
SAMPLERS: Mapping[str, SamplerInfo] = MappingProxyType({info.name: info for info in _ALL})


def find_sampler(name: str) -> SamplerInfo:
    """The sampler of a name: ours, k-diffusion's (``sample_…``, ``k_…``) or a web UI label.

    Case, spaces, hyphens and underscores do not matter, and ``+`` reads as ``p``.

    Raises:
        InvalidRequest: no sampler is called that.
    """
    return _resolve(name)[0]


def plan(sampler: str, sigmas: Sequence[float], **options: Any) -> Plan:
    """Plan a run of ``sampler`` down ``sigmas``.

    Args:
        sampler: any name `find_sampler` knows; "DPM++ 2M SDE Heun" also sets ``solver_type``.
        sigmas: N + 1 noise levels, strictly descending; usually ends in 0. A NumPy array will do.
        options: the sampler's own, see `SamplerInfo.options`; k-diffusion's names and defaults.

    Raises:
        InvalidRequest: an unknown sampler or option, an option out of range, or an unusable grid.
    """
    info, preset = _resolve(sampler)
    grid = _checked_grid(sigmas)
    accepted = info.options
    for name, value in options.items():
        if name not in accepted:
            known = f"accepts {', '.join(accepted)}" if accepted else "has no options"
            raise InvalidRequest(f"{info.name} has no option {name!r}: it {known}")
        allowed, is_valid = _RULES[name]
        if not is_valid(value):
            raise InvalidRequest(f"{name} of {info.name} must be {allowed}, not {value!r}")
    return info.planner(grid, **{**preset, **options})


def _is_amount(value: object) -> bool:
    return _is_number(value) and 0 <= value < math.inf  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_Rule = tuple[str, Callable[[Any], bool]]
_AMOUNT: _Rule = ("a finite number of at least 0", _is_amount)
_RULES: Mapping[str, _Rule] = {
    "eta": _AMOUNT,
    "s_noise": _AMOUNT,
    "s_churn": _AMOUNT,
    "s_tmin": _AMOUNT,
    "s_tmax": ("a number of at least 0 (or infinity)", lambda v: _is_number(v) and v >= 0),
    "r": ("above 0 and at most 1", lambda v: _is_number(v) and 0 < v <= 1),
    "order": ("1, 2, 3 or 4", lambda v: type(v) is int and 1 <= v <= 4),
    "solver_type": ("'midpoint' or 'heun'", lambda v: v in ("midpoint", "heun")),
}


def _checked_grid(sigmas: Sequence[float]) -> tuple[float, ...]:
    grid = tuple(float(sigma) for sigma in sigmas)
    if len(grid) < 2:
        raise InvalidRequest(f"a grid needs at least two sigmas, one step; got {len(grid)}")
    if not all(math.isfinite(sigma) and sigma >= 0 for sigma in grid):
        raise InvalidRequest("sigmas must be finite and not negative")
    for index in range(1, len(grid)):
        if grid[index] >= grid[index - 1]:
            raise InvalidRequest(
                f"sigmas must descend strictly, but number {index + 1}, {grid[index]:g}, follows "
                f"{grid[index - 1]:g}"
            )
    return grid


def _key(name: str) -> str:
    """What is left of a name when its spelling is taken away: "DPM++ 2M" → "dpmpp2m"."""
    bare = re.sub(r"^(sample|k)[_ ]", "", name.strip().lower())
    return re.sub(r"[^a-z0-9]", "", bare.replace("+", "p"))


_BY_KEY: dict[str, tuple[SamplerInfo, dict[str, Any]]] = {
    **{_key(info.name): (info, {}) for info in _ALL},
    **{_key(info.label): (info, {}) for info in _ALL},
    # The web UI lists one option of this sampler as a sampler of its own.
    _key("DPM++ 2M SDE Heun"): (SAMPLERS["dpmpp_2m_sde"], {"solver_type": "heun"}),
}


def _resolve(name: str) -> tuple[SamplerInfo, dict[str, Any]]:
    """A sampler and the options that its name implies."""
    found = _BY_KEY.get(_key(name)) if isinstance(name, str) else None
    if found is None:
        raise InvalidRequest(f"unknown sampler {name!r}; known: {', '.join(SAMPLERS)}")
    return found
