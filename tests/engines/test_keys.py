"""Whatever an engine depends on changes its key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdrt_engines.keys import REFIT, EngineKey
from kdrt_engines.profiles import Profile, Range

KEY = EngineKey(
    component="unet",
    network="ab" * 32,
    backend="tensorrt-rtx",
    backend_version="1.7.1.116",
    compute_capabilities=(86, 89),
    profiles=(Profile("any", {"B": Range(1, 2, 8), "h": Range(4, 8, 16)}),),
    dtype="float16",
    flags={"TF32": True},
)

CHANGES: dict[str, Any] = {
    "component": "vae_decoder",
    "network": "cd" * 32,
    "backend": "tensorrt",
    "backend_version": "1.7.1.117",
    "compute_capabilities": (86,),
    "profiles": (Profile("any", {"B": Range(1, 2, 8), "h": Range(4, 9, 16)}),),
    "dtype": "bfloat16",
    "flags": {"TF32": False},
}


def test_every_field_has_a_change_here() -> None:
    assert set(CHANGES) == set(EngineKey.__dataclass_fields__)


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_counts(field: str) -> None:
    changed = replace(KEY, **{field: CHANGES[field]})
    assert changed.digest() != KEY.digest()
    assert changed.folder() != KEY.folder()


def test_the_key_of_equal_things_is_equal() -> None:
    assert replace(KEY).digest() == KEY.digest()
    assert KEY.folder() == f"unet-sm86-sm89-{KEY.digest()[:16]}"


def test_a_refittable_engine_has_a_key_of_its_own() -> None:
    refittable = replace(KEY, flags={**KEY.flags, REFIT: True})
    assert (KEY.refittable, refittable.refittable) == (False, True)
    assert refittable.folder() != KEY.folder()
