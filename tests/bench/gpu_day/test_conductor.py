"""Time, errors and hanging parts."""

from __future__ import annotations

import sys
from pathlib import Path

from kdrt_bench.gpu_day.conductor import Part, run_parts, run_process
from kdrt_bench.gpu_day.rows import Row, RowFile, page


class Machine:
    """A clock, and parts that take as long as they are said to in ``takes``."""

    def __init__(self, folder: Path, takes: dict[str, float], wrong: str = "") -> None:
        self.rows, self.takes, self.wrong = RowFile(folder), takes, wrong
        self.now = 100.0
        self.limits: dict[str, float] = {}
        self.said: list[str] = []

    def run(self, part: Part, limit: float) -> str:
        self.limits[part.name] = limit
        self.rows.add(Row(part.name, "first", {"ms": 1.5}))
        self.now += min(self.takes[part.name], limit)
        return f"{self.wrong} {part.name}" if self.wrong else ""

    def measure(self, parts: list[Part], seconds: float) -> list[Row]:
        run_parts(parts, seconds, self.run, self.rows, self.said.append, lambda: self.now)
        return self.rows.read()


def test_a_part_that_does_not_fit_is_skipped_and_the_next_may_fit(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"a": 50, "c": 10})
    rows = machine.measure([Part("a", 40), Part("b", 60), Part("c", 30)], 100)
    assert [(row.part, row.name) for row in rows] == [("a", "first"), ("b", "all"), ("c", "first")]
    assert rows[1].failed == "skipped: it takes about 60 s, and 50 s are left"
    assert machine.limits == {"a": 80, "c": 50}
    assert machine.said == [row.line() for row in rows]


def test_nothing_starts_after_the_end(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"a": 500})
    rows = machine.measure([Part("a", 90), Part("b", 1)], 100)
    assert machine.limits == {"a": 100}
    assert rows[-1].failed == "skipped: it takes about 1 s, and 0 s are left"


def test_what_goes_wrong_is_a_row_beside_those_before_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, {"a": 1, "b": 1}, wrong="no")
    rows = machine.measure([Part("a", 1), Part("b", 1)], 100)
    assert [row.failed for row in rows] == ["", "no a", "", "no b"]


def test_a_process_that_hangs_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    assert run_process(command, 0.1, tmp_path / "log").startswith("ended after 0 s; log")


def test_a_process_that_fails_says_where_to_look(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('words'); raise SystemExit(3)"]
    assert run_process(command, 60, tmp_path / "log") == "exit code 3; log has what it said"
    assert (tmp_path / "log").read_text(encoding="utf-8") == "words\n"


def test_a_row_half_written_is_left_out(tmp_path: Path) -> None:
    rows = RowFile(tmp_path)
    rows.add(Row("a", "b | c", {"ms": 0.12345, "of": "two\nlines"}))
    with rows.path.open("a", encoding="utf-8") as file:
        file.write('{"part": "a", "na')
    assert (
        page(rows.read(), "Title").splitlines()[-1] == r"| a | b \| c | ms 0.1235 · of two lines |"
    )
