"""What peft may say beside a LoRA is used, refused in one sentence, or means nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdrt.adapters.lora_facts import facts_of
from kdrt.adapters.lora_file import LoraFile, parse_lora
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_metadata import PeftConfig, peft_configs
from kdrt.adapters.lora_names import slots
from kdrt.errors import InvalidRequestError

INF = float("inf")
# Each of a kind for which other numbers of peft's count.
TENSORS = {
    "unet.plain.lora_A.weight": torch.ones(2, 4),
    "unet.plain.lora_B.weight": torch.ones(4, 2),
    "unet.whole.lokr_w1": torch.ones(2, 2),
    "unet.whole.lokr_w2": torch.ones(2, 2),
    "unet.turned.oft_R.weight": torch.full((2, 1), 0.5),
}
SHAPES = {f"{name}.weight": (4, 4) for name in ("plain", "whole", "turned")}


def said(**values: Any) -> dict[str, str]:
    """Metadata as diffusers writes them."""
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in values.items()})}


def config_of(**values: Any) -> PeftConfig:
    return peft_configs(said(**values), "x")["unet"]


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("r", -4, "a whole number of at least 0, not -4"),
        ("r", 10**400, "at most 1000000, not 1000"),
        ("r", 2.5, "a whole number"),
        ("r", True, "a whole number"),
        ("num_cayley_neumann_terms", 0, "a whole number of at least 1"),
        ("num_cayley_neumann_terms", 65, "at most 64, not 65"),
        ("num_cayley_neumann_terms", INF, "a whole number"),
        ("num_cayley_neumann_terms", None, "a whole number"),
        ("lora_alpha", "1", "a finite number, not '1'"),
        ("lora_alpha", True, "a finite number"),
        ("lora_alpha", float("nan"), "a finite number"),
        ("alpha", 10**400, "a finite number"),
        ("alpha", [1], "a finite number"),
        ("alpha_pattern", [1], "a mapping"),
        ("alpha_pattern", {"to_q": None}, "a finite number, not None"),
        ("alpha_pattern", {"to_q": -INF}, "a finite number"),
        ("use_rslora", "yes", "True or False, not 'yes'"),
        ("use_cayley_neumann", 2, "True or False"),
        ("coft", [1], "True or False"),
    ],
)
def test_a_value_that_is_none_is_named(key: str, value: object, rule: str) -> None:
    with pytest.raises(InvalidRequestError, match=rf"^x: .* in its metadata must be {rule}"):
        config_of(**{key: value})


def test_what_is_not_said_has_pefts_default() -> None:
    usual = PeftConfig(None, {}, {}, root=False, rank=None, oft_terms=5)
    assert config_of(other=1) == usual
    assert config_of(r=0, lora_alpha=None, alpha_pattern={}, use_rslora=None) == usual
    assert config_of(use_cayley_neumann=False, num_cayley_neumann_terms="x").oft_terms is None
    assert config_of(r=10_000, num_cayley_neumann_terms=64).oft_terms == 64


KEYS = [
    *("r", "lora_alpha", "alpha", "alpha_pattern", "use_rslora", "use_cayley_neumann"),
    *("num_cayley_neumann_terms", "coft"),
]
NUMBERS = st.integers(-2, 70) | st.sampled_from([10**9, 10**400, -(10**400), 0.5, 1e308, -1e-308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["plain", "^whole", "to.q", ".*"]), inner, max_size=2)
    ),
    max_leaves=3,
)


@settings(max_examples=80, deadline=None)
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_whatever_peft_says_is_merged_or_refused(values: dict[str, Any]) -> None:
    sentence = "mine"
    changed: dict[str, Tensor] = {}
    try:
        layers = parse_lora(TENSORS, said(**values), "mine")["unet"]
        changed = merged([(place(layers, slots(SHAPES)), 1.0)], lambda _: torch.ones(4, 4), "mine")
    except InvalidRequestError as error:
        sentence = str(error)
    assert sentence.startswith("mine")
    assert "\n" not in sentence
    assert all(weight.isfinite().all() for weight in changed.values())


@settings(max_examples=25, deadline=None)
@given(tags=st.dictionaries(st.text(max_size=2), st.dictionaries(st.text(max_size=2), VALUES)))
def test_whatever_kohya_says_of_tags_can_be_told(tags: dict[str, Any]) -> None:
    metadata = {"ss_tag_frequency": json.dumps(tags)}
    words = facts_of(LoraFile(Path("x"), "", {}, metadata=metadata)).words
    assert " ".join(words).encode().decode() == " ".join(words)


def test_a_series_of_one_term_turns_nothing() -> None:
    key = "unet.turned.oft_R.weight"
    for terms, nothing in ((1, True), (2, False)):
        (layer,) = parse_lora({key: TENSORS[key]}, said(num_cayley_neumann_terms=terms))[
            "unet"
        ].values()
        assert layer.changes_nothing == nothing
        assert bool(layer.change(torch.ones(4, 4), 1.0).any()) != nothing
