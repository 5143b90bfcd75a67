"""``kdrt list`` and ``kdrt rm``."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sys
from pathlib import Path

import pytest

from kdrt.build.engines import Tools, build_engines
from kdrt_engines.tensorrt.flavour import TENSORRT_RTX
from tests.support.command_line import Cli
from tests.support.engine_bundle import Builder, Listener, engine_bundle
from tests.support.rtx_machine import install_tensorrt


@pytest.fixture
def bundles(home: Path, demo_bundle: Path) -> Path:
    """The folder of bundles with a name, which holds "demo" and the manifest of "broken"."""
    folder = home / "bundles"
    (folder / "broken").mkdir(parents=True)
    (folder / "broken" / "manifest.json").write_text("{")
    shutil.copytree(demo_bundle, folder / "demo", copy_function=os.link)
    return folder


def test_bundles_are_listed_with_their_facts(cli: Cli, bundles: Path) -> None:
    outcome = cli("list")
    assert outcome.code == 0
    assert "demo    sdxl    fp32" in outcome.out
    assert "MB  none" in outcome.out
    listed = re.search(r"demo +sdxl +fp32 +(\S+ MB)", outcome.out)
    assert listed is not None
    assert "on disk" in outcome.out.splitlines()[0]
    assert re.search(rf"on disk +{listed[1]}, with engines and caches", cli("inspect", "demo").out)
    assert "is damaged" in outcome.out
    broken, demo = json.loads(cli("list", "--json").out)
    files = [file for file in (bundles / "demo").rglob("*") if file.is_file()]
    assert demo == {
        "name": "demo",
        "path": str(bundles / "demo"),
        "size": sum(file.stat().st_size for file in files),
        "family": "sdxl",
        "precision": "fp32",
        "engines": {},
        "problem": "",
    }
    assert "is damaged" in broken["problem"]


def test_engines_are_listed_by_gpu(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt(monkeypatch, tmp_path / "installed")
    bundle = engine_bundle(home / "bundles" / "mine")
    tools = Tools(build=Builder())
    build_engines(bundle, TENSORRT_RTX, (86, 120), report=Listener(), tools=tools)
    assert "tensorrt-rtx (sm86, sm120)" in cli("list").out
    (row,) = json.loads(cli("list", "--json").out)
    assert row["engines"] == {"tensorrt-rtx": ["sm86", "sm120"]}


def test_no_bundles_say_how_to_make_one(cli: Cli, home: Path) -> None:
    outcome = cli("list")
    assert (outcome.code, outcome.out) == (0, "")
    assert "`kdrt export demo` makes the first" in outcome.err
    assert json.loads(cli("list", "--json").out) == []


def test_bundles_are_removed_by_name(cli: Cli, bundles: Path) -> None:
    assert cli("rm", "demo", "--yes").out == f"removed {bundles / 'demo'}\n"
    assert [*bundles.iterdir()] == [bundles / "broken"]


def test_nothing_is_removed_where_one_of_them_cannot_be(cli: Cli, bundles: Path) -> None:
    assert "cannot remove" in cli("rm", "demo", "broken", "--yes").refusal()
    assert "there is no bundle 'nothing'" in cli("rm", "demo", "nothing", "--yes").refusal()
    assert (bundles / "demo" / "manifest.json").is_file()


def test_a_bundle_given_twice_is_removed_once(cli: Cli, bundles: Path) -> None:
    other = bundles / "broken" / ".." / "demo"
    outcome = cli("rm", "demo", other, f"{bundles / 'demo'}/", "--yes")
    assert (outcome.code, outcome.out) == (0, f"removed {bundles / 'demo'}\n")
    assert not (bundles / "demo").exists()


def test_what_is_no_bundle_is_not_removed(
    cli: Cli, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = cli("rm", "nothing", "--yes").refusal()
    assert "`kdrt list` shows those there are" in refusal
    assert "export" not in refusal
    monkeypatch.chdir(bundles / "demo")
    assert "the name of a bundle is empty" in cli("rm", "", "--yes").refusal()
    assert (bundles / "demo").is_dir()


def test_where_nobody_can_be_asked_nothing_is_removed(
    cli: Cli, bundles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert "add --yes" in cli("rm", "demo").refusal()
    assert (bundles / "demo").is_dir()


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("", True), ("y", False)])
def test_it_is_asked_on_a_terminal(
    cli: Cli, bundles: Path, monkeypatch: pytest.MonkeyPatch, answer: str, stays: bool
) -> None:
    keyboard, terminal = pty.openpty()
    with os.fdopen(terminal, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        os.write(keyboard, f"{answer}\n".encode())
        outcome = cli("rm", "demo")
    os.close(keyboard)
    assert outcome.code == 0
    assert f"remove {bundles / 'demo'} (" in outcome.err
    assert (bundles / "demo").exists() == stays
