"""Weights of a refittable TensorRT engine: which it holds after every change, and every refusal."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdrt_engines import EngineError, FixedWeightsError
from kdrt_engines.tensorrt.engine import TensorRTEngine
from tests.support.refittable import (
    BIAS,
    FIRST,
    OPEN,
    SECOND,
    base,
    computed,
    engine_file,
    held,
    holds,
    load,
    network,
)
from tests.support.trt_recorder import Calls, ViolationError

NEW = {name: torch.full_like(value, 0.5) for name, value in base().items()}


Load = Callable[..., tuple[TensorRTEngine, Calls]]


@pytest.fixture
def loaded(tmp_path: Path) -> Load:
    def make(**options: Any) -> tuple[TensorRTEngine, Calls]:
        check = options.pop("check", None)
        return load(network(tmp_path), engine_file(**options), after_refit=check)

    return make


def refits(calls: Calls) -> list[list[str]]:
    return [detail for name, detail in calls.log if name == "refit_cuda_engine"]


def test_weights_are_put_in_and_back_to_the_bit(loaded: Load) -> None:
    engine, calls = loaded()
    binding = engine.bind(B=2)
    assert engine.with_weights({FIRST: NEW[FIRST]}) is engine
    assert holds(engine, {FIRST: NEW[FIRST]})
    assert engine.with_weights({SECOND: NEW[SECOND]}) is engine
    assert holds(engine, {SECOND: NEW[SECOND]}), "the first is back"
    engine.with_weights({})
    assert holds(engine, {})
    assert refits(calls) == [[FIRST], [FIRST, SECOND], [SECOND]], "nothing that need not"
    engine.with_weights({})
    assert len(refits(calls)) == 3

    binding.inputs["x"].fill_(1.0)
    binding.run()
    assert torch.equal(binding.outputs["y"], computed(base(), {"x": torch.ones(2, 5)})["y"])


def test_what_is_bound_computes_with_the_new_weights(loaded: Load) -> None:
    engine, _ = loaded()
    binding = engine.bind(B=3)
    binding.inputs["x"].fill_(0.1)
    engine.with_weights({FIRST: NEW[FIRST]})
    binding.run()
    expected = computed(base() | {FIRST: NEW[FIRST]}, {"x": torch.full((3, 5), 0.1)})
    assert torch.equal(binding.outputs["y"], expected["y"])


CHANGES = st.lists(
    st.dictionaries(st.sampled_from(OPEN), st.floats(-2, 2, width=32), max_size=2), max_size=5
)


@given(CHANGES)
def test_only_the_last_change_counts(
    tmp_path_factory: pytest.TempPathFactory, changes: list[dict[str, float]]
) -> None:
    engine, _ = load(network(tmp_path_factory.mktemp("refit")), engine_file())
    for change in [*changes, {}]:
        weights = {name: torch.full_like(base()[name], x) for name, x in change.items()}
        engine.with_weights(weights)
        assert holds(engine, weights)


def test_weights_that_change_together_are_given_together(loaded: Load) -> None:
    engine, calls = loaded(together=[frozenset(OPEN)])
    engine.with_weights({FIRST: NEW[FIRST]})
    assert holds(engine, {FIRST: NEW[FIRST]})
    engine.with_weights({})
    assert holds(engine, {})
    assert refits(calls) == [[FIRST, SECOND]] * 2


def test_a_weight_that_only_tensorrt_knows_is_refused(loaded: Load) -> None:
    weights = base() | {"folded": torch.ones(1)}
    engine, calls = loaded(
        weights=weights, refittable=(*OPEN, "folded"), together=[frozenset({FIRST, "folded"})]
    )
    with pytest.raises(EngineError, match=r"wants the weight 'folded', which .* does not have"):
        engine.with_weights({FIRST: NEW[FIRST]})
    assert refits(calls) == []


def test_memory_in_another_order_is_rearranged_and_kept(loaded: Load) -> None:
    engine, _ = loaded()
    turned = torch.arange(20.0).reshape(5, 4).T
    assert not turned.is_contiguous()
    engine.with_weights({FIRST: turned})
    assert holds(engine, {FIRST: turned})


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("third.weight", torch.zeros(1), "'third.weight' is not one of the 2 weights that this"),
        (BIAS, NEW[BIAS], "'first.bias' is not one of the 2 weights"),
        (FIRST, NEW[FIRST].half(), "is float32 4 x 5, and was given as float16 4 x 5"),
        (FIRST, NEW[FIRST].T, "is float32 4 x 5, and was given as float32 5 x 4"),
    ],
)
def test_refusals_change_nothing(loaded: Load, name: str, tensor: Tensor, said: str) -> None:
    engine, calls = loaded()
    engine.with_weights({SECOND: NEW[SECOND]})
    with pytest.raises(EngineError, match=said):
        engine.with_weights({SECOND: base()[SECOND], name: tensor})
    assert holds(engine, {SECOND: NEW[SECOND]})
    assert len(refits(calls)) == 1


def test_an_engine_of_another_network_is_refused(loaded: Load) -> None:
    engine, calls = loaded(weights=base() | {FIRST: torch.zeros(7)})
    with pytest.raises(EngineError, match=r"of the engine is not the one in .*model\.onnx"):
        engine.with_weights({FIRST: NEW[FIRST]})
    assert refits(calls) == []


def test_a_refit_that_fails_half_way_is_undone(loaded: Load) -> None:
    engine, calls = loaded(failing_refits=1)
    with pytest.raises(
        EngineError, match=r"could not refit the engine: out of memory; the refit was"
    ):
        engine.with_weights({name: NEW[name] for name in OPEN})
    assert holds(engine, {})
    assert refits(calls) == [[FIRST, SECOND]] * 2
    engine.with_weights({FIRST: NEW[FIRST]})
    assert holds(engine, {FIRST: NEW[FIRST]})


def test_an_engine_that_cannot_be_put_back_never_runs_again(loaded: Load) -> None:
    engine, calls = loaded(failing_refits=2)
    binding = engine.bind(B=2)
    before = calls.names().count("execute_async_v3")
    with pytest.raises(EngineError, match="must not be used any more, load it again"):
        engine.with_weights({FIRST: NEW[FIRST]})
    for use in (binding.run, lambda: engine.bind(B=2), lambda: engine.with_weights({})):
        with pytest.raises(EngineError, match="must not be used any more"):
            use()
    assert calls.names().count("execute_async_v3") == before


def test_a_failed_check_puts_the_base_back(loaded: Load) -> None:
    def check(engine: TensorRTEngine, weights: dict[str, Tensor]) -> None:
        assert holds(engine, weights), "called after the refit"
        if FIRST in weights:
            raise EngineError("off by far")

    engine, _ = loaded(check=check)
    engine.with_weights({SECOND: NEW[SECOND]})
    with pytest.raises(EngineError, match="off by far; the refit was undone"):
        engine.with_weights({FIRST: NEW[FIRST]})
    assert holds(engine, {})


def test_a_failed_check_of_the_base_ends_the_engine(loaded: Load) -> None:
    def check(_engine: TensorRTEngine, weights: dict[str, Tensor]) -> None:
        if not weights:
            raise EngineError("off by far")

    engine, _ = loaded(check=check)
    engine.with_weights({SECOND: NEW[SECOND]})
    with pytest.raises(EngineError, match="off by far, and with the weights it was built with"):
        engine.with_weights({})
    with pytest.raises(EngineError, match="must not be used"):
        engine.bind(B=2)


def test_control_c_during_the_check_leaves_the_base(loaded: Load) -> None:
    def check(_engine: TensorRTEngine, _weights: dict[str, Tensor]) -> None:
        raise KeyboardInterrupt

    engine, _ = loaded(check=check)
    with pytest.raises(KeyboardInterrupt):
        engine.with_weights({FIRST: NEW[FIRST]})
    assert holds(engine, {})


def test_an_engine_is_let_go_at_once(loaded: Load) -> None:
    """Its memory is waited for where networks are loaded in turn."""
    engine, _ = loaded()
    engine.with_weights({FIRST: NEW[FIRST]})
    engine.bind(B=2)
    alive = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert alive() is None
    finally:
        gc.enable()


def test_a_fixed_engine_says_so(loaded: Load) -> None:
    engine, calls = loaded(refittable=())
    with pytest.raises(FixedWeightsError, match="fixed when it built the engine"):
        engine.with_weights({FIRST: NEW[FIRST]})
    assert refits(calls) == []


def test_the_double_forbids_what_tensorrt_forbids(tmp_path: Path) -> None:
    engine, _ = load(network(tmp_path), engine_file(), waits=False)
    engine.bind(B=2)
    with pytest.raises(ViolationError, match="pending"):
        engine.with_weights({FIRST: NEW[FIRST]})
    engine, calls = load(network(tmp_path), engine_file())
    with calls.capture(), pytest.raises(ViolationError, match="during a capture"):
        engine.with_weights({FIRST: NEW[FIRST]})
    assert torch.equal(held(engine)[FIRST], base()[FIRST])
