"""What this machine's GPU does, within some minutes: one command for the day a GPU comes.

    python benchmarks/gpu.py [BUNDLE] --minutes 8 -o FOLDER
    python benchmarks/gpu.py --dry-run -o FOLDER

By importance: captured graphs beside the CPU (errors, launches, waits, allocations); Stable
Diffusion 1.5 and XL with random weights in float16, beside eager and compiled PyTorch; images in
flight; ``pytest -m gpu``; perturbed attention, hires and a ControlNet; a ControlNet of XL's size
beside diffusers' pipeline; code that Inductor compiled ahead; other engines that are installed, on
``BUNDLE``, the demo by default. In 8 minutes the last of these may be left out for want of time.

Every row is in ``FOLDER/rows.jsonl`` as soon as it is made, and in ``FOLDER/rows.md`` at the end;
``FOLDER/PART.log`` has what a part said. A part only starts if it is likely to fit into what is
left of the time, and is ended if it hangs. What is missing or goes wrong is a row too. Nothing is
downloaded. ``--dry-run`` rehearses all of it on a CPU, on the demo, with stand-ins for CUDA's
events and graphs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import traceback
from functools import partial
from pathlib import Path

from kdrt_bench.gpu_day.conductor import Part, run_parts, run_process
from kdrt_bench.gpu_day.parts import first_line, parts, run_part
from kdrt_bench.gpu_day.rows import PAGE, ROWS, RowFile, page
from kdrt_bench.gpu_day.setting import Setting


def main(words: list[str] | None = None) -> None:
    """Measure, or be the process of one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", nargs="?", default="demo", help="that other engines run")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (8)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    asked = parser.parse_args(words)
    setting = Setting(asked.output.resolve(), asked.dry_run, asked.bundle)
    if asked.part:
        run_part(asked.part, setting)
        return
    if not asked.minutes > 0:
        parser.error(f"--minutes {asked.minutes:g}: it must be above 0")
    if (setting.folder / ROWS).exists():
        parser.error(f"{asked.output} has rows already; name a new folder")
    setting.folder.mkdir(parents=True, exist_ok=True)
    measure(setting, asked.minutes)


def measure(setting: Setting, minutes: float) -> None:
    """Run all parts, and print their rows as they come."""
    rows = RowFile(setting.folder)
    kind = "rehearsal on a CPU" if setting.dry_run else "GPU"
    heading = f"{kind}, {time.strftime('%Y-%m-%d')}"
    try:
        run_parts(
            parts(setting),
            60 * minutes,
            partial(in_this_process if setting.dry_run else in_process, setting),
            rows,
            partial(print, flush=True),
        )
    finally:
        (setting.folder / PAGE).write_text(page(rows.read(), heading), encoding="utf-8")


def in_process(setting: Setting, part: Part, limit: float) -> str:
    """Run a part in a process of its own; what went wrong, or nothing."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part.name]
    command += ["-o", str(setting.folder), *(["--dry-run"] if setting.dry_run else [])]
    log = setting.folder / f"{part.name}.log"
    return run_process([*command, setting.bundle], limit, log)


def in_this_process(setting: Setting, part: Part, limit: float) -> str:
    """Rehearse a part here, which spares the imports that every process begins with. The first has
    a process all the same, so that one is rehearsed too."""
    if part.name == "machine":
        return in_process(setting, part, limit)
    log = setting.folder / f"{part.name}.log"
    with log.open("w", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(file))
        stack.enter_context(contextlib.redirect_stderr(file))
        try:
            run_part(part.name, setting)
        except Exception as error:
            traceback.print_exc()
            return first_line(error)
    return ""


if __name__ == "__main__":
    main()
