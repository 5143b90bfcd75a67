"""What does a sampler cost the host, with the network taken out?

    python benchmarks/sampler_overhead.py [-o FOLDER] [--steps N] [--rounds N]

Runs every sampler of k-diffusion beside ours, in one process and in turns, with a denoiser that
returns one and the same tensor. On latents of [2, 4, 1, 1] the arithmetic is nothing, so what is
left is Python and PyTorch's dispatch: what every step of an image pays however fast the GPU is.

Figures are medians of the processor time of the thread, in microseconds a step, over whole calls:

- *k-diffusion*: ``sample_…(model, x, sigmas)``, which draws its noise on the way. Its SDE samplers
  use a Brownian tree unless told otherwise; ``randn`` marks rows where they are told otherwise.
- *loop*: ``kdrt.sampling.sample(plan, x, denoise, noise)``.
- *before*: ``plan(…)`` and ``SeededNoise.draw``, made before the first step. Plans and what is
  compiled from them are kept: this is what a second image with the same settings pays.
- *new settings*: what the first one pays besides, to plan and to compile.

``dpm_adaptive`` is left out: it chooses its own steps. Where we have no plan, ours stays empty.

Prints a table, then one line of JSON; ``-o`` also writes both and a plot into a folder.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from kdrt.sampling import SAMPLERS, NoiseSchedule, Plan, SeededNoise, make_plan, sample, sigmas_for
from kdrt.sampling.executor import _compiled
from kdrt.sampling.k_diffusion import k_diffusion_sampler
from kdrt.sampling.samplers import _planned

SHAPE = (2, 4, 1, 1)
DETERMINISTIC = ("euler", "heun", "dpm_2", "lms", "dpmpp_2m")
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
SDE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
ROWS = [
    *[(name, "") for name in (*DETERMINISTIC, *ANCESTRAL)],
    *[(name, noise) for name in SDE for noise in ("randn", "Brownian tree")],
    ("dpm_fast", ""),
]

Run = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Microseconds a step, medians: k-diffusion's call, our loop, what we do before it, and what
    settings that are new cost besides; None where the sampler has no plan of ours. ``best`` are
    the first two at their fastest, which is what a machine that does nothing else would show."""

    sampler: str
    noise: str
    k_diffusion: float
    loop: float | None
    before: float | None
    new_settings: float | None
    best: tuple[float, float] | None

    @property
    def ratios(self) -> tuple[float, float] | None:
        """How many times less the loop costs, and the loop with all that goes before it."""
        if self.loop is None or self.before is None:
            return None
        return self.k_diffusion / self.loop, self.k_diffusion / (self.loop + self.before)


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER")] = None,
    steps: int = 30,
    rounds: int = 25,
) -> None:
    """Measure the host's cost of every sampler, k-diffusion's and ours."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torchsde")
    costs = [measure(name, noise, steps, rounds) for name, noise in ROWS]
    report = {
        "machine": machine(),
        "latents": SHAPE,
        "steps": steps,
        "rounds": rounds,
        "unit": "microseconds of processor time a step, median",
        "costs": [asdict(cost) for cost in costs],
    }
    table = markdown(costs, report)
    print(table)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "sampler_overhead.md").write_text(table + "\n", encoding="utf-8")
        (output / "sampler_overhead.json").write_text(json.dumps(report, indent=1) + "\n")
        draw(costs, output / "sampler_overhead.png")
    print(json.dumps(report))


def measure(name: str, noise: str, steps: int, rounds: int) -> Cost:
    """Both sides of a row, in turns."""
    schedule = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
    sigmas = [float(sigma) for sigma in sigmas_for("karras", steps, schedule)]
    source = SeededNoise([0, 1], SHAPE[1:])
    x = source.latents() * sigmas[0]
    theirs = k_diffusion_run(name, noise, x, sigmas)
    planned = make_plan(name, sigmas) if name in SAMPLERS else None
    if not isinstance(planned, Plan):
        (alone,) = times_of([theirs], rounds)
        return Cost(name, noise, statistics.median(alone) / steps, None, None, None, None)

    result = torch.zeros(SHAPE)
    draws = source.draw(planned.slots)

    def loop() -> None:
        sample(planned, x, lambda x, sigma: result, draws)

    def before() -> None:
        source.draw(make_plan(name, sigmas).slots)

    def new_settings() -> None:
        _planned.cache_clear()
        _compiled.__wrapped__(make_plan(name, sigmas), x.dtype)

    times = times_of([theirs, loop, before, new_settings], rounds)
    k_diffusion, ours, ahead, once = (statistics.median(each) / steps for each in times)
    best = (min(times[0]) / steps, min(times[1]) / steps)
    return Cost(name, noise, k_diffusion, ours, ahead, once, best)


def k_diffusion_run(name: str, noise: str, x: Tensor, sigmas: list[float]) -> Run:
    """A call of k-diffusion's sampler as its users make it."""
    function = k_diffusion_sampler(f"k_diffusion.sample_{name}")
    result = torch.zeros(SHAPE)
    options: dict[str, Any] = {"disable": True}
    if noise == "randn":
        options["noise_sampler"] = lambda sigma, sigma_next: torch.randn_like(x)
    if name == "dpm_fast":
        ends: tuple[Any, ...] = (sigmas[-2], sigmas[0], len(sigmas) - 1)
    else:
        ends = (torch.tensor(sigmas),)
    return lambda: function(lambda x, sigma: result, x, *ends, **options)


