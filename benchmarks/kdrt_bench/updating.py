"""Measuring some experiments of a report again, and keeping the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdrt_bench.errors import BenchmarkError
from kdrt_bench.experiment import Experiment
from kdrt_bench.machine import MachineReport, describe
from kdrt_bench.report import ExperimentReport, Report, read_report
from kdrt_bench.suites import is_chosen
from kdrt_bench.writing import JSON

_AGAIN = "leave --update out to measure all again"


def report_to_update(folder: Path, suite: str, threads: int) -> Report:
    """The report in a folder, if new figures are comparable with it.

    Raises:
        BenchmarkError: there is none, an image of it is missing, or it was made with another suite,
            number of threads, machine or version of a package.
    """
    try:
        before = read_report(folder / JSON)
    except (OSError, ValueError) as error:
        raise BenchmarkError(
            f"{folder} holds no report to update; leave --update out to make one"
        ) from error
    now = _conditions(suite, threads, describe(before.machine.peak))
    then = _conditions(before.suite, before.threads, before.machine)
    for name in sorted(then | now):
        if now.get(name) != then.get(name):
            raise BenchmarkError(
                f"the report in {folder} was made with {name} {then.get(name, 'not installed')}, "
                f"and now it is {now.get(name, 'not installed')}: figures would not be comparable; "
                f"{_AGAIN}"
            )
    for image in _images(before):
        if not (folder / image).is_file():
            raise BenchmarkError(f"the report in {folder} lacks its {image}; {_AGAIN}")
    return before


def _conditions(suite: str, threads: int, machine: MachineReport) -> dict[str, object]:
    """What all experiments of a report have in common. kdrt is left out: every experiment records
    its version and commit."""
    packages = {name: found for name, found in machine.versions.items() if name != "kdrt"}
    # Its clock changes from minute to minute.
    gpus = [{name: gpu[name] for name in gpu if name != "SM clock"} for gpu in machine.gpus]
    return {
        "suite": suite,
        "threads": threads,
        "processor": machine.processor,
        "cores": machine.cores,
        "GPUs": gpus,
        "driver": machine.driver,
        "Python": machine.python,
        **packages,
    }


def check_same_work(before: Report, plans: Iterable[Experiment], folder: Path) -> None:
    """Whether experiments would be measured as they were.

    Raises:
        BenchmarkError: with another model, other workloads or other rows.
    """
    known = {each.key: each for each in before.experiments}
    for plan in plans:
        earlier = known.get(plan.key)
        if earlier is None:
            continue
        workloads = [each.model_dump(mode="json") for each in plan.workloads]
        # How often a server's requests arrive follows from the anchor's time.
        measured = [each.get("generation", each) for each in earlier.workloads]
        same_rows = {row.label for row in plan.rows} == {row.label for row in earlier.rows}
        if (plan.model.name, workloads) != (earlier.model, measured) or not same_rows:
            raise BenchmarkError(
                f"'{plan.key}' of the report in {folder} has another model, other sizes or other "
                "peers; give the same --bundle, --real, --side, --steps, --guidance and --vs, or "
                f"{_AGAIN}"
            )


def updated(before: Report, again: Report, keys: tuple[str, ...], order: Sequence[str]) -> Report:
    """The earlier report with some experiments replaced.

    Args:
        before: as it was.
        again: the experiments that were measured again.
        keys: given with ``--only``.
        order: keys of the suite's experiments.
    """
    kept = [each for each in before.experiments if not is_chosen(each.key, keys)]
    new = [each.model_copy(update={"again": True}) for each in again.experiments]
    places = {key: number for number, key in enumerate(order)}

    def place(each: ExperimentReport) -> int:
        return places.get(each.key, len(places))

    experiments = tuple(sorted([*kept, *new], key=place))
    used = {row.peer for each in experiments for row in each.rows}
    peers = {name: about for name, about in (before.peers | again.peers).items() if name in used}
    seconds = before.seconds + again.seconds
    return before.model_copy(
        update={"experiments": experiments, "peers": peers, "seconds": seconds}
    )


def keep_images(before: Report, folder: Path, partial: Path) -> None:
    """Copy the images of an earlier report, unless there are new ones of the same name.

    Args:
        before: the earlier report.
        folder: where it is.
        partial: where the new one will be.
    """
    for image in _images(before):
        if not (partial / image).exists():
            (partial / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / image, partial / image)


def _images(report: Report) -> list[str]:
    return [row.image for each in report.experiments for row in each.rows if row.image]
