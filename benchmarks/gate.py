"""Is one commit slower than another? A gate by ratio, not by time.

    python benchmarks/gate.py BASE HEAD [--limit 1.05] [--rounds N] [--bundle NAME]

Checks both commits out into temporary worktrees and runs kdrt from each, with this interpreter and
its packages, on the same bundle: two processes that take turns, A B A B, on an image and on a step
of the UNet. A machine that is busy or slow slows both. The gate closes (exit code 1) where the
lower end of the interval of a ratio HEAD/BASE lies above ``--limit``: where it can be told from
noise that HEAD is slower than that. Exit code 2 where a commit cannot be run.

Prints a table on standard error; the last line of standard output is one JSON document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from kdrt.backends.doctor import examine
from kdrt.bundle import open_bundle
from kdrt.errors import KdrtError
from kdrt_bench.conductor import Outcome, Worker, compare
from kdrt_bench.jobs import BenchJob, Forward, ImageWorkload, Workload
from kdrt_bench.models import model_of
from kdrt_bench.statistics import Ratio, paired_ratio, percentiles

ROOT = Path(__file__).resolve().parent.parent
ROOTS = ("", "export", "engines", "benchmarks")
"""Where packages are imported from in a checkout."""


def environment_of(checkout: Path) -> dict[str, str]:
    """This process's, but with kdrt from a checkout."""
    paths = os.pathsep.join(str(checkout / root) for root in ROOTS)
    return {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A commit in a worktree of its own, removed afterwards."""
    git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        typer.echo(f"error: git {arguments[0]}: {done.stderr.strip()}", err=True)
        raise typer.Exit(2)
    return done.stdout.strip()


def workloads_of(bundle: str) -> dict[str, Workload]:
    """What is compared, by name."""
    manifest = open_bundle(bundle).manifest
    facts = manifest.latents
    sizes = {"h": facts.default_height // facts.scale, "w": facts.default_width // facts.scale}
    dims = {"B": 2, "L": manifest.text_encoders[0].max_length, **sizes}
    return {"image": ImageWorkload(), "step of the UNet": Forward(component="unet", dims=dims)}


def judge(samples: dict[str, tuple[list[float], list[float]]], limit: float) -> dict[str, Any]:
    """What the samples of (base, head) say, by workload."""
    rows: dict[str, Any] = {}
    for name, (base, head) in samples.items():
        ratio = paired_ratio(head, base)
        rows[name] = {
            "base": percentiles(base).model_dump(),
            "head": percentiles(head).model_dump(),
            "ratio": ratio.model_dump(),
            "slower": is_slower(ratio, limit),
        }
    return {"limit": limit, "passed": not any(r["slower"] for r in rows.values()), "rows": rows}


def is_slower(ratio: Ratio, limit: float) -> bool:
    """Whether the whole interval lies above the limit. With too few rounds for an interval nothing
    can be told, and nothing is held against anyone."""
    return ratio.low is not None and ratio.low > limit


def samples_of(outcome: Outcome, names: list[str]) -> dict[str, tuple[list[float], list[float]]]:
    base, head = outcome.measured["base"], outcome.measured["head"]
    return {
        name: ([t.seconds for t in base.timings[i]], [t.seconds for t in head.timings[i]])
        for i, name in enumerate(names)
    }


def print_table(verdict: dict[str, Any]) -> None:
    for name, row in verdict["rows"].items():
        ratio = row["ratio"]
        interval = (
            f"{ratio['low']:.3f} to {ratio['high']:.3f}" if ratio["low"] else "too few rounds"
        )
        typer.echo(
            f"{name:<18} base {row['base']['p50'] * 1000:8.1f} ms   head "
            f"{row['head']['p50'] * 1000:8.1f} ms   head/base {ratio['median']:.3f} ({interval})"
            f"   {'SLOWER' if row['slower'] else 'ok'}",
            err=True,
        )


def main(
    base: Annotated[str, typer.Argument(help="Commit to compare with.")],
    head: Annotated[str, typer.Argument(help="Commit that is judged.")] = "HEAD",
    limit: Annotated[float, typer.Option(min=0.5, help="Ratio that is allowed.")] = 1.05,
    rounds: Annotated[int, typer.Option(min=6, help="Of each; fewer give no interval.")] = 25,
    bundle: Annotated[str, typer.Option(help="Name or folder.")] = "demo",
    threads: Annotated[int | None, typer.Option(min=1)] = None,
) -> None:
    """Compare two commits."""
    commits = {"base": git("rev-parse", base), "head": git("rev-parse", head)}
    try:
        model, workloads = model_of(bundle), workloads_of(bundle)
    except KdrtError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    with tempfile.TemporaryDirectory(prefix="kdrt-gate-") as scratch:
        folder = Path(scratch)
        with (
            checked_out(commits["base"], folder / "base") as a,
            checked_out(commits["head"], folder / "head") as b,
        ):
            places = {"base": a, "head": b}
            jobs = {
                name: BenchJob(
                    peer="kdrt",
                    model=model,
                    workloads=tuple(workloads.values()),
                    threads=threads or examine().cores,
                    folder=folder / "outputs" / name,
                )
                for name in places
            }
            # The job says which of both a worker is for.
            outcome = compare(
                jobs,
                rounds,
                start=lambda job: Worker(job, variables=environment_of(places[job.folder.name])),
            )
    for name, sentence in outcome.failed.items():
        typer.echo(f"error: {name} ({commits[name][:10]}) cannot be run: {sentence}", err=True)
    if outcome.failed:
        raise typer.Exit(2)
    verdict = {**commits, **judge(samples_of(outcome, list(workloads)), limit)}
    print_table(verdict)
    print(json.dumps(verdict))
    if not verdict["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
