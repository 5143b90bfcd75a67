"""Running the command line inside the test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdrt import cli as command_line


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The sentence of a refused command, after checking that there is nothing else."""
        assert self.code == 2, self.err
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err.removeprefix("error: ").strip()


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``cli("samplers", "--json")`` runs ``kdrt samplers --json``."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = command_line.run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def demo(demo_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the demo bundle, findable by name."""
    monkeypatch.setenv("KDRT_HOME", str(demo_home))
    return "demo"
