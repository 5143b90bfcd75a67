"""The gate's judgement, and that it measures the commits it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

import gate

BASE = [1.0, 1.1, 0.9, 1.0, 1.2, 1.0, 1.1, 0.95, 1.0, 1.05]


@pytest.mark.parametrize(
    ("factor", "passes"), [(0.5, True), (1.0, True), (1.04, True), (1.2, False)]
)
def test_the_gate_closes_on_what_is_slower(factor: float, passes: bool) -> None:
    verdict = gate.judge({"image": (BASE, [factor * value for value in BASE])}, 1.05)
    assert verdict["passed"] is passes
    assert verdict["rows"]["image"]["ratio"]["median"] == pytest.approx(factor)


def test_noise_does_not_close_the_gate() -> None:
    # 10 % slower by its median, but two rounds in five are faster.
    head = [v * f for v, f in zip(BASE, [1.1, 1.1, 1.1, 0.9, 0.9] * 2, strict=True)]
    verdict = gate.judge({"image": (BASE, head)}, 1.05)
    assert verdict["rows"]["image"]["ratio"]["median"] == pytest.approx(1.1)
    assert verdict["passed"]


def test_one_slower_workload_is_enough() -> None:
    samples = {"image": (BASE, BASE), "step": (BASE, [2 * value for value in BASE])}
    assert not gate.judge(samples, 1.05)["passed"]


def test_a_checkout_is_what_its_worker_imports(tmp_path: Path) -> None:
    paths = gate.environment_of(tmp_path)["PYTHONPATH"].split(":")
    assert [Path(path) for path in paths] == [
        tmp_path,
        tmp_path / "export",
        tmp_path / "engines",
        tmp_path / "benchmarks",
    ]
