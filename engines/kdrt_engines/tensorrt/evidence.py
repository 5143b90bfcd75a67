"""What the builder made of a network, read from its log.

The detailed dump of the finished engine names its kernels, one a line. It is the only evidence
there is without a GPU: the remark "found … to be part of self-attention pattern", earlier in the
log, also appears for attention that ends as three kernels.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from math import prod

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+)", re.MULTILINE)
_OPERANDS = re.compile(r"Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], Outputs: ")
_TENSOR = re.compile(r"Dimensions: \[(?P<sizes>[-\d,]*)\],.*?Datatype: (?P<type>\w+)")
_MULTIPLYING = {"correlation": "convolution", "gemm": "product"}
_FUSED_PRODUCT = re.compile(r"_myl_\w*?Fc")
_SCRATCH = re.compile(r"Max Scratch Memory: (\d+) bytes")
_FUSED_ATTENTION = "_gemm_mha_v2"
_NOT_KERNELS = {"shape_call", "ShapeHostToDevice", "Constant", "NoOp", "Signal", "Wait"}
_KEPT_PROBLEMS = 20
_HEAD = 200


@dataclass
class BuildLog:
    """Collects what matters from the builder's messages.

    Messages may be missing: those that are not UTF-8 never reach Python. So a figure that was not
    seen is None, never 0.
    """

    kernels: Counter[str] | None = None
    multiplying: Counter[str] | None = None
    fused_attention: int | None = None
    scratch_memory: int | None = None
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, severity: str, message: str) -> None:
        """One message; ``severity`` is the name of TensorRT's (``ERROR``, ``VERBOSE``, …)."""
        if "Layers:\n" in message[:_HEAD]:
            self._read_layers(message)
        elif found := _SCRATCH.search(message):
            self.scratch_memory = max(self.scratch_memory or 0, int(found[1]))
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors = [*self.errors, message][-_KEPT_PROBLEMS:]
        elif severity == "WARNING" and message not in self.warnings:
            self.warnings = [*self.warnings, message][-_KEPT_PROBLEMS:]

    def _read_layers(self, dump: str) -> None:
        layers = [(m["name"], m["kind"]) for m in _LAYER.finditer(dump)]
        if not layers:
            return  # a dump in a form that is not known says nothing
        multiplying = Counter(
            f"{what} {_type_multiplied(line)}"
            for line in dump.splitlines()
            if (what := _multiplies(line)) is not None
        )
        kinds = Counter(kind for _, kind in layers if kind not in _NOT_KERNELS)
        fused = sum(name.startswith(_FUSED_ATTENTION) for name, _ in layers)
        self.kernels = (self.kernels or Counter()) + kinds
        self.multiplying = (self.multiplying or Counter()) + multiplying
        self.fused_attention = (self.fused_attention or 0) + fused


def _multiplies(line: str) -> str | None:
    """What a kernel of the dump multiplies for: a convolution, a product, or an attention."""
    found = _LAYER.match(line)
    if found is None:
        return None
    if found["name"].startswith(_FUSED_ATTENTION):
        return "attention"
    if found["kind"] == "runtime_fusion" and _FUSED_PRODUCT.search(found["name"]):
        return "product"
    return _MULTIPLYING.get(found["kind"])


def _type_multiplied(line: str) -> str:
    """The type that a kernel multiplies in: of its first input and its weight, or else its second
    input. Of two types that is the wider one, since the other is dequantised; but weights of four
    bits count as such."""
    found = _OPERANDS.search(line)
    if found is None:
        return "?"
    inputs = [each["type"] for each in _TENSOR.finditer(found["inputs"])]
    weights = [
        (prod(map(int, each["sizes"].split(","))), each["type"])
        for each in _TENSOR.finditer(found["constants"])
        if "," in each["sizes"]
    ]
    both = {*inputs[:1], max(weights)[1]} if weights else {*inputs[:2]}
    if "Int4" in both:
        return "int4 weights"
    narrow = both & {"FP8", "Int8"}
    return "/".join(sorted(both - narrow or narrow)).lower() or "?"
