"""Which workers there are: devices, threads, environment."""

from __future__ import annotations

import sys

import pytest

from kdrt.errors import InvalidRequestError
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.workers import plan
from kdrt.serve.workers.plan import environment_of, plan_workers

MODELS = [ModelSettings(bundle="demo")]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, and an environment that says nothing."""
    monkeypatch.setattr(plan, "cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_the_threads_of_the_machine_are_divided() -> None:
    plans = plan_workers(MODELS, ServiceSettings(), workers=3)
    assert [plan.name for plan in plans] == ["0", "1", "2"]
    assert {plan.start.settings.threads for plan in plans} == {2}
    assert {environment_of(plan)["OMP_NUM_THREADS"] for plan in plans} == {"2"}
    assert not any("CUDA_VISIBLE_DEVICES" in environment_of(plan) for plan in plans)
    (many, *_) = plan_workers(MODELS, ServiceSettings(), workers=20)
    assert many.start.settings.threads == 1


def test_what_is_asked_for_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (first, _) = plan_workers(MODELS, ServiceSettings(threads=7), workers=2)
    assert first.start.settings.threads == 7
    assert environment_of(first)["OMP_NUM_THREADS"] == "5"


def test_each_device_has_a_worker_that_sees_no_other() -> None:
    plans = plan_workers(MODELS, ServiceSettings(), devices=["1", "3"])
    assert [environment_of(plan)["CUDA_VISIBLE_DEVICES"] for plan in plans] == ["1", "3"]
    assert all(plan.start.needs_gpu for plan in plans)


def test_devices_are_counted_among_those_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    plans = plan_workers(MODELS, ServiceSettings(), devices=["1", "0"])
    assert [environment_of(plan)["CUDA_VISIBLE_DEVICES"] for plan in plans] == ["GPU-abc", "4"]
    with pytest.raises(InvalidRequestError, match=r"no device 2.*allows this process 2"):
        plan_workers(MODELS, ServiceSettings(), devices=["2"])


@pytest.mark.parametrize("given", [{}, {"workers": 1, "devices": ["0"]}])
def test_either_a_number_or_devices(given: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="either a number of workers or the devices"):
        plan_workers(MODELS, ServiceSettings(), **given)  # type: ignore[arg-type]


def test_a_worker_imports_what_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/one", "/two"])
    (first,) = plan_workers(MODELS, ServiceSettings(), workers=1)
    assert environment_of(first)["PYTHONPATH"] == "/one:/two"
