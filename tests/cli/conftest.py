"""The command line, and a bundle for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt import cli as command_line
from tests.support.command_line import Cli, Outcome


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
