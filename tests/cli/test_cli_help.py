"""Help, version, and how errors leave the command line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperArgument, TyperOption

import kdrt
from kdrt import cli as command_line
from kdrt.cli.app import _CALLED_HERE
from tests.support.command_line import Cli

COMMANDS = (
    "export",
    "build",
    "compare",
    "inspect",
    "list",
    "rm",
    "trust",
    "generate",
    "info",
    "serve",
    "samplers",
    "schedules",
    "doctor",
)


def test_version(cli: Cli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"kdrt {kdrt.__version__}\n")


def test_help_names_every_command_and_gives_examples(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert re.search(rf"│ {command} ", outcome.out)
    assert "kdrt export demo" in outcome.out
    assert "kdrt generate demo" in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_explained(cli: Cli, command: str) -> None:
    outcome = cli(command, "--help")
    assert outcome.code == 0
    parser = typer.main.get_group(command_line.app).commands[command]
    for parameter in parser.params:
        assert isinstance(parameter, TyperArgument | TyperOption)
        assert parameter.help, f"{command} {parameter.name} has no help"
        assert parameter.help.endswith((".", "./]")), f"{command} {parameter.name}"


def test_examples_in_help_parse() -> None:
    group = typer.main.get_group(command_line.app)
    examples = 0
    for name, command in group.commands.items():
        text = (command.help or "").replace("\\\n", " ")
        for line in re.findall(r"\[cyan\](kdrt [^\[]+)\[/cyan\]", text):
            _, called, *arguments = shlex.split(line)
            if arguments:
                group.commands[called].make_context(called, arguments).close()
            examples += called == name
    assert examples >= 8


def test_no_command_shows_the_help(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 2
    assert "Usage: kdrt" in outcome.out + outcome.err


@pytest.mark.parametrize(
    "arguments", [["exprt"], ["generate"], ["generate", "demo"], ["inspect", "--nonsense", "x"]]
)
def test_wrong_usage_exits_with_2(cli: Cli, arguments: list[str]) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["exprt"], "Did you mean 'export'?"),
        (["ls"], "Did you mean 'list'?"),
        (["remove", "demo"], "Did you mean 'rm'?"),
        (["txt2img", "demo", "a cat"], "Did you mean 'generate'?"),
        (["inspect", "demo", "--jsn"], "--json"),
        (["build", "demo", "--gpus", "sm89"], "--gpu"),
        (["rm", "demo", "--force"], "No such option: --force"),
    ],
)
def test_near_misses_are_answered_with_the_right_word(
    cli: Cli, arguments: list[str], said: str
) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_words_of_other_programs_lead_to_commands() -> None:
    commands = typer.main.get_group(command_line.app).commands
    assert {*_CALLED_HERE.values()} <= {*commands}
    assert not {*_CALLED_HERE} & {*commands}


def test_debug_shows_the_traceback_and_keeps_the_exit_code(cli: Cli, home: Path) -> None:
    outcome = cli("--debug", "inspect", "nothing")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Traceback (most recent call last)")
    assert "BundleError: there is no bundle 'nothing'" in outcome.err


def test_debug_shows_the_traceback_of_a_bug(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("kdrt.backends.doctor.examine", broken)
    outcome = cli("--debug", "doctor")
    assert outcome.code == command_line.INTERNAL_ERROR
    assert "in broken" in outcome.err
    assert outcome.err.rstrip().endswith("ZeroDivisionError")


def test_control_c_says_interrupted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdrt.backends.doctor.examine", interrupted)
    outcome = cli("doctor")
    assert outcome.code == 130
    assert outcome.err.strip() == "interrupted"


def test_the_command_line_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kdrt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"kdrt {kdrt.__version__}\n"
