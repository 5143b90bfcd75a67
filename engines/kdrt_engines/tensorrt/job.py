"""The messages between the process that asks for an engine and the one that builds it: JSON, one
object a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Least, best and greatest shape of every input with dynamic sizes."""


@dataclass(frozen=True)
class BuildJob:
    """One engine to build: ``module`` (``tensorrt`` or ``tensorrt_rtx``) makes ``output`` from
    ``onnx``, with one optimization profile for each of ``profiles``. Without
    ``compute_capabilities`` the target is this machine's GPU. The weights ``refittable``, by the
    names of their initialisers, can be changed in the engine."""

    module: str
    onnx: str
    output: str
    compute_capabilities: tuple[int, ...]
    profiles: tuple[Shapes, ...]
    flags: Mapping[str, bool]
    refittable: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> BuildJob:
        fields: dict[str, Any] = json.loads(text)
        fields["compute_capabilities"] = tuple(fields["compute_capabilities"])
        fields["profiles"] = tuple(fields["profiles"])
        fields["refittable"] = tuple(fields["refittable"])
        return cls(**fields)


@dataclass(frozen=True)
class Built:
    """The figures of a finished build.

    ``attention_sites``: softmax over scores in the network. ``fused_attention``: kernels that
    compute a whole attention, over all profiles. ``multiplying``: kernels by what they multiply
    for and the type that they do it in, as ``product fp8``; an attention that was not fused is two
    products. None: the builder's log did not say. Memory in
    bytes; ``scratch_memory`` is what the engine needs besides its weights, ``peak_memory`` what
    building needed. ``cpu_seconds`` is CPU time of all threads, ``seconds`` wall time.
    """

    version: str
    attention_sites: int
    fused_attention: int | None
    kernels: Mapping[str, int] | None
    scratch_memory: int | None
    peak_memory: int
    seconds: float
    cpu_seconds: float
    warnings: tuple[str, ...]
    multiplying: Mapping[str, int] | None = None
