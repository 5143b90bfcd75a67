"""Options of an export that have a fixed set of values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdrt.bundle.components import DEEP_CACHE, PAG
from kdrt_export.errors import ExportError
from kdrt_export.scheduler import PREDICTIONS

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


TARGETS = ("onnxruntime", "torch")


def check_choices(precision: str, targets: Sequence[str], prediction: str | None = None) -> None:
    if prediction not in (None, *PREDICTIONS):
        raise ExportError(f"{prediction!r} is no prediction type; choose {', '.join(PREDICTIONS)}")
    if precision not in ("auto", *PRECISIONS):
        raise ExportError(f"'{precision}' is no precision; choose auto, {', '.join(PRECISIONS)}")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ExportError(f"'{unknown[0]}' is no target; choose {' or '.join(TARGETS)}")


def check_weights(weights: str, precision: str, targets: Sequence[str]) -> None:
    """Raises ExportError: weights cannot be stored like that, or not for this."""
    if weights not in ("float", "int8"):
        raise ExportError(f"weights cannot be stored as '{weights}'; choose float or int8")
    if weights == "int8" and "torch" in targets:
        raise ExportError(
            "int8 weights are for the ONNX files, and a torch program holds its own; leave out "
            "--target torch or --weights int8"
        )
    if weights == "int8" and precision == "bf16":
        raise ExportError(
            "int8 weights in bf16 could not be verified, since ONNX Runtime has no bfloat16 on a "
            "CPU; choose --precision fp32 or fp16"
        )


def check_variants(variants: Sequence[str], fuse_qkv: bool) -> None:
    """Raises ExportError: a variant is unknown, or is what the bundle holds anyway."""
    possible = "unfused-qkv" if fuse_qkv else "fused-qkv"
    for variant in variants:
        if variant not in (possible, DEEP_CACHE, PAG):
            raise ExportError(
                f"'{variant}' is no variant of an export {'with' if fuse_qkv else 'without'} fused "
                f"projections; choose {possible}, {DEEP_CACHE} or {PAG}"
            )


def perturbed_layers(variants: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """The layers in which self-attention can be perturbed: those asked for, the middle block's, or
    none where there is no such variant.

    Raises:
        ExportError: some are asked for, and no variant.
    """
    if PAG in variants:
        return tuple(layers) or ("mid",)
    if layers:
        raise ExportError(f"layers to perturb belong to the variant {PAG}; add --variant {PAG}")
    return ()
