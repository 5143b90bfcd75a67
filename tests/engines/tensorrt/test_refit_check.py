"""The gate in front of refittable engines: ONNX Runtime finds every way in which one errs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kdrt_engines.tensorrt.refit_check
from kdrt_engines import EngineError
from kdrt_engines.comparison import bound_of, greatest_error, random_inputs, relative_error
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_engines.tensorrt.engine import TensorRTEngine
from kdrt_engines.tensorrt.refit_check import (
    CHANGE,
    RefitGate,
    When,
    changed_weights,
    check_refit,
)
from tests.support import refittable
from tests.support.refittable import (
    BIAS,
    FIRST,
    OPEN,
    SECOND,
    base,
    computed,
    engine_file,
    holds,
    load,
)

Load = Callable[..., TensorRTEngine]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return refittable.network(tmp_path)


@pytest.fixture
def loaded(network: Path) -> Load:
    def make(check: Any = None, **options: Any) -> TensorRTEngine:
        engine, _ = load(network, engine_file(**options), after_refit=check)
        return engine

    return make


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """The weights of every session of ONNX Runtime that the gate opens."""
    opened: list[dict[str, Tensor]] = []

    def engine(path: Path, spec: EngineSpec, config: OrtConfig, **options: Any) -> OrtEngine:
        opened.append(options["weights"])
        return OrtEngine(path, spec, config, **options)

    monkeypatch.setattr(kdrt_engines.tensorrt.refit_check, "OrtEngine", engine)
    return opened


def test_a_good_engine_is_proved_and_left_as_it_was(loaded: Load, network: Path) -> None:
    engine = loaded()
    proof = check_refit(engine, network, OPEN)
    assert proof.weights == 2
    assert max(proof.built, proof.refitted) < 1e-5
    assert proof.restored == 0
    assert str(proof).startswith("2 of 2 weights can change; relative error ")
    assert holds(engine, {})


def test_every_profile_is_compared(loaded: Load, network: Path) -> None:
    """Each has kernels of its own: these are wrong for one image, which only `many` takes."""

    def compute(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        right = computed(weights, inputs)
        return right if len(inputs["x"]) > 1 else {"y": 2 * right["y"]}

    with pytest.raises(EngineError, match=r"as built, the engine is off by 1 relative at B=1, "):
        check_refit(loaded(compute=compute), network, OPEN)


def without_bias(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return computed(weights | {BIAS: torch.zeros(4)}, inputs)


def never_finite(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"y": computed(weights, inputs)["y"] * torch.nan}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compute": without_bias}, "as built, the engine is off"),
        ({"compute": never_finite}, "as built, the engine is off by inf"),
        ({"refit": lambda _old, _new: {}}, "refitted, the engine is off"),
        ({"refit": lambda _old, new: {FIRST: new[FIRST]}}, "refitted, the engine is off"),
        ({"refit": lambda old, new: {n: old[n] + 0.9 * (new[n] - old[n]) for n in new}}, "is off"),
        ({"refit": lambda _old, new: {n: v.flip(0) for n, v in new.items()}}, "is off"),
    ],
)
def test_engines_that_err_are_found(
    loaded: Load, network: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(EngineError, match=said):
        check_refit(loaded(**options), network, OPEN)


def test_a_weight_that_counts_for_little_and_stays_behind_is_found(
    tmp_path: Path, loaded: Load
) -> None:
    """Its share of the outputs is a thousandth of what is allowed to be off."""
    weights = base() | {"little": torch.full((1,), 1e-5)}

    def compute(weights: dict[str, Tensor], inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": computed(weights, inputs)["y"] + weights["little"]}

    def refit(_old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in new.items() if name != "little"}

    options: dict[str, Any] = {"weights": weights, "compute": compute}
    options["refittable"] = (*OPEN, "little")
    network = refittable.network(tmp_path, {"little": weights["little"]})
    assert check_refit(loaded(**options), network, options["refittable"]).weights == 3
    with pytest.raises(EngineError, match="does not follow the weight 'little'"):
        check_refit(loaded(**options, refit=refit), network, options["refittable"])


def test_weights_that_do_not_come_back_are_found(loaded: Load, network: Path) -> None:

    def refit(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        back = all(torch.equal(value, base()[name]) for name, value in new.items())
        return {} if back else new

    with pytest.raises(EngineError, match="restored, the engine is off"):
        check_refit(loaded(refit=refit), network, OPEN)


def test_an_engine_of_which_nothing_can_change(loaded: Load, network: Path) -> None:
    with pytest.raises(EngineError, match="no weight can change"):
        check_refit(loaded(refittable=()), network, OPEN)


def test_weights_that_the_builder_fixed_are_counted(loaded: Load, network: Path) -> None:
    """And others that it left open, as where it cannot be told which, are nobody's business."""
    proof = check_refit(loaded(refittable=(SECOND, BIAS, "unnamed")), network, OPEN)
    assert (proof.weights, proof.fixed) == (1, 1)
    assert str(proof).startswith("1 of 2 weights")


