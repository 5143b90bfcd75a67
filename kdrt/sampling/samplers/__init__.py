"""The samplers: planners from a σ grid to a `Plan`, and the registry that finds them by name.

Planners are pure arithmetic on Python floats and check nothing; `make_plan` checks the request.

Its files:

    karras               Euler, Heun, DPM2 and LMS: the probability-flow ODE in σ
    ancestral            noise after every step
    dpmpp                DPM-Solver++, in -ln σ
    dpm_solver           fixed singlestep methods
    dpm_adaptive         the one that chooses its steps
    multistep            polynomials through earlier results
    predictor_corrector  UniPC and SA-Solver
    seeds_solvers        SEEDS
    er_sde               ER-SDE
    restart              Restart
    discrete             DDPM, DDIM, LCM and TCD
    cfg_pp               CFG++: samplers that need the result without guidance
    integrals            the exact weights of exponential integrators
    draft                a plan in the making
    options              what values the options take
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from kdrt.common.validation import plain_number, unknown_word
from kdrt.errors import InvalidRequestError
from kdrt.sampling.plan import Plan
from kdrt.sampling.samplers import (
    ancestral,
    cfg_pp,
    discrete,
    dpm_adaptive,
    dpm_solver,
    dpmpp,
    er_sde,
    karras,
    multistep,
    predictor_corrector,
    restart,
    seeds_solvers,
)
from kdrt.sampling.samplers.dpm_adaptive import AdaptivePlan
from kdrt.sampling.samplers.options import check_options, options_of
from kdrt.sampling.schedules import SCHEDULES
from kdrt.sampling.schedules.training import (
    Float64Array,
    NoiseSchedule,
    stable_diffusion_table,
)

__all__ = ["SAMPLERS", "SamplerInfo", "find_sampler", "label_of", "make_plan", "split_label"]


_MAX_SIGMA = 1e8
_FLOAT32 = 3.4e38

_MAX_LABEL = 100
"""Characters of a name: what is longer names no sampler, and is not taken apart."""


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """Facts about a sampler.

    Attributes:
        name: canonical name: that of k-diffusion without ``sample_``, if it has the sampler.
        label: its name in AUTOMATIC1111's web UI or a related one; otherwise a name in that style.
        planner: from a grid and keyword options to a plan; does not check its arguments.
        order: order of convergence of the deterministic form on a smooth grid; for a sampler that
            has no such form, of the variance of its results; None if by design it does not
            converge.
        stochastic: whether it draws noise with its default options.
        evaluations: calls of the denoiser in N steps down to 0; "adaptive" if the run decides.
        source: where the method was published.
        diffusers: the diffusers scheduler that does the same, with its arguments; None if none
            does.
        aliases: names that other programs use for it.
        capturable: whether its loop does the same for every image, so that a CUDA graph can hold
            it.
        timed: whether it also uses training timesteps; the planner's second argument is then the
            training table.
    """

    name: str
    label: str
    planner: Callable[..., Plan | AdaptivePlan]
    order: int | None
    stochastic: bool
    evaluations: str
    source: str
    diffusers: str | None = None
    aliases: tuple[str, ...] = ()
    capturable: bool = True
    timed: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """The options `make_plan` accepts for this sampler, with their defaults."""
        return options_of(self.planner)


_ALL = (
    SamplerInfo(
        *("euler", "Euler", karras.euler, 1, False, "N"),
        source="Karras et al. 2022",
        diffusers="EulerDiscreteScheduler",
    ),
    SamplerInfo(
        *("heun", "Heun", karras.heun, 2, False, "2N-1"),
        source="Karras et al. 2022",
        diffusers="HeunDiscreteScheduler",
    ),
    SamplerInfo(
        *("dpm_2", "DPM2", karras.dpm_2, 2, False, "2N-1"),
        source="Lu et al. 2022a",
        diffusers="KDPM2DiscreteScheduler",
    ),
    SamplerInfo(
        *("lms", "LMS", karras.lms, 4, False, "N"),
        source="Crowson 2022, k-diffusion",
        diffusers="LMSDiscreteScheduler",
    ),
    SamplerInfo(
        *("euler_ancestral", "Euler a", ancestral.euler_ancestral, 1, True, "N"),
        source="Crowson 2022, k-diffusion",
        diffusers="EulerAncestralDiscreteScheduler",
    ),
    SamplerInfo(
        *("dpm_2_ancestral", "DPM2 a", ancestral.dpm_2_ancestral, 2, True, "2N-1"),
        source="Crowson 2022, k-diffusion",
        diffusers="KDPM2AncestralDiscreteScheduler",
    ),
    SamplerInfo(
        *("dpmpp_2s_ancestral", "DPM++ 2S a", ancestral.dpmpp_2s_ancestral, 2, True, "2N-1"),
        source="Lu et al. 2022b",
    ),
    SamplerInfo(
        *("dpmpp_sde", "DPM++ SDE", dpmpp.dpmpp_sde, 2, True, "2N-1"),
        source="Lu et al. 2022b",
        diffusers="DPMSolverSDEScheduler",
        aliases=("dpmpp_sde_gpu",),
    ),
    SamplerInfo(
        *("dpmpp_2m", "DPM++ 2M", dpmpp.dpmpp_2m, 2, False, "N"),
        source="Lu et al. 2022b",
        diffusers="DPMSolverMultistepScheduler",
    ),
    SamplerInfo(
        *("dpmpp_2m_sde", "DPM++ 2M SDE", dpmpp.dpmpp_2m_sde, 2, True, "N"),
        source="Lu et al. 2022b",
        diffusers='DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")',
        aliases=("dpmpp_2m_sde_gpu",),
    ),
    SamplerInfo(
        *("dpmpp_3m_sde", "DPM++ 3M SDE", dpmpp.dpmpp_3m_sde, 2, True, "N"),
        source="Lu et al. 2022b; Crowson 2023, k-diffusion",
        aliases=("dpmpp_3m_sde_gpu",),
    ),
    SamplerInfo(
        *("dpmpp_3m_sde_exact", "DPM++ 3M SDE Exact", multistep.dpmpp_3m_sde_exact),
        *(3, True, "N"),
        source="Lu et al. 2022b, corrected",
    ),
    SamplerInfo(
        *("dpm_fast", "DPM fast", dpm_solver.dpm_fast, 2, False, "N"),
        source="Lu et al. 2022a",
    ),
    SamplerInfo(
        *("dpm_adaptive", "DPM adaptive", dpm_adaptive.dpm_adaptive, 3, False, "adaptive"),
        source="Lu et al. 2022a",
        capturable=False,
    ),
    SamplerInfo(
        *("restart", "Restart", restart.restart, 2, True, "2N-1"),
        source="Xu et al. 2023",
    ),
    SamplerInfo(
        *("ddim", "DDIM", discrete.ddim, 1, False, "N"),
        source="Song et al. 2021",
        diffusers="DDIMScheduler",
    ),
    SamplerInfo(
        *("ddpm", "DDPM", discrete.ddpm, 1, True, "N"),
        source="Ho et al. 2020",
        diffusers="DDPMScheduler",
    ),
    SamplerInfo(
        *("lcm", "LCM", discrete.lcm, None, True, "N"),
        source="Luo et al. 2023",
        diffusers="LCMScheduler (without its boundary scaling)",
    ),
    SamplerInfo(
        *("tcd", "TCD", discrete.tcd, 1, True, "N"),
        source="Zheng et al. 2024",
        diffusers="TCDScheduler",
        timed=True,
    ),
    SamplerInfo(
        *("unipc", "UniPC", predictor_corrector.unipc, 4, False, "N"),
        source="Zhao et al. 2023",
        diffusers='UniPCMultistepScheduler(solver_order=3, solver_type="bh1")',
        aliases=("uni_pc",),
    ),
    SamplerInfo(
        *("sa_solver", "SA Solver", predictor_corrector.sa_solver, 4, True, "N"),
        source="Xue et al. 2023",
    ),
    SamplerInfo(
        *("deis", "DEIS", multistep.deis, 3, False, "N"),
        source="Zhang & Chen 2022",
        diffusers="DEISMultistepScheduler(solver_order=3)",
    ),
    SamplerInfo(
        *("ipndm", "IPNDM", multistep.ipndm, 2, False, "N"),
        source="Liu et al. 2022; Zhang & Chen 2022",
    ),
    SamplerInfo(
        *("res_multistep", "RES Multistep", multistep.res_multistep, 2, False, "N"),
        source="Zhang et al. 2023",
    ),
    SamplerInfo(
        *("exp_heun_2_x0", "Exponential Heun", seeds_solvers.exp_heun_2_x0, 2, False, "2N-1"),
        source="Hochbruck & Ostermann 2010",
    ),
    SamplerInfo(
        *("seeds_2", "SEEDS 2", seeds_solvers.seeds_2, 2, True, "2N-1"),
        source="Gonzalez et al. 2023",
    ),
    SamplerInfo(
        *("seeds_3", "SEEDS 3", seeds_solvers.seeds_3, 3, True, "3N-2"),
        source="Gonzalez et al. 2023",
    ),
    SamplerInfo(
        *("er_sde", "ER-SDE", er_sde.er_sde, 2, True, "N"),
        source="Cui et al. 2023",
    ),
    SamplerInfo(
        *("euler_cfg_pp", "Euler CFG++", cfg_pp.euler_cfg_pp, 1, False, "N"),
        source="Chung et al. 2024",
    ),
    SamplerInfo(
        *("euler_ancestral_cfg_pp", "Euler a CFG++", cfg_pp.euler_ancestral_cfg_pp, 1, True, "N"),
        source="Chung et al. 2024",
    ),
    SamplerInfo(
        *("dpmpp_2m_cfg_pp", "DPM++ 2M CFG++", cfg_pp.dpmpp_2m_cfg_pp, 2, False, "N"),
        source="Chung et al. 2024",
    ),
)
SAMPLERS: Mapping[str, SamplerInfo] = MappingProxyType({info.name: info for info in _ALL})


@dataclass(frozen=True, slots=True)
class _Preset:
    """A name that other programs list as a sampler, and that is one of ours with an option."""

    label: str
    sampler: str
    options: Mapping[str, Any]
    aliases: tuple[str, ...] = ()


_PRESETS = (
    _Preset(
        *("DPM++ 2M SDE Heun", "dpmpp_2m_sde", {"solver_type": "heun"}),
        aliases=("dpmpp_2m_sde_heun_gpu",),
    ),
    _Preset("UniPC bh2", "unipc", {"solver_type": "bh2"}),
    _Preset("RES Multistep Ancestral", "res_multistep", {"eta": 1.0}),
    _Preset("Exponential Heun SDE", "exp_heun_2_x0", {"eta": 1.0}, ("exp_heun_2_x0_sde",)),
)


def find_sampler(name: str) -> SamplerInfo:
    """The sampler of that name: kdrt's name, k-diffusion's (``sample_…``, ``k_…``), a label of the
    web UI, or ComfyUI's name.

    Case, spaces, hyphens and underscores do not matter, and ``+`` counts as ``p``.

    Raises:
        InvalidRequestError: no sampler is called that.
    """
    return _resolve(name)[0]


def split_label(label: str) -> tuple[str, dict[str, Any], str | None]:
    """Split a label that also names a schedule, as web UIs used to write it: "DPM++ 2M SDE Karras".

    Returns:
        The canonical name of the sampler, the options that the label implies, and the name of the
        schedule, which is None if the label has none.

    Raises:
        InvalidRequestError: the label cannot be split into a sampler and a schedule.
    """
    split = _split(label) if isinstance(label, str) else None
    (info, implied), schedule = split if split is not None else (_resolve(label), None)
    return info.name, dict(implied), schedule


def label_of(name: str, options: Mapping[str, Any]) -> str:
    """The label to show for a sampler called ``name`` with ``options``: that of the name itself,
    unless an option overrides what the name implies.

    Raises:
        InvalidRequestError: no sampler is called that.
    """
    info, implied = _resolve(name)
    for preset in _PRESETS:
        if preset.options is implied and not implied.keys() & options.keys():
            return preset.label
    return info.label


def make_plan(
    sampler: str,
    sigmas: Sequence[float] | Float64Array,
    noise_schedule: NoiseSchedule | None = None,
    /,
    **options: Any,
) -> Plan | AdaptivePlan:
    """Plan a run of ``sampler`` along ``sigmas``.

    Args:
        sampler: any name that `find_sampler` knows; "DPM++ 2M SDE Heun" also sets ``solver_type``.
        sigmas: N + 1 noise levels, strictly descending; usually ends in 0. A NumPy array works too.
        noise_schedule: the model's training table, for samplers that are `SamplerInfo.timed`; None
            is Stable Diffusion's.
        options: those of the sampler, see `SamplerInfo.options`; names and defaults are those of
            k-diffusion.

    Returns:
        The plan, or an `AdaptivePlan` if the sampler chooses its own steps.

    Raises:
        InvalidRequestError: the sampler or an option is unknown, an option is out of range, or the
            grid is unusable; or a coefficient leaves the range of floats.
    """
    info, preset = _resolve(sampler)
    grid = _checked_grid(sigmas)
    given = {name: plain_number(value) for name, value in options.items()}
    check_options(info.name, info.planner, given)
    try:
        table = (noise_schedule or stable_diffusion_table()) if info.timed else None
        return _planned(info.planner, grid, table, tuple(sorted({**preset, **given}.items())))
    except (ArithmeticError, ValueError) as error:
        raise InvalidRequestError(
            f"{info.name} has no finite steps on this grid with these options; take options nearer "
            "to the defaults, or a grid of fewer orders of magnitude"
        ) from error


@lru_cache(maxsize=64)
def _planned(
    planner: Callable[..., Plan | AdaptivePlan],
    grid: tuple[float, ...],
    table: NoiseSchedule | None,
    options: tuple[tuple[str, Any], ...],
) -> Plan | AdaptivePlan:
    """A plan, made once: many images are made with the same settings."""
    tables = () if table is None else (table,)
    planned = planner(grid, *tables, **dict(options))
    if isinstance(planned, Plan):
        _check_coefficients(planned)
    return planned


def _check_coefficients(plan: Plan) -> None:
    """Raise OverflowError unless all fit float32, the latents' dtype: one that does not would
    show only at the end of the run."""
    numbers = [plan.initial_noise]
    for stage in plan.stages:
        numbers += [stage.sigma, stage.base, *stage.denoised, *stage.unconditional, stage.noise]
        if stage.correction is not None:
            numbers += [stage.correction.base, *stage.correction.denoised, stage.correction.noise]
    if not all(abs(number) < _FLOAT32 for number in numbers):
        raise OverflowError


def _checked_grid(sigmas: Sequence[float] | Float64Array) -> tuple[float, ...]:
    try:
        grid = tuple(float(sigma) for sigma in sigmas)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError("sigmas must be a sequence of numbers") from error
    if len(grid) < 2:
        raise InvalidRequestError(f"a grid needs at least two sigmas, one step; got {len(grid)}")
    if not all(math.isfinite(sigma) and sigma >= 0 for sigma in grid):
        raise InvalidRequestError("sigmas must be finite and not negative")
    if any(sigma > _MAX_SIGMA or 0 < sigma < 1 / _MAX_SIGMA for sigma in (grid[0], *grid[-2:])):
        raise InvalidRequestError(
            f"sigmas must be from {1 / _MAX_SIGMA:g} to {_MAX_SIGMA:g}, or 0: latents are float32"
        )
    for index in range(1, len(grid)):
        if grid[index] >= grid[index - 1]:
            raise InvalidRequestError(
                f"sigmas must descend strictly, but number {index + 1}, {grid[index]:g}, follows "
                f"{grid[index - 1]:g}"
            )
    return grid


@lru_cache(maxsize=256)
def _key(name: str) -> str:
    """What is left of a name when its spelling is taken away: "DPM++ 2M" → "dpmpp2m"."""
    bare = re.sub(r"^(sample|k)[_ ]", "", name.strip().lower())
    return re.sub(r"[^a-z0-9]", "", bare.replace("+", "p"))


_BY_KEY: dict[str, tuple[SamplerInfo, Mapping[str, Any]]] = {
    **{_key(name): (info, {}) for info in _ALL for name in (info.name, info.label, *info.aliases)},
    **{
        _key(name): (SAMPLERS[preset.sampler], preset.options)
        for preset in _PRESETS
        for name in (preset.label, *preset.aliases)
    },
}


def _resolve(name: str) -> tuple[SamplerInfo, Mapping[str, Any]]:
    """A sampler and the options that its name implies."""
    known = isinstance(name, str) and len(name) <= _MAX_LABEL
    found = _BY_KEY.get(_key(name)) if known else None
    if found is None:
        split = _split(name) if isinstance(name, str) else None
        if split is not None:
            (info, _), schedule = split
            raise InvalidRequestError(
                f"{name!r} names a sampler and a schedule; give them apart, as {info.name!r} and "
                f"{schedule!r}"
            )
        raise InvalidRequestError(unknown_word("sampler", name, SAMPLERS))
    return found


def _split(label: str) -> tuple[tuple[SamplerInfo, Mapping[str, Any]], str] | None:
    """A sampler with what its name implies, and the schedule whose name follows it."""
    if len(label) > _MAX_LABEL:
        return None
    schedules = {_key(schedule): schedule for schedule in SCHEDULES}
    words = re.split(r"[\s_]+", label.strip())
    for count in range(1, len(words)):
        found = _BY_KEY.get(_key(" ".join(words[:count])))
        schedule = schedules.get(_key(" ".join(words[count:])))
        if found is not None and schedule is not None:
            return found, schedule
    return None
