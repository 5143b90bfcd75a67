"""What was seen in a soak, for people: tables and a plot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from kdrt_bench.jobs import Strict
from kdrt_bench.plots import OURS, THEIRS
from kdrt_bench.service_report import machine
from kdrt_bench.soak.honest import NO_ANSWER, Answered
from kdrt_bench.soak.rude import HELD, HUNG_UP, LEFT, Rudeness
from kdrt_bench.soak.run import AT_CAPACITY, MOST_RUDE, Seen, Settings
from kdrt_bench.soak.verdict import Bounds, Facts, failures, growth
from kdrt_bench.statistics import Percentiles, percentiles
from kdrt_bench.words import duration

_ENDS = {LEFT: "left", HUNG_UP: "hung up on", HELD: "never let go"}


class DialectReport(Strict):
    """What became of the requests in a dialect.

    Attributes:
        dialect: of them.
        statuses: how many ended with each; 0 is no answer.
        latency: seconds of the accepted ones, from when they were due; None without any.
    """

    dialect: str
    statuses: dict[int, int]
    latency: Percentiles | None


class RudeReport(Strict):
    """What became of rude clients of a kind.

    Attributes:
        kind: what they did.
        ends: how many ended how: with a status, or in words.
        longest: seconds until the last of them was gone.
    """

    kind: str
    ends: dict[str, int]
    longest: float


class SoakReport(Strict):
    """All of it.

    Attributes:
        machine: what the figures depend on.
        serve: options of the server.
        settings, bounds: of the soak.
        offered: requests a second that came.
        left_out: those that were not sent, as too many were under way.
        dialects, rude: what became of the requests.
        facts: of the verdict.
        growth: MiB a minute that memory grew in the second half of the load.
        failures: what went wrong; nothing if it passed.
    """

    machine: dict[str, str]
    serve: str
    settings: Settings
    bounds: Bounds
    offered: float
    left_out: int
    dialects: tuple[DialectReport, ...]
    rude: tuple[RudeReport, ...]
    facts: Facts
    growth: float
    failures: tuple[str, ...]


def report_of(seen: Seen, settings: Settings, bounds: Bounds, serve: str) -> SoakReport:
    """Sum up what was seen, and judge it."""
    return SoakReport(
        machine=machine(),
        serve=serve,
        settings=settings,
        bounds=bounds,
        offered=seen.offered,
        left_out=seen.left_out,
        dialects=tuple(
            _dialect(name, [each for each in seen.answered if each.dialect == name])
            for name in sorted({each.dialect for each in seen.answered})
        ),
        rude=tuple(
            _rude(kind, [each for each in seen.rude if each.kind == kind])
            for kind in seen.facts.rude
        ),
        facts=seen.facts,
        growth=growth(seen.facts.samples),
        failures=tuple(failures(seen.facts, bounds)),
    )


def _dialect(name: str, answered: Sequence[Answered]) -> DialectReport:
    statuses = sorted({each.status for each in answered})
    latencies = [each.latency for each in answered if each.status == 200]
    return DialectReport(
        dialect=name,
        statuses={status: sum(each.status == status for each in answered) for status in statuses},
        latency=percentiles(latencies) if latencies else None,
    )


def _rude(kind: str, seen: Sequence[Rudeness]) -> RudeReport:
    ends = [_ENDS.get(each.status, str(each.status)) for each in seen]
    return RudeReport(
        kind=kind,
        ends={end: ends.count(end) for end in sorted(set(ends))},
        longest=max(each.seconds for each in seen),
    )


def markdown(report: SoakReport) -> str:
    """The verdict, and tables of what it is made of."""
    facts, settings = report.facts, report.settings
    about = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    rude = f", and up to {MOST_RUDE} rude ones at a time" if settings.is_rude else ""
    passed = "**Passed**: nothing was lost, nothing leaked."
    verdict = "\n".join(["**Failed**:", "", *(f"- {each}" for each in report.failures)])
    parts = [
        "# A server under too much load",
        f"{about}. `kdrt serve … {report.serve}`, {settings.seconds / 60:g} minutes, "
        f"honest clients{rude}. "
        "Written by `benchmarks/soak.py`.",
        verdict if report.failures else passed,
        f"With {AT_CAPACITY} clients that take turns it makes {facts.capacity:.0f} steps of images "
        f"a second. It made {facts.throughput:.0f} while {report.offered:.2f} requests a second "
        f"came, which is {settings.load:g} times what it can do. Not sent, as too many were "
        f"under way: {report.left_out}.",
        _answers(report.dialects),
        _left(report),
    ]
    if report.rude:
        parts.append(_rudeness(report.rude))
    return "\n\n".join(parts)


def _answers(dialects: Sequence[DialectReport]) -> str:
    statuses = sorted({status for each in dialects for status in each.statuses})
    heads = ["none" if status == NO_ANSWER else str(status) for status in statuses]
    lines = [
        f"| requests | {' | '.join(heads)} | accepted, p50 | p90 | p99 |",
        f"|---|{'---:|' * (len(heads) + 3)}",
    ]
    for each in dialects:
        counts = [str(each.statuses.get(status, 0)) for status in statuses]
        latency = each.latency
        times = (latency.p50, latency.p90, latency.p99) if latency else (None, None, None)
        cells = [each.dialect, *counts, *map(duration, times)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _left(report: SoakReport) -> str:
    before, after = report.facts.before, report.facts.after
    rows = [
        ("memory, MiB", f"{before.memory:.0f}", f"{after.memory:.0f}"),
        ("threads", str(before.threads), str(after.threads)),
        ("open files", str(before.files), str(after.files)),
        ("images that wait", str(before.waiting), str(after.waiting)),
        ("images that run", str(before.running), str(after.running)),
    ]
    return "\n".join(
        [
            "| when nothing is asked for | before | after |",
            "|---|---:|---:|",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            f"In the second half memory grew by {report.growth:.2f} MiB a minute "
            f"(at most {report.bounds.growth:g}). Images made afterwards are "
            f"{'the same' if report.facts.is_same else 'not the same'} as before, bit for bit. "
            f"Tracebacks in the log: {report.facts.tracebacks}.",
        ]
    )


def _rudeness(rude: Sequence[RudeReport]) -> str:
    lines = ["| clients | how it ended | the longest |", "|---|---|---:|"]
    for each in rude:
        ends = ", ".join(f"{end}: {count}" for end, count in each.ends.items())
        lines.append(f"| {each.kind} | {ends} | {duration(each.longest)} |")
    return "\n".join(lines)


def plot(report: SoakReport) -> str:
    """Memory, threads and open files, and images over the time of the load, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    # Its settings are the process's: other drawings must not take on ours.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdrt", "font.size": 9}):
        figure = Figure(figsize=(7.6, 5.2), layout="constrained")
        _draw(figure, report)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _draw(figure: Any, report: SoakReport) -> None:
    samples = report.facts.samples
    minutes = [each.seconds / 60 for each in samples]
    memory, counts, images = figure.subplots(3, 1, sharex=True)
    memory.plot(minutes, [each.memory for each in samples], color=OURS)
    memory.set_ylabel("MiB resident")
    counts.plot(minutes, [each.threads for each in samples], color=OURS, label="threads")
    counts.plot(minutes, [each.files for each in samples], color=THEIRS, label="open files")
    images.plot(minutes, [each.waiting for each in samples], color=THEIRS, label="images waiting")
    images.plot(minutes, [each.running for each in samples], color=OURS, label="running")
    images.set_xlabel("minutes")
    for axes in (memory, counts, images):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # with room for the legend
    for axes in (counts, images):
        axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
