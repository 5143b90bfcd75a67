"""Whatever is given for an argument, it is taken or refused by a KdrtError."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdrt.compat.arguments import ARGUMENTS, check_arguments, dtypes, hub_options
from kdrt.compat.device_arguments import asked_for
from kdrt.compat.noise import initial_noise, noise_seeds
from kdrt.errors import KdrtError

ANYTHING: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.sampled_from(
        [torch.float16, torch.device("cpu"), torch.zeros(2), torch.Generator, "cuda"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
NAMES = st.sampled_from([*ARGUMENTS, "nonsense"])
METHODS = st.sampled_from(["from_pretrained", "from_single_file", "from_pipe"])


@settings(max_examples=50)
@given(METHODS, st.dictionaries(NAMES, ANYTHING, max_size=3))
def test_loading(method: str, options: dict[str, Any]) -> None:
    with contextlib.suppress(KdrtError):
        check_arguments(method, options)
        assert "nonsense" not in options
        for name, value in options.items():
            refused = ARGUMENTS[name] not in ("honoured", "inert")
            assert not refused or value is None or value is False
    assert all(isinstance(name, str) for name, _ in hub_options(options))


@given(ANYTHING)
def test_dtypes(value: Any) -> None:
    with contextlib.suppress(KdrtError):
        assert all(each is None or isinstance(each, torch.dtype) for each in dtypes(value))


@given(st.lists(ANYTHING, max_size=2), st.dictionaries(st.text(max_size=6), ANYTHING, max_size=1))
def test_places(arguments: list[Any], options: dict[str, Any]) -> None:
    with contextlib.suppress(KdrtError):
        device, dtype = asked_for(arguments, options)
        assert device in (None, "cpu", "cuda")
        assert dtype is None or isinstance(dtype, torch.dtype)


@given(ANYTHING, st.integers(1, 3))
def test_seeds(value: Any, images: int) -> None:
    with contextlib.suppress(KdrtError):
        seeds = noise_seeds(value, None, images)
        each = seeds if isinstance(seeds, list) else [seeds]
        assert all(0 <= seed < 2**64 for seed in each)
    with contextlib.suppress(KdrtError):
        noise = initial_noise((images, 1, 2, 2), value, torch.float32, torch.device("cpu"))
        assert noise.shape[0] == images
