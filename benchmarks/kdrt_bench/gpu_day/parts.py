"""Which parts there are, by importance, and how long they may take; and what one of them does.

Nothing heavy is imported before a part runs: the process that starts the parts needs no CUDA.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from functools import partial

from kdrt_bench.gpu_day.conductor import Part
from kdrt_bench.gpu_day.rows import Figures, Row, RowFile
from kdrt_bench.gpu_day.setting import (
    PACKAGES,
    REHEARSED_ENGINE,
    Measurement,
    Measurements,
    Setting,
    installed,
)


def parts(setting: Setting) -> list[Part]:
    """All parts, the most important first. Seconds are guesses, until a GPU has run them."""
    engines = [REHEARSED_ENGINE] if setting.dry_run else []
    compiling = {"inductor": 150}
    listed = [
        Part("machine", 15),
        Part("levels", 45),
        Part("sd15", 80),
        Part("sdxl", 150),
        Part("in-flight", 60),
        Part("acceptance", 120),
        Part("features", 30),
        Part("control", 120),
        *(Part(f"engine-{each}", 60) for each in engines),
        *(
            Part(f"engine-{each}", compiling.get(each, 60) if installed(each) else 2)
            for each in PACKAGES
        ),
    ]
    if setting.dry_run:
        return [Part(each.name, min(each.seconds, 20)) for each in listed]
    return listed


def run_part(name: str, setting: Setting) -> None:
    """Make the rows of a part. One that raises is a row that says why.

    Raises:
        Exception: the part could not begin or go on; rows before that are kept.
    """
    rows = RowFile(setting.folder)
    with contextlib.ExitStack() as stack:
        if setting.dry_run and needs_cuda(name):
            from kdrt_bench.gpu_day.rehearsal import rehearsed

            stack.enter_context(rehearsed())
        add_rows(name, measurements(name)(setting), rows)


def add_rows(part: str, made: Iterator[Measurement], rows: RowFile) -> None:
    """Add the rows of a part to a file, each when it is made; one that raises says why."""
    for name, work in made:
        try:
            row = Row(part, name, work())
        except Exception as error:
            traceback.print_exc()
            row = Row(part, name, failed=f"did not run: {first_line(error)}")
        rows.add(row)


def _missing(engine: str) -> Figures:
    raise LookupError(f"{engine} is not installed")


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def needs_cuda(part: str) -> bool:
    """Whether a part calls CUDA in its own process, and needs stand-ins on a CPU."""
    return part not in ("machine", "acceptance")


def measurements(part: str) -> Measurements:
    """What makes the rows of a part.

    Raises:
        KeyError: there is no such part.
    """
    if part.startswith("engine-"):
        engine = part.removeprefix("engine-")
        if not installed(engine):
            return lambda _: iter([("all", partial(_missing, engine))])
        from kdrt_bench.gpu_day import engines, inductor

        return inductor.measurements if engine == "inductor" else engines.of(engine)
    if part in ("machine", "acceptance"):
        from kdrt_bench.gpu_day import acceptance

        return {"machine": acceptance.machine, "acceptance": acceptance.tests}[part]
    if part in ("levels", "features"):
        from kdrt_bench.gpu_day import levels

        return {"levels": levels.levels, "features": levels.features}[part]
    from kdrt_bench.gpu_day import control, sizes

    if part == "control":
        return control.measurements
    return {"sd15": sizes.sd15, "sdxl": sizes.sdxl, "in-flight": sizes.in_flight}[part]
