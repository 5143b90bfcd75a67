"""``kdrt deploy``: a folder, or a sentence and no folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Cli


def test_it_prints_where_the_model_is(cli: Cli, demo: str, tmp_path: Path) -> None:
    made = cli("deploy", "triton", demo, "-o", tmp_path, "--name", "mine", "--max-rows", "4")
    assert made.code == 0
    assert made.out.strip() == str(tmp_path / "mine")
    config = (tmp_path / "mine" / "config.pbtxt").read_text(encoding="utf-8")
    assert 'name: "mine"' in config
    assert 'key: "max_rows" value { string_value: "4" }' in config


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["torchserve", "demo"], "unknown target 'torchserve'; known: triton"),
        (["triton", "nothing"], "there is no bundle 'nothing'"),
        (["triton", "demo", "--name", "a/b"], "choose a name with --name"),
        (["triton", "demo", "--max-rows", "0"], "--max-rows must be"),
        (["triton", "demo", "--engine", "nothing"], "nothing"),
        (["triton", "demo", "--cuda-graph", "all"], "unknown --cuda-graph 'all'"),
        (["triton", "demo", "-o", ""], "--output is empty"),
    ],
)
def test_wrong_values_are_one_sentence(
    cli: Cli, demo: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    target = tmp_path / "models"
    assert said in cli("deploy", "-o", target, *arguments).refusal()
    assert not target.exists()
