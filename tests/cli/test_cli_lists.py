"""``kdrt samplers``, ``kdrt schedules`` and ``kdrt doctor``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from kdrt.sampling import SAMPLERS, SCHEDULES
from kdrt_engines.registry import EngineStatus, find_engines
from tests.support.command_line import Cli


def test_samplers_are_all_listed(cli: Cli) -> None:
    outcome = cli("samplers")
    assert outcome.code == 0
    for name, info in SAMPLERS.items():
        assert name in outcome.out
        assert info.label in outcome.out
        assert all(option in outcome.out for option in info.options)


def test_samplers_as_json(cli: Cli) -> None:
    listed = json.loads(cli("samplers", "--json").out, parse_constant=pytest.fail)
    assert [sampler["name"] for sampler in listed] == list(SAMPLERS)
    assert listed[0]["options"]["s_tmax"] == "inf"


def test_schedules_are_all_listed(cli: Cli) -> None:
    outcome = cli("schedules")
    assert outcome.code == 0
    for name, info in SCHEDULES.items():
        assert name in outcome.out
        assert info.label in outcome.out
        assert all(option in outcome.out for option in info.options)
    listed = json.loads(cli("schedules", "--json").out, parse_constant=pytest.fail)
    assert [schedule["name"] for schedule in listed] == list(SCHEDULES)
    assert listed[0]["options"]["rho"] == 7
    assert listed[0]["range"] == "any range"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_schedules_are_drawn(cli: Cli, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / f"schedules{suffix}"
    assert cli("schedules", "--plot", path, "--steps", 7).out == f"{path}\n"
    drawn = path.read_bytes()
    if suffix == ".svg":
        assert all(f"<!-- {name} -->" in drawn.decode() for name in SCHEDULES)
    else:
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("PNG", "P")  # a quarter of the size


def test_drawings_that_cannot_be(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "must end in .png" in cli("schedules", "--plot", tmp_path / "a.txt").refusal()
    assert "at least 2" in cli("schedules", "--plot", "a.png", "--steps", "1").refusal()
    (tmp_path / "file").touch()
    pytest.importorskip("matplotlib")
    assert "cannot write" in cli("schedules", "--plot", tmp_path / "file" / "a.png").refusal()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "kdrt[bench]" in cli("schedules", "--plot", tmp_path / "a.png").refusal()


def test_doctor_names_engines_and_bundles(cli: Cli, home: Path) -> None:
    (home / "bundles" / "mine").mkdir(parents=True)
    (home / "bundles" / "mine" / "manifest.json").write_text("{}")
    outcome = cli("doctor")
    assert outcome.code == 0
    for engine in find_engines():
        assert engine.name in outcome.out
    assert str(home) in outcome.out
    assert "mine" in outcome.out


def test_doctor_as_json(cli: Cli, home: Path) -> None:
    machine = json.loads(cli("doctor", "--json").out)
    assert machine["cores"] >= 1
    assert machine["memory"] > machine["memory_free"] > 0
    assert machine["packages"]["torch"]
    assert machine["chosen"] in {engine["name"] for engine in machine["engines"]}
    assert machine["bundles"] == []


def test_doctor_without_any_engine(cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = (EngineStatus("onnxruntime", False, None, "not installed"),)
    monkeypatch.setattr("kdrt.backends.doctor.find_engines", lambda: nothing)
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "No engine is usable" in outcome.out
