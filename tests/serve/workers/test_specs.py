"""Which workers there are: devices, threads, environment."""

from __future__ import annotations

import sys

import pytest

from kdrt.errors import InvalidRequestError
from kdrt.serve.settings import ModelSettings, ServiceSettings
from kdrt.serve.workers.specs import environment_of, worker_specs

MODELS = [ModelSettings(bundle="demo")]


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores, and an environment that says nothing."""
    monkeypatch.setattr("kdrt.serve.workers.specs.cores", lambda: 8)
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_the_threads_of_the_machine_are_divided() -> None:
    specs = worker_specs(MODELS, ServiceSettings(), workers=3)
    assert [spec.name for spec in specs] == ["0", "1", "2"]
    assert {spec.start.settings.threads for spec in specs} == {2}
    assert {environment_of(spec)["OMP_NUM_THREADS"] for spec in specs} == {"2"}
    assert not any("CUDA_VISIBLE_DEVICES" in environment_of(spec) for spec in specs)
    (many, *_) = worker_specs(MODELS, ServiceSettings(), workers=20)
    assert many.start.settings.threads == 1


def test_what_is_asked_for_is_not_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    (first, _) = worker_specs(MODELS, ServiceSettings(threads=7), workers=2)
    assert first.start.settings.threads == 7
    assert environment_of(first)["OMP_NUM_THREADS"] == "5"


def test_each_device_has_a_worker_that_sees_no_other() -> None:
    specs = worker_specs(MODELS, ServiceSettings(), devices=["1", "3"])
    assert [environment_of(spec)["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["1", "3"]
    assert all(spec.start.needs_gpu for spec in specs)


def test_devices_are_counted_among_those_that_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    specs = worker_specs(MODELS, ServiceSettings(), devices=["1", "0"])
    assert [environment_of(spec)["CUDA_VISIBLE_DEVICES"] for spec in specs] == ["GPU-abc", "4"]
    with pytest.raises(InvalidRequestError, match=r"no device 2.*allows this process 2"):
        worker_specs(MODELS, ServiceSettings(), devices=["2"])


@pytest.mark.parametrize("given", [{}, {"workers": 1, "devices": ["0"]}])
def test_either_a_number_or_devices(given: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match="either a number of workers or the devices"):
        worker_specs(MODELS, ServiceSettings(), **given)  # type: ignore[arg-type]


def test_a_worker_imports_what_this_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "/one", "/two"])
    (first,) = worker_specs(MODELS, ServiceSettings(), workers=1)
    assert environment_of(first)["PYTHONPATH"] == "/one:/two"


def test_no_device_is_not_none() -> None:
    with pytest.raises(InvalidRequestError, match="at least one device"):
        worker_specs(MODELS, ServiceSettings(), devices=[])
