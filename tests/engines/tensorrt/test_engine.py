"""The TensorRT runtime drives TensorRT as its documentation asks, and does nothing in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdrt_engines import EngineError, EngineSpec, FixedWeightsError, ShapeError, TensorSpec
from kdrt_engines.profiles import Profile, Range
from kdrt_engines.tensorrt.engine import TensorRTEngine
from kdrt_engines.tensorrt.scratch import ScratchMemory
from tests.support import trt_recorder

SPEC = EngineSpec(
    (
        TensorSpec("sample", "float16", ("B", 4, "h", "w")),
        TensorSpec("timestep", "float32", ("B",)),
        TensorSpec("time_ids", "float32", ("B", 6)),
    ),
    (TensorSpec("noise_pred", "float16", ("B", 4, "h", "w")),),
)
PIXELS = EngineSpec(
    (TensorSpec("image", "float32", ("B", 3, "8*h", "8*w")),),
    (TensorSpec("moments", "float32", ("B", 8, "h", "w")),),
)


def unet_file(*ranges: tuple[int, int, int, int]) -> trt_recorder.EngineFile:
    """Profiles as (lowest side, highest side, lowest batch, highest batch). The engine does not
    read ``time_ids``, as a traced graph drops what it does not use."""
    tensors = [
        trt_recorder.Tensor("sample", True, "HALF", (-1, 4, -1, -1)),
        trt_recorder.Tensor("timestep", True, "FLOAT", (-1,)),
        trt_recorder.Tensor("noise_pred", False, "HALF", (-1, 4, -1, -1)),
    ]
    profiles = [
        {
            "sample": ((b0, 4, s0, s0), (b0, 4, s0, s0), (b1, 4, s1, s1)),
            "timestep": ((b0,), (b0,), (b1,)),
        }
        for s0, s1, b0, b1 in ranges
    ]
    return trt_recorder.EngineFile(tensors, profiles)


def pixel_file() -> trt_recorder.EngineFile:
    tensors = [
        trt_recorder.Tensor("image", True, "FLOAT", (-1, 3, -1, -1)),
        trt_recorder.Tensor("moments", False, "FLOAT", (-1, 8, -1, -1)),
    ]
    shapes = ((1, 3, 64, 64), (1, 3, 64, 64), (2, 3, 128, 128))
    return trt_recorder.EngineFile(tensors, [{"image": shapes}])


def ranges(name: str, low: int, high: int, least: int, most: int) -> Profile:
    """The profile that `unet_file` writes for the same numbers."""
    side, batch = Range(low, low, high), Range(least, least, most)
    return Profile(name, {"B": batch, "h": side, "w": side})


SQUARE = ranges("square", 8, 64, 1, 4)


def load(
    file: trt_recorder.EngineFile,
    *,
    rtx: bool = True,
    spec: EngineSpec = SPEC,
    profiles: Sequence[Profile] = (SQUARE,),
    scratch: ScratchMemory | None = None,
    **options: Any,
) -> tuple[TensorRTEngine, trt_recorder.Calls]:
    trt = trt_recorder.module({b"engine": file}, rtx=rtx)
    gpu = trt_recorder.RecordedGpu(trt.calls)
    engine = TensorRTEngine(
        trt,
        b"engine",
        spec,
        profiles=profiles,
        scratch=scratch or ScratchMemory(gpu.device),
        gpu=gpu,
        **options,
    )
    return engine, trt.calls


@pytest.mark.parametrize("rtx", [True, False])
def test_binding_sets_everything_before_the_first_enqueue(rtx: bool) -> None:
    engine, calls = load(unet_file((8, 64, 1, 4)), rtx=rtx)
    binding = engine.bind(B=2, h=16, w=24)

    assert binding.inputs["sample"].shape == (2, 4, 16, 24)
    assert binding.inputs["time_ids"].shape == (2, 6), (
        "inputs an engine dropped can still be written"
    )
    assert binding.outputs["noise_pred"].dtype == torch.float16
    assert calls.names().count("execute_async_v3") == 1, "the warm-up run"
    assert ("set_input_shape", ("sample", (2, 4, 16, 24))) in calls.log


@pytest.mark.parametrize("rtx", [True, False])
def test_a_run_is_one_enqueue_and_nothing_else(rtx: bool) -> None:
    engine, calls = load(unet_file((8, 64, 1, 4)), rtx=rtx)
    binding = engine.bind(B=1, h=8, w=8)
    before = len(calls.log)
    with _NoTorch(), calls.capture():
        for _ in range(5):
            binding.run()
    assert calls.names()[before:] == ["execute_async_v3"] * 5


def test_the_tightest_profile_is_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdrt.engines")
    sizes = (8, 128, 1, 8), (8, 64, 1, 2), (64, 64, 1, 1)
    names = ("any", "square", "static")
    profiles = [ranges(name, *each) for name, each in zip(names, sizes, strict=True)]
    engine, calls = load(unet_file(*sizes), profiles=profiles)
    assert engine.bind(B=1, h=64, w=64).profile == "static"
    assert engine.bind(B=2, h=64, w=64).profile == "square"
    assert engine.bind(B=2, h=65, w=64).profile == "any"
    assert "optimization profile 'square' for B=2 h=64 w=64" in caplog.text
    chosen = [detail for name, detail in calls.log if name == "set_optimization_profile_async"]
    assert chosen == [2, 1, 0]
    assert engine.allows(B=8, h=128, w=8)
    assert not engine.allows(B=9, h=8, w=8)
    assert engine.limits() == {"B": (1, 8), "h": (8, 128), "w": (8, 128)}


def test_the_limits_are_those_of_one_profile() -> None:
    """Upright and lying images do not make large squares."""
    upright = Profile("portrait", {"B": Range(1, 1, 1), "h": Range(1, 8, 16), "w": Range(1, 1, 8)})
    lying = Profile("landscape", {"B": Range(1, 1, 1), "h": Range(1, 1, 7), "w": Range(1, 8, 16)})
    file = unet_file()
    file.profiles = [
        {
            "sample": ((1, 4, 1, 1), (1, 4, 8, 1), (1, 4, 16, 8)),
            "timestep": ((1,), (1,), (1,)),
        },
        {
            "sample": ((1, 4, 1, 1), (1, 4, 1, 8), (1, 4, 7, 16)),
            "timestep": ((1,), (1,), (1,)),
        },
    ]
    engine, _ = load(file, profiles=(upright, lying))
    assert engine.limits() == {"B": (1, 1), "h": (1, 16), "w": (1, 8)}
    assert engine.allows(B=1, h=7, w=16)
    assert not engine.allows(B=1, h=16, w=16)


def test_sizes_outside_of_every_profile_are_refused_with_what_there_is() -> None:
    engine, _ = load(unet_file((8, 64, 1, 4)))
    with pytest.raises(ShapeError, match=r"h=72.*square \(B=1\.\.4 h=8\.\.64 w=8\.\.64\)"):
        engine.bind(B=1, h=72, w=64)
    with pytest.raises(ShapeError, match="no size was given for 'w'"):
        engine.bind(B=1, h=8)


def test_profiles_are_in_latents_where_the_engine_is_in_pixels() -> None:
    engine, _ = load(pixel_file(), spec=PIXELS, profiles=(ranges("any", 8, 16, 1, 2),))
    engine.bind(B=1, h=8, w=8)
    engine.bind(B=2, h=16, w=16)
    for h in (7, 17):
        with pytest.raises(ShapeError):
            engine.bind(B=1, h=h, w=8)


def test_an_engine_whose_sizes_are_not_the_records_is_refused() -> None:
    with pytest.raises(EngineError, match="sizes of 'sample' in the engine are not those of its"):
        load(unet_file((8, 63, 1, 4)))


def test_weights_are_fixed() -> None:
    engine, _ = load(unet_file((8, 64, 1, 4)))
    with pytest.raises(FixedWeightsError, match="fixed when it built the engine"):
        engine.with_weights({})


def test_networks_share_one_block_that_grows_and_stays_valid_for_all() -> None:
    scratch = ScratchMemory(torch.device("cpu"))
    engine, calls = load(unet_file((8, 64, 1, 4)), scratch=scratch)
    small = engine.bind(B=1, h=8, w=8)
    first = scratch.block
    assert small.workspace()[0] is first

    large = engine.bind(B=4, h=64, w=64)
    assert scratch.block.numel() > first.numel()
    assert small.workspace()[0] is large.workspace()[0] is scratch.block
    # The recorder raises if the small binding were left with memory of the wrong size.
    small.run()

    again = engine.bind(B=1, h=9, w=9)
    assert again.workspace()[0] is scratch.block
    sizes = [detail for name, detail in calls.log if name == "set_device_memory"]
    assert sizes[-1] == scratch.block.numel()


def test_compiled_kernels_are_kept_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "engines" / "runtime.cache"
    engine, calls = load(unet_file((8, 64, 1, 4)), runtime_cache=path)
    engine.bind(B=1, h=8, w=8)
    written = path.read_bytes()
    engine.bind(B=1, h=8, w=8)
    assert path.read_bytes() == written

    engine, calls = load(unet_file((8, 64, 1, 4)), runtime_cache=path)
    assert ("cache.deserialize", len(written)) in calls.log
    engine.bind(B=2, h=8, w=8)
    assert len(path.read_bytes()) > len(written)


def test_a_cache_of_another_gpu_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runtime.cache"
    path.write_bytes(b"somebody else's")
    engine, _ = load(unet_file((8, 64, 1, 4)), runtime_cache=path)
    engine.bind(B=1, h=8, w=8)
    assert path.read_bytes().startswith(b"cache:")


def test_an_engine_that_does_not_load_says_why() -> None:
    trt = trt_recorder.module({}, rtx=True)
    gpu = trt_recorder.RecordedGpu()
    with pytest.raises(EngineError, match="magic tag"):
        TensorRTEngine(
            trt, b"?", SPEC, profiles=[SQUARE], scratch=ScratchMemory(gpu.device), gpu=gpu
        )


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("noise", "HALF", "outputs are noise, the component's noise_pred"),
        ("noise_pred", "FLOAT", "'noise_pred' is float32 in the engine and float16"),
    ],
)
def test_an_engine_of_another_component_is_refused(name: str, dtype: str, message: str) -> None:
    file = unet_file((8, 64, 1, 4))
    file.tensors = [*file.tensors[:2], trt_recorder.Tensor(name, False, dtype, (-1, 4, -1, -1))]
    with pytest.raises(EngineError, match=message):
        load(file)


def test_profiles_that_the_record_does_not_name_are_refused() -> None:
    with pytest.raises(EngineError, match="has 2 optimization profiles, its record names 1"):
        load(unet_file((8, 64, 1, 4), (8, 16, 1, 1)))


def test_a_failed_enqueue_carries_the_reason() -> None:
    engine, _ = load(unet_file((8, 64, 1, 4)))
    binding = engine.bind(B=1, h=8, w=8)
    binding._context.fails = True
    with pytest.raises(EngineError, match="could not enqueue the network: out of luck"):
        binding.run()


class _NoTorch(TorchDispatchMode):
    """Fails on any tensor operation: a steady-state run needs none."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise AssertionError(f"{func} in the steady state")
