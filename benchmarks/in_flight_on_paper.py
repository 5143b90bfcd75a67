"""What does a service gain from in-flight batching? On paper, with published times of real cards.

    python benchmarks/in_flight_on_paper.py [-o FOLDER] [--requests N] [--seed N]

Simulates one card that serves random requests (`kdrt_bench.arrivals`) in several ways
(`kdrt_bench.service_simulation`). The times of UNet runs are published ones; runs of other numbers
of rows follow the straight line through the nearest two. Guided images take two rows. Each card
says which of its times are published, and where.

Not measured, and not kdrt's own speed: only how the ways compare, given those times.

Prints a summary; ``-o`` writes it with all rows, as Markdown, JSON and a plot, into a folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from kdrt_bench.arrivals import LOADS, MIX, Service, mean_of_mix, poisson_arrivals, service
from kdrt_bench.plots import LOSSY, OURS, THEIRS
from kdrt_bench.service_simulation import (
    ROWS,
    SLOTS,
    Cost,
    Serve,
    in_flight,
    one_at_a_time,
    static_batches,
)

SDXL_TENSORRT = "https://huggingface.co/stabilityai/stable-diffusion-xl-1.0-tensorrt"
SDXL_TURBO_TENSORRT = "https://huggingface.co/stabilityai/sdxl-turbo-tensorrt"
DIFFUSERS = (
    "https://github.com/huggingface/diffusers/blob/2c529b75bbd25e4c69348bbabd0a1a842d540193"
    "/docs/source/en/optimization/torch2.0.md"
)
BUCKETS = (1, 2, 4, 8)
WAIT = 0.25
"""Of the mean work of a request: how long a request waits for its like."""

ALONE, STATIC, STATIC_WAITS = "one at a time", "static batches", "static batches, bounded wait"
IN_FLIGHT, FEW_ROWS, IN_BUCKETS = "in flight", "in flight, 4 rows", "in flight, in buckets"
WAYS = (ALONE, STATIC, STATIC_WAITS, IN_FLIGHT, FEW_ROWS, IN_BUCKETS)


@dataclass(frozen=True)
class Card:
    """A card and the published times of a model on it.

    Attributes:
        name: card, model, size, software.
        cost: seconds.
        published: which numbers they follow from, as their source gives them.
        extrapolated: what is not published.
        sources: addresses.
    """

    name: str
    cost: Cost
    published: str
    extrapolated: str
    sources: tuple[str, ...]


def sdxl(name: str, whole: float, four_unguided: float, clip: float, vae: float) -> Card:
    """A card of Stability AI's SDXL page, in milliseconds as it gives them: 30 guided steps with
    all that belongs to an image, and the stages of four unguided steps."""
    guided = (whole - clip - vae) / 30
    return Card(
        f"{name}, SDXL 1024², TensorRT",
        Cost(((1, four_unguided / 4e3), (2, guided / 1e3)), vae / 1e3),
        f"30 steps {whole:g} ms in all; LCM, 4 steps: UNet {four_unguided:g}, CLIP {clip:g}, "
        f"VAE {vae:g} ms. So 1 row {four_unguided / 4:.1f} ms, 2 rows {guided:.1f} ms",
        "all runs of more than 2 rows",
        (SDXL_TENSORRT,),
    )


A100_STEPS = 49.74
A100_VAE = 53.69


def sd15(name: str, one: float, four: float, sixteen: float) -> Card:
    """A card of diffusers' page on PyTorch 2.0 (text to image, nightly, compiled), in steps a
    second at batch sizes 1, 4 and 16, with guidance: 2, 8 and 32 rows."""
    decode = A100_VAE / 1e3 * A100_STEPS / one
    is_a100 = one == A100_STEPS
    scaled = "" if is_a100 else f", decoding (A100's {A100_VAE} ms, slower as its guided step is)"
    return Card(
        f"{name}, SD 1.5 512², torch.compile",
        Cost(((2, 1 / one), (8, 1 / four), (32, 1 / sixteen)), decode),
        f"{one:g}, {four:g} and {sixteen:.3g} steps/s at batches of 1, 4 and 16"
        + (f"; VAE {A100_VAE} ms (SDXL Turbo at 512², the same decoder)" if is_a100 else ""),
        f"runs of 1 row, and those between 2, 8 and 32 rows{scaled}",
        (DIFFUSERS, SDXL_TURBO_TENSORRT),
    )


CARDS = (
    sdxl("H100", 1471, 102.8, 0.78, 126.95),
    sdxl("A100", 2742, 192.02, 1.08, 228.34),
    sd15("A100", A100_STEPS, 17.27, 4.68),
    sd15("RTX 4090", 49.81, 15.59, 3.85),
    sd15("RTX 3090", 25.69, 7.3, 1.91),
    sd15("T4", 7.56, 1.99, 1 / 1.99),
)


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER")] = None,
    requests: int = 4000,
    seed: int = 0,
) -> None:
    """Simulate a service on published step times."""
    results = [simulate(card, requests, seed) for card in CARDS]
    report = {
        "requests": requests,
        "seed": seed,
        "mix": [
            {"steps": k.steps, "sampler": k.sampler, "guided": k.guided, "share": k.share}
            for k in MIX
        ],
        "rows": ROWS,
        "slots": SLOTS,
        "buckets": BUCKETS,
        "wait": WAIT,
        "cards": results,
    }
    print(summary(results))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "in_flight_paper.md").write_text(markdown(report), encoding="utf-8")
        (output / "in_flight_paper.json").write_text(json.dumps(report) + "\n")
        draw(results, output / "in_flight_paper.png")


def simulate(card: Card, requests: int, seed: int) -> dict[str, Any]:
    """All loads in all ways, and what each way does in a second if there is always work."""
    mean = mean_of_mix({kind: card.cost.alone(kind) for kind in MIX})
    most = poisson_arrivals(1e6, requests, seed)
    return {
        "name": card.name,
        "published": card.published,
        "extrapolated": card.extrapolated,
        "sources": card.sources,
        "steps": card.cost.steps,
        "decode": card.cost.decode,
        "mean_work": mean,
        "most": {
            way: service(serve(most, cost)).images_per_second
            for way, (serve, cost) in ways(card.cost, mean).items()
        },
        "rows": [
            {
                "load": load,
                "way": way,
                **service(serve(poisson_arrivals(load / mean, requests, seed), cost)).model_dump(),
            }
            for load, (way, (serve, cost)) in product(LOADS, ways(card.cost, mean).items())
        ],
    }


def ways(cost: Cost, mean: float) -> Mapping[str, tuple[Serve, Cost]]:
    """The ways to serve, each with what it pays."""
    return {
        ALONE: (one_at_a_time, cost),
        STATIC: (static_batches(0.0), cost),
        STATIC_WAITS: (static_batches(WAIT * mean), cost),
        IN_FLIGHT: (in_flight(), cost),
        FEW_ROWS: (in_flight(rows=4), cost),
        IN_BUCKETS: (in_flight(), replace(cost, buckets=BUCKETS)),
    }


def row(result: Mapping[str, Any], load: float, way: str) -> Service:
    """One of the simulated rows."""
    found = next(r for r in result["rows"] if r["load"] == load and r["way"] == way)
    return Service.model_validate({k: v for k, v in found.items() if k not in ("load", "way")})


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """Latencies of in-flight batching over those of one request at a time, slowdowns of both and
    of static batches, and what a card makes in a second if there is always work."""
    lines = [
        "| card | load | p50 | p90 | p99 | slowdown p99: one at a time | static | in flight |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result, load in product(results, LOADS):
        alone, static, ours = (row(result, load, way) for way in (ALONE, STATIC, IN_FLIGHT))
        ratios = [
            f"{getattr(ours.latency, name) / getattr(alone.latency, name):.2f}"
            for name in ("p50", "p90", "p99")
        ]
        slowdowns = [f"{one.slowdown.p99:.1f}" for one in (alone, static, ours)]
        cells = [result["name"], f"{load:.0%}", *ratios, *slowdowns]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"| most images a second | {' | '.join(WAYS)} |",
        "|---|" + "---:|" * len(WAYS),
    ]
    for result in results:
        most = [f"{result['most'][way]:.2f}" for way in WAYS]
        lines.append(f"| {result['name']} | {' | '.join(most)} |")
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    mix = ", ".join(
        f"{k['share']:.0%} {k['steps']} steps {k['sampler']}{'' if k['guided'] else ' unguided'}"
        for k in report["mix"]
    )
    lines = [
        "# In-flight batching on paper",
        "",
        f"Simulated: {report['requests']} requests a row, the first tenth left out of latencies; "
        f"Poisson arrivals, in percent of what one request at a time can do. The mix: {mix}.",
        "",
        f"Static batches hold equal requests (steps, sampler, guidance), up to {report['rows']} "
        f"rows; with a bounded wait of {report['wait']:g} of the mean work, or none. In flight: "
        f"{report['rows']} rows, {report['slots']} images, every number of rows at its own time; "
        f"*4 rows*: at most four; *in buckets*: runs are rounded up to "
        f"{', '.join(map(str, report['buckets']))} rows. Decoding overlaps nothing. Slowdown: "
        "latency over the work of the request alone; *short* are the requests of 4 steps. Above "
        "100 % the figures of a way that cannot keep up depend on how long one watches.",
        "",
        "The latencies of in flight over those of one at a time, and how unfair each way is; then "
        "the images that a card makes if there is always work:",
        "",
        summary(report["cards"]),
        "",
        "## Step times",
        "",
        "| card | published | extrapolated | source |",
        "|---|---|---|---|",
    ]
    for card in report["cards"]:
        links = ", ".join(f"[{n + 1}]({url})" for n, url in enumerate(card["sources"]))
        lines.append(f"| {card['name']} | {card['published']} | {card['extrapolated']} | {links} |")
    for card in report["cards"]:
        lines += [
            "",
            f"## {card['name']}",
            "",
            f"Mean work of a request: {card['mean_work']:.3f} s.",
            "",
            "| load | way | p50 s | p90 s | p99 s | slowdown p50 | p99 | short p50 | p99 | "
            "images/s |",
            "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for load, way in product(LOADS, WAYS):
            it = row(card, load, way)
            figures = [it.latency.p50, it.latency.p90, it.latency.p99]
            slow = [it.slowdown.p50, it.slowdown.p99]
            slow += [it.slowdown_of_short.p50, it.slowdown_of_short.p99]
            cells = [f"{load:.0%}", way, *(f"{f:.2f}" for f in figures)]
            cells += [*(f"{s:.1f}" for s in slow), f"{it.images_per_second:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column a card: latencies and slowdowns over the load, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    styles = {
        ALONE: (THEIRS, "o", "-"),
        STATIC: (LOSSY, "s", "-"),
        IN_FLIGHT: (OURS, "o", "-"),
        FEW_ROWS: (OURS, "x", "--"),
    }
    figure, grid = pyplot.subplots(
        3, len(results), figsize=(2.9 * len(results), 8), sharex=True, layout="constrained"
    )
    loads = [100 * load for load in LOADS]
    for column, result in enumerate(results):
        for way, (colour, marker, line) in styles.items():
            rows = [row(result, load, way) for load in LOADS]
            curves = (
                [one.latency.p50 for one in rows],
                [one.latency.p99 for one in rows],
                [one.slowdown.p99 for one in rows],
            )
            for axes, curve in zip(grid[:, column], curves, strict=True):
                axes.plot(loads, curve, color=colour, marker=marker, linestyle=line, label=way)
        grid[0, column].set_title(result["name"].replace(", ", "\n"), fontsize=9)
        grid[2, column].set_xlabel("load, %")
        for axes in grid[:, column]:
            axes.set_yscale("log")
            axes.spines[["top", "right"]].set_visible(False)
    for axes, label in zip(
        grid[:, 0], ("median latency, s", "p99 latency, s", "p99 slowdown"), strict=True
    ):
        axes.set_ylabel(label)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    typer.run(main)
