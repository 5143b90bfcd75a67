"""Commands that other packages bring."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import pytest

from kdrt.cli.extension import GROUP
from tests.support.command_line import Cli

Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """``installed(name="package.module:function")``: the entry points there are."""

    def only(**commands: str) -> None:
        there = metadata.EntryPoints(
            metadata.EntryPoint(name, value, GROUP) for name, value in commands.items()
        )
        monkeypatch.setattr(metadata, "entry_points", there.select)

    return only


def test_a_command_that_is_not_installed_says_how_to_install_it(
    cli: Cli, installed: Installed
) -> None:
    installed()
    assert cli("bench").refusal() == "`kdrt bench` is not installed; pip install 'kdrt[bench]'"


@pytest.mark.parametrize("module", ["kdrt_nonsense", "kdrt_bench.nonsense"])
def test_a_package_that_a_command_lacks_is_named(
    cli: Cli, installed: Installed, module: str
) -> None:
    installed(bench=f"{module}:bench")
    said = cli("bench", "--suite", "quick").refusal()
    assert said.startswith(f"`kdrt bench` needs the package '{module}', which is not installed")


def test_arguments_help_and_exit_code_are_those_of_the_command(
    cli: Cli, installed: Installed
) -> None:
    installed(bench=f"{__name__}:greeting")
    assert cli("bench", "--name", "Ada").out == "hello Ada\n"
    assert "Greet somebody." in cli("bench", "--help").out
    wrong = cli("bench", "--nam", "Ada")
    assert wrong.code == 2
    assert "--name" in wrong.err


def greeting(name: str = "nobody") -> None:
    """
    Greet somebody.
    """
    print("hello", name)
