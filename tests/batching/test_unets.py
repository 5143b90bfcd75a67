"""Requests that need another UNet than those before them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdrt
from kdrt_engines import Binding
from tests.support.control_pair import ControlPair
from tests.support.diffusers_pair import HEIGHT, WIDTH
from tests.support.gates import made
from tests.support.requests import request_of

PLAIN: dict[str, Any] = {"prompt": "a", "seed": 1, "steps": 2}
CONTROL = kdrt.ControlImage(np.zeros((HEIGHT, WIDTH), np.uint8), "edges")


def test_nothing_stays_bound_to_a_unet_that_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory would stay with what is bound."""
    pipe = ControlPair(tmp_path, "sd").ours
    plain = pipe.engines["unet"]
    bind, bound = plain.bind, []

    def remembered(**dims: int) -> Binding:
        binding = bind(**dims)
        bound.append(weakref.ref(binding))
        return binding

    monkeypatch.setattr(plain, "bind", remembered)
    with kdrt.Batcher(pipe) as batcher:
        made(batcher.submit(request_of(PLAIN)))
        made(batcher.submit(request_of({**PLAIN, "control": CONTROL})))
        assert bound
        gc.collect()
        assert not [binding for binding in bound if binding() is not None]
        count = len(bound)
        made(batcher.submit(request_of(PLAIN)))
        assert len(bound) > count
