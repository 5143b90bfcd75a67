"""What is compared with what, and whether that can run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrt.backends.choice import known_engine
from kdrt.backends.onnxruntime import PROVIDERS
from kdrt.bundle import Bundle, Component
from kdrt.common.validation import unknown_word
from kdrt.errors import BundleError, EngineUnavailableError, InvalidRequestError
from kdrt_engines.registry import find_engines
from kdrt_engines.tensorrt.flavour import FLAVOURS

GRAPHS = ("standard", "fused")
"""Graphs of a component that take its inputs and nothing else."""


@dataclass(frozen=True)
class Side:
    """One of the two: a component of a bundle, run by an engine.

    Attributes:
        bundle: an opened bundle.
        component: its name.
        engine: one of ``kdrt_engines.registry.ENGINES``.
        graph: one of ``GRAPHS``.
    """

    bundle: Bundle
    component: str
    engine: str
    graph: str = "standard"

    @property
    def facts(self) -> Component:
        """What the manifest says of the component."""
        return self.bundle.manifest.components[self.component]

    @property
    def path(self) -> Path:
        """The file of the graph."""
        graphs = self.facts.onnxruntime
        if self.graph == "fused" and graphs is not None:
            return self.bundle.file(graphs.fused)
        return self.bundle.file(self.facts.onnx)

    @property
    def precision(self) -> str:
        """The type it computes in: ``float16``, or ``float32`` where no input or output says."""
        types = {tensor.dtype for tensor in (*self.facts.inputs, *self.facts.outputs)}
        return next((t for t in ("bfloat16", "float16") if t in types), "float32")

    def label(self) -> str:
        """``demo (float32), onnxruntime``, for people; of a quantised network its format."""
        graph = "" if self.graph == "standard" else f", {self.graph} graph"
        quantized = self.bundle.manifest.quantization
        computed = self.precision
        if quantized is not None and self.component in quantized.components:
            computed = quantized.format
        return f"{self.bundle.manifest.name} ({computed}), {self.engine}{graph}"


def pair_of(bundles: Sequence[Bundle], component: str, engines: Sequence[str]) -> tuple[Side, Side]:
    """The two sides that a command asks for.

    Args:
        bundles: one, or two.
        component: of all of them.
        engines: none for ONNX Runtime, one for both sides, or two; each may name a graph, as in
            ``onnxruntime:fused``.

    Raises:
        InvalidRequestError: there is nothing to compare, or a name is unknown.
        BundleError: a bundle has no such component.
        EngineUnavailableError: an engine cannot run here, or cannot show its layers.
    """
    if len(engines) > 2:
        raise InvalidRequestError(f"two engines can be compared, not {len(engines)}")
    names = [*(engines or ("onnxruntime",))]
    sides = (
        _side(bundles[0], component, names[0]),
        _side(bundles[-1], component, names[-1]),
    )
    if sides[0].path == sides[1].path and sides[0].engine == sides[1].engine:
        raise InvalidRequestError(
            "both sides are the same: give another bundle, or two engines as in "
            "--engines onnxruntime,onnxruntime-cuda"
        )
    if {side.engine for side in sides} >= {*FLAVOURS}:
        raise InvalidRequestError(
            "Polygraphy runs one flavour of TensorRT in a process; compare each of them with "
            "onnxruntime"
        )
    for side in sides:
        _check_runs(side)
    return sides


def _side(bundle: Bundle, component: str, text: str) -> Side:
    engine, _, graph = text.strip().partition(":")
    known_engine(engine)
    if engine not in PROVIDERS and engine not in FLAVOURS:
        raise EngineUnavailableError(
            f"{engine} does not show its layers; choose {', '.join(PROVIDERS)} or "
            f"{', '.join(FLAVOURS)}"
        )
    graph = graph or "standard"
    if graph not in GRAPHS:
        raise InvalidRequestError(unknown_word("graph", graph, GRAPHS))
    if graph != "standard" and engine in FLAVOURS:
        raise InvalidRequestError(f"{engine} knows standard operators only; leave out ':{graph}'")
    components = bundle.manifest.components
    if component not in components:
        raise BundleError(
            f"the bundle '{bundle.manifest.name}' has no component '{component}'; it has "
            f"{', '.join(components)}"
        )
    return Side(bundle, component, engine, graph)


def _check_runs(side: Side) -> None:
    if side.precision == "bfloat16":
        raise EngineUnavailableError(
            f"'{side.bundle.manifest.name}' is bf16, whose results Polygraphy cannot hold; compare "
            "an export with --precision fp16 or fp32"
        )
    status = next(status for status in find_engines() if status.name == side.engine)
    if not status.usable:
        raise EngineUnavailableError(f"{side.engine} cannot run here: {status.reason}")
