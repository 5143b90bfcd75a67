"""Cold starts: a new process for every one, from starting Python to the first image."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from kdrt_bench.conductor import environment
from kdrt_bench.errors import BenchmarkError
from kdrt_bench.experiment import Experiment, RowPlan
from kdrt_bench.figures import why
from kdrt_bench.peers import info_of
from kdrt_bench.report import Row
from kdrt_bench.statistics import paired_ratio, percentiles

_PATIENCE = 300.0


def cold_starts(
    plan: Experiment, unavailable: Mapping[str, BenchmarkError], watch: Callable[[str], None]
) -> tuple[Row, ...]:
    """The rows of an experiment, in turns. One round is thrown away: it fills the page cache, and
    Python keeps the bytecode of what it imports.

    Args:
        plan: its rows are names of :mod:`kdrt_bench.startup`.
        unavailable: rows that cannot run, and why.
        watch: told what is going on.
    """
    marks: dict[str, list[dict[str, float]]] = {row.label: [] for row in plan.rows}
    failed = dict(unavailable)
    for turn in range(-1, plan.rounds):
        for row in plan.rows:
            if row.label in failed:
                continue
            watch(f"{plan.key}: {row.label}: run {turn + 1} of {plan.rounds}")
            try:
                seconds = started_up(plan, row)
            except BenchmarkError as error:
                failed[row.label] = error
                continue
            if turn >= 0:
                marks[row.label].append(seconds)
    return tuple(_row(plan, row, marks, failed) for row in plan.rows)


def started_up(plan: Experiment, row: RowPlan) -> dict[str, float]:
    """Seconds by stage of one cold start; see :mod:`kdrt_bench.startup`."""
    command = [sys.executable, "-m", "kdrt_bench.startup", row.peer, str(plan.model.bundle)]
    # Or a checkout would be compiled at every start, and installed packages would not.
    variables = environment()
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*command, plan.model.source, repr(begun)],
            capture_output=True,
            text=True,
            check=True,
            timeout=_PATIENCE,
            env=variables,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError("no image after 300 seconds") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BenchmarkError(f"it ended with exit code {error.returncode}: {last}") from None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _row(
    plan: Experiment,
    row: RowPlan,
    marks: Mapping[str, Sequence[dict[str, float]]],
    failed: Mapping[str, BenchmarkError],
) -> Row:
    bare = Row(label=row.label, peer=row.peer, title=info_of(row.peer).title)
    if row.label in failed:
        return bare.model_copy(update=why(failed[row.label]))
    own = marks[row.label]
    samples, anchor = _totals(own), _totals(marks[plan.anchor])
    compared = row.label != plan.anchor and plan.anchor not in failed
    return bare.model_copy(
        update={
            "samples": samples,
            "seconds": percentiles(samples),
            "stages": {s: statistics.median(m[s] for m in own) for s in own[0]},
            "speedup": paired_ratio(anchor, samples) if compared else None,
        }
    )


def _totals(marks: Sequence[dict[str, float]]) -> tuple[float, ...]:
    return tuple(sum(each.values()) for each in marks)
