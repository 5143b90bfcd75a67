"""One builder for both flavours: what differs is asked of the module."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kdrt_engines.tensorrt.evidence import BuildLog
from kdrt_engines.tensorrt.job import BuildJob
from kdrt_engines.tensorrt.worker import BuildError, Monitor, build
from tests.support.fake_trt import LAYERS, fake

SHAPES = {"sample": ((1, 4), (2, 4), (8, 4)), "not read": ((1,), (1,), (1,))}


def job(tmp_path: Path, module: str, **changes: Any) -> BuildJob:
    fields: dict[str, Any] = {
        "module": module,
        "onnx": "model.onnx",
        "output": str(tmp_path / "engine.plan"),
        "compute_capabilities": (86, 89) if module == "tensorrt_rtx" else (90,),
        "profiles": (SHAPES,),
        "flags": {"TF32": False},
    }
    return BuildJob(**fields | changes)


def monitor(cancelled: bool = False) -> Monitor:
    event = threading.Event()
    if cancelled:
        event.set()
    return Monitor(lambda _phase: None, event)


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_what_both_flavours_do(tmp_path: Path, module: str) -> None:
    trt = fake(module)
    built = build(trt, job(tmp_path, module), monitor(), BuildLog())
    assert built is not None
    assert (tmp_path / "engine.plan").read_bytes() == b"engine"
    assert built.version == trt.__version__
    assert (built.attention_sites, built.fused_attention) == (2, 2)
    assert built.kernels == {"kgen": 2, "gemm": 1}
    assert built.scratch_memory == 4096
    (config,) = trt.made
    assert config.flags == {"TF32": False}
    assert config.profiling_verbosity.name == "DETAILED"
    assert config.profiles == [{"sample": SHAPES["sample"]}]
    assert trt.network_flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED


def test_only_rtx_is_told_its_targets(tmp_path: Path) -> None:
    rtx, plain = fake("tensorrt_rtx"), fake("tensorrt")
    build(rtx, job(tmp_path, "tensorrt_rtx"), monitor(), BuildLog())
    build(plain, job(tmp_path, "tensorrt"), monitor(), BuildLog())
    assert rtx.made[0].targets == {0: "SM86", 1: "SM89"}
    assert not hasattr(plain.made[0], "targets")


def test_a_module_without_the_strong_typing_flag(tmp_path: Path) -> None:
    trt = fake("tensorrt")
    trt.NetworkDefinitionCreationFlag = object()
    assert build(trt, job(tmp_path, "tensorrt"), monitor(), BuildLog())
    assert trt.network_flags == 0


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_only_the_named_weights_stay_open(tmp_path: Path, module: str) -> None:
    trt = fake(module)
    refittable = ("a.weight", "c.weight")
    build(trt, job(tmp_path, module, refittable=refittable), monitor(), BuildLog())
    assert trt.made[0].flags == {"TF32": False, "REFIT_INDIVIDUAL": True}
    assert trt.network.marked == ["a.weight", "c.weight"]


def test_all_weights_stay_open_where_none_can_be_named(tmp_path: Path) -> None:
    trt = fake("tensorrt", individual=False)
    build(trt, job(tmp_path, "tensorrt", refittable=("a.weight",)), monitor(), BuildLog())
    assert trt.made[0].flags == {"TF32": False, "REFIT": True}
    assert trt.network.marked == []


def test_a_weight_that_tensorrt_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"find the weight 'z\.weight' under that name"):
        build(
            fake("tensorrt"),
            job(tmp_path, "tensorrt", refittable=("a.weight", "z.weight")),
            monitor(),
            BuildLog(),
        )
    assert not (tmp_path / "engine.plan").exists()


def test_several_profiles_keep_their_order(tmp_path: Path) -> None:
    trt = fake("tensorrt_rtx")
    other = {"sample": ((1, 4), (1, 4), (1, 4))}
    build(trt, job(tmp_path, "tensorrt_rtx", profiles=(SHAPES, other)), monitor(), BuildLog())
    assert [p["sample"][2] for p in trt.made[0].profiles] == [(8, 4), (1, 4)]


@pytest.mark.parametrize(
    ("module", "changes", "said"),
    [
        ("tensorrt", {"flags": {"REQUIRE_USER_ALLOCATION": True}}, "no builder flag REQUIRE_USER"),
        ("tensorrt_rtx", {"compute_capabilities": (90,)}, "has no target sm90"),
    ],
)
def test_what_a_flavour_lacks_is_named(
    tmp_path: Path, module: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BuildError, match=said):
        build(fake(module), job(tmp_path, module, **changes), monitor(), BuildLog())


def test_a_network_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no such operator"):
        build(fake("tensorrt", parses=False), job(tmp_path, "tensorrt"), monitor(), BuildLog())


def test_a_refusal_carries_tensorrts_reason(tmp_path: Path) -> None:
    trt = fake("tensorrt_rtx", content=None, messages=(("ERROR", "FP32 GEMM is not supported"),))
    with pytest.raises(BuildError, match="FP32 GEMM is not supported"):
        build(trt, job(tmp_path, "tensorrt_rtx"), monitor(), BuildLog())
    assert not (tmp_path / "engine.plan").exists()


def test_cancelling_stops_at_the_next_step(tmp_path: Path) -> None:
    trt = fake("tensorrt_rtx")
    assert build(trt, job(tmp_path, "tensorrt_rtx"), monitor(cancelled=True), BuildLog()) is None
    assert not (tmp_path / "engine.plan").exists()


def test_phases_are_followed_back_to_the_one_around_them() -> None:
    phases: list[str] = []
    follower = Monitor(phases.append, threading.Event())
    follower.start("build", None)
    follower.start("compile", "build")
    follower.finish("compile")
    follower.finish("build")
    assert phases == ["build", "compile", "build"]


def test_a_lost_message_is_not_a_zero(tmp_path: Path) -> None:
    trt = fake("tensorrt_rtx", messages=())
    built = build(trt, job(tmp_path, "tensorrt_rtx"), monitor(), BuildLog())
    assert built is not None
    assert (built.fused_attention, built.kernels, built.scratch_memory) == (None, None, None)


def test_pattern_lines_are_no_evidence() -> None:
    log = BuildLog()
    log.add("VERBOSE", "Found __mye1 to be part of self-attention pattern _gemm_mha_v2")
    assert log.fused_attention is None
    log.add("VERBOSE", LAYERS)
    assert log.fused_attention == 2


def test_a_dump_of_another_form_is_no_evidence() -> None:
    log = BuildLog()
    log.add("VERBOSE", "Layers:\n[0] MatMul_3 kernel=gemm")
    assert (log.fused_attention, log.kernels) == (None, None)


def test_the_type_of_a_kernel_is_that_it_multiplies_in() -> None:
    """A weight that is dequantised for a kernel is multiplied in 16 bits."""

    def kernel(name: str, kind: str, inputs: list[str], constants: list[str]) -> str:
        sides = (
            ", ".join(
                f"{{ Name: t, Dimensions: [{tensor.split()[0]}], Strides: [1,1], Datatype: "
                f"{tensor.split()[1]}, Format: (Linear) }}"
                for tensor in side
            )
            for side in (inputs, constants)
        )
        inside, outside = sides
        return (
            f"Name: {name}, LayerType: {kind}, Inputs: [ {inside}], Constants: [ {outside}], "
            "Outputs: [ { Name: o, Dimensions: [-1,8], Datatype: Float }], TacticName: x\n"
        )

    log = BuildLog()
    log.add(
        "VERBOSE",
        "Layers:\n"
        + kernel("/a/Conv_myl1_1", "correlation", ["-1,8 FP8"], ["8,8,3,3 FP8", "1,8 Float"])
        + kernel("/b/Conv_myl1_2", "correlation", ["-1,8 Int8", "-1,8 Half"], ["8,8,3,3 Int8"])
        + kernel("/c/MatMul_myl1_3", "gemm", ["-1,8 FP8", "-1,8 FP8"], ["1 Float"])
        + kernel("__myl_FcAdd_myl1_4", "runtime_fusion", ["-1,8 Half"], ["1,8 Half", "8,8 Half"])
        + kernel("__myl_CastMulFc_myl1_5", "runtime_fusion", ["-1,8 FP8", "8,8 Half"], [])
        + kernel("__myl_CastFc_myl1_6", "runtime_fusion", ["-1,8 Half"], ["8,8 Int4", "1,8 Half"])
        + kernel("_gemm_mha_v2_myl1_7", "kgen", ["-1,8 FP8", "8,-1 FP8", "-1,8 FP8"], [])
        + kernel("__myl_Silu_myl1_8", "kgen", ["-1,8 Half"], []),
    )
    assert log.multiplying == {
        "convolution fp8": 1,
        "convolution int8": 1,
        "product fp8": 1,
        "product half": 2,
        "product int4 weights": 1,
        "attention fp8": 1,
    }


def test_every_profile_has_kernels_of_its_own() -> None:
    log = BuildLog()
    log.add("VERBOSE", LAYERS + LAYERS)
    assert (log.fused_attention, log.kernels) == (4, {"kgen": 4, "gemm": 2})


def test_problems_are_kept_and_not_without_end() -> None:
    log = BuildLog()
    for index in range(100):
        log.add("WARNING", f"warning {index}")
        log.add("WARNING", "again and again")
        log.add("ERROR", f"not UTF-8: \udcff {index}")
    assert len(log.warnings) == len(log.errors) == 20
    assert log.warnings.count("again and again") == 1
    assert log.errors[-1].endswith("99")


def test_jobs_survive_the_journey(tmp_path: Path) -> None:
    sent = job(tmp_path, "tensorrt_rtx", refittable=("a.weight",))
    received = BuildJob.from_json(sent.to_json())
    assert received.compute_capabilities == sent.compute_capabilities
    assert received.refittable == ("a.weight",)
    assert received.to_json() == sent.to_json()