def times_of(runs: list[Run], rounds: int) -> list[list[float]]:
    """The processor times of each, in microseconds; a first round is thrown away."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.thread_time_ns()
            run()
            if turn > 0:
                taken.append((time.thread_time_ns() - start) / 1000)
    return times


def machine() -> dict[str, str]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "cpu": cpu,
        "load": f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "k-diffusion", "torchsde")},
    }


def markdown(costs: list[Cost], report: dict[str, Any]) -> str:
    """The table, with the machine above it."""
    about = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    lines = [
        f"{about}; {report['steps']} steps, latents {list(SHAPE)}, one thread, "
        f"{report['rounds']} rounds. Microseconds of processor time a step.",
        "",
        "| sampler | noise | k-diffusion | our loop | times less | before the loop | times less, "
        "with it | new settings | best: k-diffusion | our loop | times less |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cost in costs:
        cells = [cost.sampler, cost.noise, f"{cost.k_diffusion:.0f}"]
        if cost.ratios is None or cost.best is None:
            cells += [""] * 8
        else:
            loop, whole = cost.ratios
            cells += [f"{cost.loop:.1f}", f"{loop:.0f}", f"{cost.before:.1f}", f"{whole:.1f}"]
            cells.append(f"{cost.new_settings:.1f}")
            theirs, ours = cost.best
            cells += [f"{theirs:.0f}", f"{ours:.1f}", f"{theirs / ours:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(costs: list[Cost], path: Path) -> None:
    """Both sides as bars on one logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [cost for cost in costs if cost.ratios is not None][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(shown) + 1.2), layout="constrained")
    rows = range(len(shown))
    height = 0.38
    theirs = axes.barh(
        [row + height / 2 for row in rows],
        [cost.k_diffusion for cost in shown],
        height,
        label="k-diffusion",
        color="#b8b8b8",
    )
    ours = axes.barh(
        [row - height / 2 for row in rows],
        [cost.loop or 0.0 for cost in shown],
        height,
        label="kdrt, the loop",
        color="#2a6f97",
    )
    for bars in (theirs, ours):
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    axes.set_yticks(rows, [f"{c.sampler}  ({c.noise})" if c.noise else c.sampler for c in shown])
    axes.set_xscale("log")
    axes.set_xlim(1, max(cost.k_diffusion for cost in shown) * 3)
    axes.set_xlabel("host time a step without the network, µs (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
