"""Which GPUs TensorRT builds quantised networks for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from kdrt.bundle import Bundle, Manifest, QuantizationFormat
from kdrt.errors import EngineError

FIRST_GPU: Mapping[QuantizationFormat, int] = {"fp8": 89, "int8": 75, "int4-weights": 80}
"""The lowest compute capability that each format is built for: 89 is 8.9."""

_ANY_GPU = 75


def first_gpu(manifest: Manifest) -> int:
    """The lowest compute capability that all networks of a bundle are built for."""
    facts = manifest.quantization
    return _ANY_GPU if facts is None else FIRST_GPU[facts.format]


def check_gpus(bundle: Bundle, components: Sequence[str], capabilities: Sequence[int]) -> None:
    """Whether the GPUs have the format of the quantised networks among these components.

    Raises:
        EngineError: one has not; says which have, and which format the others have.
    """
    facts = bundle.manifest.quantization
    if facts is None or not set(components) & set(facts.components):
        return
    first = FIRST_GPU[facts.format]
    without = [number for number in capabilities if number < first]
    if without:
        raise EngineError(
            f"'{bundle.manifest.name}' is {facts.format}, which TensorRT builds from sm{first} "
            f"on, not for sm{without[0]}: leave that GPU out, or quantise the bundle for it with "
            f"`kdrt quantize {shlex.quote(facts.made_from)} --format int8`"
        )
