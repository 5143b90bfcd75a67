"""Damaged layers of every kind are told in one sentence, and never by another exception."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kdrt.adapters.lora_file import parse_lora
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_names import slots
from kdrt.errors import InvalidRequestError
from tests.support.lycoris_layers import AT_FULL_STRENGTH, MODULES, adapted_layer

ONE = torch.ones
LAYER = "lora_unet_x"

DAMAGED = {
    "half of a LoHa": ({"hada_w1_a": ONE(4, 2)}, "hada_w1_a' is without its hada_w1_b"),
    "LoHa of two sizes": (
        {"hada_w1_a": ONE(4, 2), "hada_w1_b": ONE(2, 4)}
        | {"hada_w2_a": ONE(4, 1), "hada_w2_b": ONE(1, 4)},
        r"hada_w2_a \[4, 1\].*both halves must be of one size",
    ),
    "LoKr without its second matrix": ({"lokr_w1": ONE(2, 2)}, "is without its lokr_w2"),
    "LoKr with half of it": (
        {"lokr_w1": ONE(2, 2), "lokr_w2_b": ONE(1, 2)},
        "is without its lokr_w2_a",
    ),
    "LoKr with it twice": (
        {"lokr_w1": ONE(2, 2), "lokr_w1_a": ONE(2, 1), "lokr_w2": ONE(2, 2)},
        r"one matrix twice, as 'lora_unet_x.lokr_w1' and as 'lora_unet_x.lokr_w1_a'",
    ),
    "LoKr of two ranks": (
        {"lokr_w1_a": ONE(2, 1), "lokr_w1_b": ONE(1, 2)}
        | {"lokr_w2_a": ONE(2, 2), "lokr_w2_b": ONE(2, 2)},
        "of one rank",
    ),
    "GLoRA of other ranks": (
        {"a1.weight": ONE(4, 3), "a2.weight": ONE(2, 4), "b1.weight": ONE(4, 2)}
        | {"b2.weight": ONE(2, 4)},
        r"a1 must be \[in, rank\]",
    ),
    "OFT of oblong blocks": ({"oft_blocks": ONE(2, 2, 3)}, "blocks must be square"),
    "OFT of other rows": ({"oft_blocks": ONE(2, 2, 2), "rescale": ONE(3)}, "a factor for each"),
    "OFT without blocks": ({"rescale": ONE(4, 1)}, "nothing beside 'lora_unet_x.rescale'"),
    "BOFT of odd blocks": ({"oft_blocks": ONE(1, 2, 3, 3)}, "an even size for BOFT"),
    "OFT of inputs, no triangle": ({"oft_R.weight": ONE(2, 4)}, "size - 1"),
    "(IA)³ of a matrix": ({"weight": ONE(2, 2), "on_input": ONE(())}, "one number for each row"),
    "(IA)³ without a side": ({"weight": ONE(2)}, "belong to no LoRA kdrt knows"),
    "(IA)³ of two sides": ({"weight": ONE(2), "on_input": ONE(2)}, "must be one number"),
    "DoRA of other rows": (
        {"lora_down.weight": ONE(2, 4), "lora_up.weight": ONE(4, 2), "dora_scale": ONE(5, 1)},
        r"dora_scale \[5, 1\]; a magnitude is needed for each of 4 rows",
    ),
    "DoRA of a matrix": (
        {"lora_down.weight": ONE(2, 4), "lora_up.weight": ONE(4, 2), "dora_scale": ONE(2, 2)},
        "a magnitude is needed",
    ),
    "DoRA with two magnitudes": (
        {"lora_down.weight": ONE(2, 4), "lora_up.weight": ONE(4, 2), "dora_scale": ONE(4, 1)}
        | {"lora_magnitude_vector": ONE(4)},
        "its magnitudes twice, as 'lora_unet_x.dora_scale' and as 'lora_unet_x.lora_magnitude_",
    ),
    "bias of other rows": (
        {"lora_A.weight": ONE(2, 4), "lora_B.weight": ONE(4, 2), "lora_B.bias": ONE(3)},
        r"bias must be \[out\]",
    ),
    "two kinds": (
        {"oft_blocks": ONE(2, 2, 2), "lokr_w1": ONE(2, 2)},
        "is of two kinds at once: it is OFT by 'lora_unet_x.oft_blocks', to which",
    ),
    "rank beyond reason": (
        {"hada_w1_a": ONE(1, 9000), "hada_w1_b": ONE(9000, 1)}
        | {"hada_w2_a": ONE(1, 9000), "hada_w2_b": ONE(9000, 1)},
        "rank 9000; at most 8192",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_wrong_is_named(case: str) -> None:
    parts, words = DAMAGED[case]
    with pytest.raises(InvalidRequestError, match=words):
        parse_lora({f"{LAYER}.{part}": tensor for part, tensor in parts.items()})


MUTATIONS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "gone": lambda _: None,
    "transposed": lambda tensor: tensor.transpose(0, -1) if tensor.ndim else tensor,
    "one row more": lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor,
    "one axis more": lambda tensor: tensor.unsqueeze(0),
    "one axis less": lambda tensor: tensor.flatten(),
    "empty": lambda tensor: tensor.flatten()[:0],
    "not finite": lambda tensor: tensor.float() * float("nan"),
    "whole numbers": lambda tensor: tensor.int(),
}


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from([*MODULES, *AT_FULL_STRENGTH]),
    kernel=st.sampled_from([0, 1, 3]),
    mutation=st.sampled_from([*MUTATIONS]),
    place_of=st.integers(0, 6),
)
def test_a_part_that_is_wrong(kind: str, kernel: int, mutation: str, place_of: int) -> None:
    layer = nn.Conv2d(10, 12, kernel) if kernel else nn.Linear(10, 12)
    file = adapted_layer(kind, layer, rank=2, alpha=1, scale=1).file
    key = sorted(file)[place_of % len(file)]
    changed = MUTATIONS[mutation](file[key])
    state = {k: changed if k == key else t for k, t in file.items()}
    shapes = {f"layer.{name}": tuple(p.shape) for name, p in layer.named_parameters()}
    sentence = ""
    try:
        layers = parse_lora({k: t for k, t in state.items() if t is not None}, None, "mine")
        placed = place(layers["unet"], slots(shapes))
        merged([(placed, 1.0)], lambda name: torch.ones(shapes[name]), "mine")
    except InvalidRequestError as error:
        sentence = str(error)
    assert sentence.startswith("mine") if sentence else mutation not in ("not finite", "empty")
    assert "\n" not in sentence


PARTS = {
    "LoRA": "lora_down.weight lora_up.weight lora_mid.weight lora_B.bias dora_scale "
    "lora_magnitude_vector alpha",
    "LoHa": "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 dora_scale alpha",
    "LoKr": "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2 dora_scale alpha",
    "GLoRA": "a1.weight a2.weight b1.weight b2.weight bm.weight alpha",
    "OFT": "oft_blocks rescale alpha",
    "OFT of inputs": "oft_R.weight alpha",
    "(IA)³": "weight on_input",
    "(IA)³ of peft": "ia3_l",
}
SIZES: list[tuple[int, ...]] = [
    *((), (1,), (2,), (4,), (0, 4), (1, 4), (4, 1), (2, 2), (4, 2), (2, 4), (4, 4), (4, 1, 1, 1)),
    *((2, 2, 2), (1, 4, 4), (2, 4, 1, 1), (4, 2, 1, 1), (2, 2, 3, 3), (2, 2, 2, 2), (1, 1, 4, 4)),
]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from([*PARTS]))
def test_parts_of_any_sizes_are_merged_or_refused(data: st.DataObject, kind: str) -> None:
    parts = data.draw(st.sets(st.sampled_from(PARTS[kind].split()), min_size=1))
    state = {f"{LAYER}.{part}": ONE(data.draw(st.sampled_from(SIZES))) for part in sorted(parts)}
    shape = data.draw(st.sampled_from([(4, 4), (4, 4, 1, 1), (4, 4, 3, 3), (4, 2)]))
    shapes = {"x.weight": shape, "x.bias": (4,)}
    with contextlib.suppress(InvalidRequestError):
        placed = place(parse_lora(state)["unet"], slots(shapes))
        changed = merged([(placed, 1.0)], lambda name: ONE(shapes[name]))
        assert all(weight.shape == shapes[name] for name, weight in changed.items())


@pytest.mark.parametrize(
    "kind", [k for k in (*MODULES, *AT_FULL_STRENGTH) if "difference" not in k]
)
def test_another_model_is_refused_by_size(kind: str) -> None:
    file = adapted_layer(kind, nn.Linear(10, 12, bias=False), rank=2, alpha=1, scale=1).file
    placed = place(parse_lora(file)["unet"], slots({"layer.weight": (14, 9)}))
    with pytest.raises(InvalidRequestError, match=r"another model: at layer\.weight it has .*\d"):
        merged([(placed, 1.0)], lambda _: torch.ones(14, 9), "mine")
