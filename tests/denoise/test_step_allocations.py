"""A request allocates before its first step and after its last, and in between nothing."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import kdrt

FEW_BYTES = 4096
"""What Python's own objects may grow by over some steps: caches of small numbers and the like."""


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> kdrt.Pipeline:
    return kdrt.load(demo_bundle)


# Not guidance_rescale: PyTorch's standard deviation makes a number of its own.
ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"sampler": "euler_ancestral"},
    {"sampler": "heun"},
    {"guidance_scale": 1.0},
    {"guidance_interval": (0.5, 5.0)},
]


def begun(pipe: kdrt.Pipeline, arguments: dict[str, Any]) -> kdrt.Generation:
    """A run whose buffers of this size are made, three steps in."""
    pipe("a red circle", seed=1, steps=4, **arguments)
    generation = pipe.stream("a red circle", seed=1, steps=12, **arguments)
    for _ in range(3):
        next(generation)
    return generation


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_no_step_allocates_a_tensor(pipe: kdrt.Pipeline, arguments: dict[str, Any]) -> None:
    generation = begun(pipe, arguments)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for _ in range(6):
            next(generation)
    assert {event.key for event in record.key_averages()} & {"aten::lerp", "aten::add"}
    allocated = {e.key: e.self_cpu_memory_usage for e in record.key_averages()}
    assert not any(allocated.values())


def test_the_profiler_sees_an_allocation() -> None:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = torch.ones(8) * 2.0
    assert kept.numel() == 8
    assert any(event.self_cpu_memory_usage for event in record.key_averages())


def test_python_keeps_nothing_of_a_step(pipe: kdrt.Pipeline) -> None:
    generation = begun(pipe, {})
    gc.collect()
    tracemalloc.start()
    try:
        next(generation)
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(6):
            next(generation)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < FEW_BYTES
