"""What does in-flight batching gain when requests come at random?

    python benchmarks/in_flight.py [--full] [-o benchmarks/results] [--minutes N] ...

Poisson arrivals at 30 to 110 % of what the machine can do one request at a time; requests of 4 to
50 steps, of several samplers, with guidance and without. The same traces are served

- *one at a time*, first come, first served, by calls of a pipeline;
- in *static batches* of requests that are equal but for prompt and seed, of at most 8 rows, for
  which a request waits a quarter of the mean work at most while the server is idle;
- *in flight*, by `kdrt.Batcher`; also with other limits, and with finished images decoded in a
  thread of its own.

What each kind of request takes alone is measured first, and the loads follow from it. Every round
has its own traces, each served in all ways, one after the other, before the next. Latency counts
from when a request was due, however late the server heard of it. Beside that: what a lone request
costs through a batcher, paired with the pipeline round by round, and where the time of a tick goes.

``--full`` is the demo model and a mid-size one with random weights, in 12 minutes with their
exports; without it, the demo model in 2. Longer runs have longer traces: ``--minutes``.

Prints tables, then one line of JSON; ``-o`` also writes ``in_flight.md``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

import kdrt
from kdrt_bench.arrivals import LOADS
from kdrt_bench.mid_size import export_mid_size
from kdrt_bench.service_report import InFlightReport, draw, machine, markdown
from kdrt_bench.service_study import ModelReport, study

_SHARES = {"demo": 0.4, "mid-size": 0.6}
"""Of the time that is left, by model: requests of the second take longer."""


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FOLDER")] = None,
    full: Annotated[bool, typer.Option(help="The mid-size model too.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="How long it may take: 12 if full, else 2.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Traces of every load.")] = 2,
    loads: Annotated[str, typer.Option(help="Some of the loads, with commas.")] = ",".join(
        map(str, LOADS)
    ),
) -> None:
    """Measure in-flight batching under load."""
    deadline = time.monotonic() + 60 * (minutes or (12 if full else 2))
    names = list(_SHARES) if full else ["demo"]
    asked = [float(load) for load in loads.split(",")]
    models: list[ModelReport] = []
    with tempfile.TemporaryDirectory() as folder:
        bundles = {}
        for name in names:
            _say(f"export {name}")
            bundles[name] = _export(name, Path(folder))
        for place, name in enumerate(names):
            share = _SHARES[name] / sum(_SHARES[later] for later in names[place:])
            seconds = (deadline - time.monotonic()) * share
            with kdrt.load(bundles[name]) as pipe:
                models.append(
                    study(
                        pipe,
                        name,
                        seconds=seconds,
                        rounds=rounds,
                        loads=asked,
                        watch=lambda what, name=name: _say(f"{name}: {what}"),  # type: ignore[misc]
                    )
                )
            # After every model: a run that is broken off keeps what it has.
            report = InFlightReport(machine=machine(), models=tuple(models))
            if output is not None:
                _write(report, output)
    print(markdown(report))
    print(report.model_dump_json())


def _write(report: InFlightReport, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "in_flight.md").write_text(markdown(report) + "\n", encoding="utf-8")
    text = report.model_dump_json(indent=1) + "\n"
    (folder / "in_flight.json").write_text(text, encoding="utf-8")
    draw(report, folder / "in_flight.png")


def _export(name: str, folder: Path) -> Path:
    if name == "mid-size":
        return export_mid_size(folder)
    from kdrt_export.stage import export

    return export("demo", folder / "demo")


def _say(what: str) -> None:
    typer.echo(f"{time.strftime('%H:%M:%S')} {what}", err=True)


if __name__ == "__main__":
    typer.run(main)
