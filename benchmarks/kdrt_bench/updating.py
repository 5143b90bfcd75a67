"""Measuring some experiments of a report again, and keeping the others."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from kdrt_bench.errors import BenchmarkError
from kdrt_bench.machine import MachineReport, describe
from kdrt_bench.report import ExperimentReport, Report, read_report
from kdrt_bench.suites import is_chosen
from kdrt_bench.writing import JSON


def report_to_update(folder: Path, suite: str, threads: int) -> Report:
    """The report in a folder, if what is measured now can stand beside it.

    Raises:
        BenchmarkError: there is none, or it is of another suite, number of threads, machine or
            version of a package.
    """
    try:
        before = read_report(folder / JSON)
    except (OSError, ValidationError) as error:
        raise BenchmarkError(
            f"{folder} holds no report to update; leave --update out to make one"
        ) from error
    now = _conditions(suite, threads, describe(before.machine.peak))
    then = _conditions(before.suite, before.threads, before.machine)
    for name, value in then.items():
        if now[name] != value:
            raise BenchmarkError(
                f"the report in {folder} was made with {name} {value}, and now it is {now[name]}: "
                "figures would not compare; leave --update out to measure all again"
            )
    return before


def _conditions(suite: str, threads: int, machine: MachineReport) -> dict[str, object]:
    """What may not differ between experiments of a report. kdrt may: every experiment says which
    commit it is of."""
    packages = {name: found for name, found in machine.versions.items() if name != "kdrt"}
    return {
        "suite": suite,
        "threads": threads,
        "processor": machine.processor,
        "cores": machine.cores,
        "GPUs": machine.gpus,
        "Python": machine.python,
        "packages": packages,
    }


def updated(
    before: Report, again: Report, keys: tuple[str, ...] | None, order: Sequence[str]
) -> Report:
    """The earlier report with some experiments replaced.

    Args:
        before: as it was.
        again: of the experiments that were measured again.
        keys: that were asked for; None is all.
        order: of the suite's experiments.
    """
    kept = [] if keys is None else [e for e in before.experiments if not is_chosen(e.key, keys)]
    places = {key: number for number, key in enumerate(order)}

    def place(each: ExperimentReport) -> int:
        return places.get(each.key, len(places))

    experiments = tuple(sorted([*kept, *again.experiments], key=place))
    used = {row.peer for each in experiments for row in each.rows}
    peers = {name: about for name, about in (before.peers | again.peers).items() if name in used}
    seconds = before.seconds + again.seconds
    return before.model_copy(
        update={"experiments": experiments, "peers": peers, "seconds": seconds}
    )


def keep_images(report: Report, folder: Path, partial: Path) -> None:
    """Copy the images of experiments that were not measured again.

    Args:
        report: the updated one.
        folder: of the earlier report.
        partial: of the new one.
    """
    for each in report.experiments:
        for row in each.rows:
            if row.image and not (partial / row.image).exists():
                (partial / row.image).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / row.image, partial / row.image)
