"""The ``kdrt`` command; ``python -m kdrt`` is the same.

Imports next to nothing itself: what Ctrl-C, SIGTERM and closed or narrow standard streams need is
in place before the commands and their libraries are loaded.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows no Greek, or a file name that is no text, is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handled:  # not in a background job whose shell has it ignored
        signal.signal(signal.SIGINT, _leave)
    from kdrt.cli import interrupt, run

    if handled:
        signal.signal(signal.SIGINT, interrupt)
    # By default the process would be gone at once, and what it had half written would stay.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(run(sys.argv[1:]))


def _leave(number: int, _: object) -> None:
    """Leave at once: nothing has been begun, and an exception would be a traceback of imports."""
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _open_closed_streams() -> None:
    """Put the null device where a standard stream is closed, as after ``>&-``. Otherwise the next
    file to be opened would take its number, and receive what libraries print."""
    names = ("stdin", "stdout", "stderr")
    for number, name in enumerate(names):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if number == 0 else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