def test_agreement_that_says_nothing_is_no_proof(
    loaded: Load, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kdrt_engines.tensorrt.refit_check, "CHANGE", 1e-4)
    with pytest.raises(EngineError, match="too little to tell whether the engine follows"):
        check_refit(loaded(), network, OPEN)


def test_every_element_is_changed_and_always_alike(loaded: Load) -> None:
    weights = loaded().weights
    assert weights is not None
    first, again = (changed_weights(weights, OPEN) for _ in range(2))
    assert set(first) == set(OPEN)
    for name, value in first.items():
        torch.testing.assert_close((value / base()[name] - 1).abs(), torch.full_like(value, CHANGE))
        assert torch.equal(value, again[name])


NEW = {FIRST: base()[FIRST] + 0.3}
OTHER = {SECOND: base()[SECOND] - 0.3}


@pytest.mark.parametrize(
    ("when", "compared"),
    [("first", [NEW]), ("every", [{}, NEW, OTHER, {}]), ("never", [])],
)
def test_which_refits_are_compared(
    loaded: Load,
    network: Path,
    sessions: list[dict[str, Tensor]],
    when: When,
    compared: list[dict[str, Tensor]],
) -> None:
    engine = loaded(RefitGate(network, when))
    for weights in ({}, NEW, OTHER, {}):
        engine.with_weights(weights)
        assert holds(engine, weights)
    assert [list(given) for given in sessions] == [list(weights) for weights in compared]


def test_a_refit_that_is_off_is_undone(
    loaded: Load, network: Path, sessions: list[dict[str, Tensor]]
) -> None:
    """And the next one is compared again, though only the first should be: none has passed."""

    def refit(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: v if torch.equal(v, base()[n]) else old[n] for n, v in new.items()}

    engine = loaded(RefitGate(network), refit=refit)
    for weights in (NEW, OTHER):
        with pytest.raises(
            EngineError, match=r"refitted, the engine is off by .*; the refit was undone"
        ):
            engine.with_weights(weights)
        assert holds(engine, {})
    assert len(sessions) == 2


def test_errors_of_outputs_that_are_not_numbers() -> None:
    one, zero = torch.ones(2), torch.zeros(2)
    assert relative_error(one * torch.nan, one) == torch.inf
    assert relative_error(one, one * torch.nan) == torch.inf
    assert relative_error(one, zero) == torch.inf
    assert relative_error(zero, zero) == 0
    found = {"good": one, "bad": one * torch.nan}
    assert greatest_error(found, {"good": one + 1, "bad": one}) == torch.inf


def test_the_bound_is_that_of_the_coarsest_numbers() -> None:
    spec = EngineSpec(
        (TensorSpec("ids", "int64", ("B", 3)), TensorSpec("t", "float32", ("B",))),
        (TensorSpec("out", "float16", ("B",)),),
    )
    assert bound_of(spec) == 1e-2
    inputs = random_inputs(spec, {"B": 2})
    assert inputs["ids"].tolist() == [[0, 0, 0]] * 2
    assert torch.equal(inputs["t"], random_inputs(spec, {"B": 2})["t"])
