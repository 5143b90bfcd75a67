"""``kdrt samplers``, ``kdrt schedules`` and ``kdrt doctor``."""

from __future__ import annotations

import json

import pytest

from kdrt.cli.schedules import MEANINGS
from kdrt.sampling import SAMPLERS, SCHEDULES
from kdrt_engines.registry import EngineStatus, find_engines


def test_samplers_are_all_listed(cli) -> None:
    outcome = cli("samplers")
    assert outcome.code == 0
    for name, info in SAMPLERS.items():
        assert name in outcome.out
        assert info.label in outcome.out
        assert all(option in outcome.out for option in info.options)


def test_samplers_as_json(cli) -> None:
    listed = json.loads(cli("samplers", "--json").out, parse_constant=pytest.fail)
    assert [sampler["name"] for sampler in listed] == list(SAMPLERS)
    assert listed[0]["options"]["s_tmax"] == "inf"


def test_schedules_are_all_listed(cli) -> None:
    assert tuple(MEANINGS) == SCHEDULES
    outcome = cli("schedules")
    assert outcome.code == 0
    assert all(name in outcome.out for name in SCHEDULES)
    assert [s["name"] for s in json.loads(cli("schedules", "--json").out)] == list(SCHEDULES)


def test_doctor_names_engines_and_bundles(cli, home) -> None:
    (home / "bundles" / "mine").mkdir(parents=True)
    (home / "bundles" / "mine" / "manifest.json").write_text("{}")
    outcome = cli("doctor")
    assert outcome.code == 0
    for engine in find_engines():
        assert engine.name in outcome.out
    assert str(home) in outcome.out
    assert "mine" in outcome.out


def test_doctor_as_json(cli, home) -> None:
    machine = json.loads(cli("doctor", "--json").out)
    assert machine["cores"] >= 1
    assert machine["memory"] > machine["memory_free"] > 0
    assert machine["packages"]["torch"]
    assert machine["chosen"] in {engine["name"] for engine in machine["engines"]}
    assert machine["bundles"] == []


def test_doctor_without_any_engine(cli, home, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = (EngineStatus("onnxruntime", False, None, "not installed"),)
    monkeypatch.setattr("kdrt.doctor.find_engines", lambda: nothing)
    outcome = cli("doctor")
    assert outcome.code == 0
    assert "No engine is usable" in outcome.out
