"""``--keep-fp32``: a planted overflow fails in float16, and what is kept makes it pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from kdrt_export.component_export import export_component
from kdrt_export.components import ExportComponent
from kdrt_export.errors import ExportError, VerificationError
from kdrt_export.keep_fp32 import KeepFp32, kept_in_float32
from kdrt_export.report import Silent
from kdrt_export.walk import Part
from tests.support.components import COMPONENTS
from tests.support.planted import OVERFLOWING, TRACED, PlantedOverflow

SHRINKING = "blocks.1.shrink"
"""Reads what overflows."""


def part(dtype: torch.dtype = torch.float16, factor: float = 1e6) -> Part:
    verified = [{"B": 2, "h": 4, "w": 6}, {"B": 1, "h": 5, "w": 3}]
    return Part("vae_decoder", PlantedOverflow(factor), TRACED, verified, dtype)


def exported(keep: KeepFp32, folder: Path, factor: float = 1e6) -> tuple[str, ...]:
    return export_component(
        part(factor=factor), folder, ("onnxruntime",), Silent(), keep=keep
    ).float32


def test_it_fails_in_float16(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="vae_decoder is off by inf"):
        exported(KeepFp32(), tmp_path)


def test_the_fewest_modules_are_found(tmp_path: Path) -> None:
    pytest.importorskip("polygraphy")
    kept = exported(KeepFp32(auto=True), tmp_path)
    assert kept == (OVERFLOWING, SHRINKING)
    files = [path.name for path in (tmp_path / "onnx" / "vae_decoder").iterdir()]
    assert sorted(files) == ["model.onnx", "onnxruntime.onnx", "weights.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def differences_of_large_numbers() -> ExportComponent:
    """Nothing overflows: what float16 rounds in between is larger than what is left of it."""
    network = PlantedOverflow(factor=1.0)
    block: Any = network.blocks[1]
    block.grow.bias.data += 5000
    block.shrink.bias.data -= 5000 * block.shrink.weight.data.sum((1, 2, 3))
    return network


def vae_like_that_of_sdxl() -> ExportComponent:
    """A residual block overflows before its norm, which makes the size of no matter."""
    network: Any = COMPONENTS["vae decoder"]()
    convolution = network.decoder.up_blocks[1].resnets[0].conv1
    convolution.weight.data *= 1e6
    convolution.bias.data *= 1e6
    found: ExportComponent = network
    return found


_RESNET = "decoder.up_blocks.1.resnets.0"


@pytest.mark.parametrize(
    ("network", "off", "kept"),
    [
        (differences_of_large_numbers, r"0\.\d", (OVERFLOWING, SHRINKING)),
        (vae_like_that_of_sdxl, "inf", (f"{_RESNET}.conv1", f"{_RESNET}.norm2")),
    ],
)
def test_what_else_float16_gets_wrong(
    network: Callable[[], ExportComponent], off: str, kept: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("polygraphy")

    def by(keep: KeepFp32) -> tuple[str, ...]:
        described = Part("it", network(), TRACED, [{"B": 1, "h": 4, "w": 6}], torch.float16)
        return export_component(described, tmp_path, ("onnxruntime",), Silent(), keep=keep).float32

    with pytest.raises(VerificationError, match=f"it is off by {off}"):
        by(KeepFp32())
    assert by(KeepFp32(auto=True)) == kept


def test_nothing_is_kept_that_need_not_be(tmp_path: Path) -> None:
    assert exported(KeepFp32(auto=True), tmp_path, factor=1.0) == ()


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (("blocks.1",), ("blocks.1.norm", OVERFLOWING, SHRINKING, "blocks.1")),
        (("vae_*:*.1.*[kw]",), (OVERFLOWING, SHRINKING)),
        (
            (f"{OVERFLOWING}/Conv", "*.shrink"),
            ("blocks.0.shrink", OVERFLOWING, SHRINKING, "blocks.2.shrink"),
        ),
    ],
)
def test_patterns_name_modules(
    tmp_path: Path, patterns: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    keep = KeepFp32(patterns)
    assert exported(keep, tmp_path) == kept
    keep.check_all_matched()


def test_the_same_is_kept_again(tmp_path: Path) -> None:
    keep = KeepFp32(("blocks.1/Add", "blocks.1.grow", "blocks.1.shrink", "blocks.1.norm/Mul"))
    first = export_component(part(), tmp_path / "a", ("onnxruntime",), Silent(), keep=keep)
    assert first.float32 == ("blocks.1.norm/Mul", OVERFLOWING, SHRINKING, "blocks.1")
    assert exported(KeepFp32.again(first), tmp_path / "b") == first.float32


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    keep = KeepFp32(("blocks.1", "unet:blocks.1"))
    exported(keep, tmp_path)
    with pytest.raises(ExportError, match=r"'unet:blocks\.1' matches no operator"):
        keep.check_all_matched()


def test_keeping_too_little_fails(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="off by inf"):
        exported(KeepFp32((OVERFLOWING,)), tmp_path)


@pytest.mark.parametrize(
    ("options", "others", "sentence"),
    [
        (("auto", "blocks"), ("fp16", "auto", ()), "give it or patterns"),
        (("unet:",), ("fp16", "auto", ()), "needs a pattern"),
        (("blocks",), ("fp32", "auto", ()), "add --precision fp16"),
        (("blocks",), ("bf16", "auto", ()), "add --precision fp16"),
        (("auto",), ("fp16", "auto", ("torch",)), "leave out --target torch"),
    ],
)
def test_what_cannot_be_kept(
    options: tuple[str, ...], others: tuple[str, str, tuple[str, ...]], sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        kept_in_float32(options, *others)


def test_a_vae_alone_may_be_in_float16() -> None:
    assert kept_in_float32(["auto"], "fp32", "fp16", ()).auto
    assert not kept_in_float32([], "fp32", "auto", ("torch",))


def test_kept_weights_are_those_of_the_source(tmp_path: Path) -> None:
    exported(KeepFp32(("blocks.1",)), tmp_path)
    model = onnx.load(tmp_path / "onnx" / "vae_decoder" / "model.onnx")
    source = dict(PlantedOverflow().named_parameters())
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        if tensor.name in source:
            inside = tensor.name.startswith("blocks.1.")
            wanted = onnx.TensorProto.FLOAT if inside else onnx.TensorProto.FLOAT16
            assert types[tensor.name] == wanted
            values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            assert torch.equal(values, source[tensor.name].detach().to(values.dtype))
