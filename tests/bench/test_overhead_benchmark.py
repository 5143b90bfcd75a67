"""The benchmark runs and says what it claims to say; its figures are nobody's test."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

import sampler_overhead as overhead


def test_it_measures_both_sides_and_writes_a_report(
    kd: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    overhead.main(tmp_path, steps=3, rounds=1)
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "sampler_overhead.json").read_text())
    assert len(last["costs"]) == len(overhead.ROWS)
    for cost in last["costs"]:
        assert cost["k_diffusion"] > 0
        if cost["sampler"] in overhead.SDE + overhead.ANCESTRAL + overhead.DETERMINISTIC:
            assert cost["loop"] > 0
            assert cost["before"] > 0
        assert f"| {cost['sampler']} |" in (tmp_path / "sampler_overhead.md").read_text()
    assert (tmp_path / "sampler_overhead.png").stat().st_size > 10_000
