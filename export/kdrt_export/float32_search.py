"""``--keep-fp32 auto``: the fewest modules that bring a float16 network below its bound.

    1  in float16 alone: below the bound? then there is nothing to keep
    2  keep whatever goes beyond float16's range, and whoever reads it
    3  as long as it is above the bound: compare with float32 layer by layer, and keep the layers
       whose error jumps; then those that they read; then those that add most to the error
    4  leave out again what is not needed, in halves

Every trial runs the graph at the sizes of the verification. Weights are written once in each
precision; a trial's graph says where it reads which.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir
from torch import Tensor

from kdrt_engines.comparison import relative_error
from kdrt_engines.errors import EngineError
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_export.compare.comparison import Comparison, Graph, compare
from kdrt_export.compare.runners import polygraphy_for
from kdrt_export.components import ExportComponent
from kdrt_export.dialects.build import standard_dialect
from kdrt_export.errors import VerificationError
from kdrt_export.onnx.mixed_precision import Float32Part, half_modules, keep_float32
from kdrt_export.onnx.trace import trace, weights_of, write_graph, write_weights
from kdrt_export.verify import BOUNDS, Case

HALF_MAX = 65504.0
"""The largest number of float16."""

_MOST_TRIALS = 200


@dataclass
class _Trials:
    """A network with any of its modules in float32.

    Attributes:
        component: cast to float16.
        traced: its graph.
        originals: its weights in float32.
        cases: what it is tried on.
        folder: for the files.
    """

    component: ExportComponent
    traced: ir.Model
    originals: dict[str, Tensor]
    cases: Sequence[Case]
    folder: Path
    count: int = 0
    _known: dict[frozenset[str], list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._weights = weights_of(self.component)
        self._half = write_weights(self._weights.items(), self.folder / "half.bin")
        self._whole = write_weights(self.originals.items(), self.folder / "float.bin")

    def graph(self, modules: Collection[str]) -> Path:
        """Write the graph that keeps these modules."""
        model = self.traced.clone()
        part = Float32Part(lambda module, _: module in modules, self.originals)
        weights, _ = keep_float32(model, part, self._weights)
        inputs = {tensor.name for tensor in self.component.spec.inputs}
        for value in [each for each in model.graph.inputs if each.name not in inputs]:
            assert value.name is not None
            model.graph.inputs.remove(value)
            stored = self._whole if value.name in weights else self._half
            value.const_value = stored[value.name]
            model.graph.register_initializer(value)
        self.count += 1
        return write_graph(
            standard_dialect(model), self.component, self.folder / f"trial-{self.count}.onnx"
        )

    def error(self, modules: Collection[str]) -> float:
        """The greatest error of an output, over all cases; infinite if one is not finite."""
        return max(self._errors(modules))

    def _errors(self, modules: Collection[str]) -> list[float]:
        key = frozenset(modules)
        if key not in self._known:
            path = self.graph(modules)
            engine = OrtEngine(path, self.component.spec, OrtConfig(lean=True))
            self._known[key] = [_error(engine, case) for case in self.cases]
            path.unlink()
        return self._known[key]

    def compare(self, whole: Path, modules: Collection[str]) -> Comparison:
        """Compare the graph that keeps these modules with one that keeps all, layer by layer, on
        the case that is furthest off."""
        errors = self._errors(modules)
        case = self.cases[errors.index(max(errors))]
        path = self.graph(modules)
        names = [tensor.name for tensor in self.component.spec.inputs]
        inputs = dict(zip(names, case.inputs, strict=True))
        found = compare(Graph(whole), Graph(path), inputs)
        path.unlink()
        return found


def find_float32(
    name: str,
    component: ExportComponent,
    dims: dict[str, int],
    originals: dict[str, Tensor],
    cases: Sequence[Case],
    folder: Path,
) -> list[str]:
    """The modules that a float16 network must keep in float32 to be below its bound.

    Args:
        name: of the component.
        component: rewritten, and cast to float16.
        dims: to trace it at.
        originals: its weights in float32.
        cases: of the verification.
        folder: for files that are gone afterwards.

    Raises:
        VerificationError: it is above the bound in float32 too.
        ExportError: Polygraphy is not installed.
    """
    with TemporaryDirectory(dir=folder) as place:
        traced = trace(component, dims)
        trials = _Trials(component, traced, originals, cases, Path(place))
        bound = BOUNDS["fp16"]
        if trials.error(()) <= bound:
            return []
        polygraphy_for(["onnxruntime"])
        every = half_modules(traced)
        if not (error := trials.error(every)) <= bound:
            raise VerificationError(
                f"the exported {name} is off by {error:.2g} relative even with every operator in "
                f"float32, where fp16 allows {bound:.0e}; report the model"
            )
        whole = trials.graph(every)
        kept = _enough(trials, whole, every, bound)
        return _without_needless(trials, kept, bound)


def _error(engine: OrtEngine, case: Case) -> float:
    binding = engine.bind(**case.dims)
    for tensor, value in zip(binding.inputs.values(), case.inputs, strict=True):
        tensor.copy_(value)
    try:
        binding.run()
    except EngineError:
        return math.inf
    pairs = zip(binding.outputs.values(), case.expected, strict=True)
    errors = [relative_error(out, expected) for out, expected in pairs]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def _enough(trials: _Trials, whole: Path, every: Sequence[str], bound: float) -> list[str]:
    """Modules with which the error is below the bound, perhaps more than are needed."""
    kept: set[str] = set()
    most = 1
    while not trials.error(kept) <= bound:
        comparison = trials.compare(whole, kept)
        rows = comparison.rows
        modules = {row.layer.tensor: row.layer.module for row in rows}
        beyond = {row.layer.tensor for row in rows if row.difference.greatest[0] > HALF_MAX}
        found = {modules[tensor] for tensor in beyond}
        found |= {row.layer.module for row in rows if beyond.intersection(row.layer.reads)}
        jumping = [row.layer for row in rows if row.jumps]
        found |= {layer.module for layer in jumping}
        if found <= kept:
            # It is the rounding in between: differences of large numbers.
            reads = {tensor for layer in jumping for tensor in layer.reads}
            found = {modules[tensor] for tensor in reads & modules.keys()}
        if found <= kept:
            # No layer stands out: those that add most, more of them each time.
            grown = sorted(
                (row for row in rows if row.layer.module not in kept),
                key=lambda row: row.difference.error - min(row.before, row.difference.error),
                reverse=True,
            )
            found = {row.layer.module for row in grown[:most]} or set(every)
            most *= 2
        kept |= found & {*every}
    return [module for module in every if module in kept]


def _without_needless(trials: _Trials, kept: list[str], bound: float) -> list[str]:
    """Those of the modules without which the error is above the bound."""
    size = len(kept) // 2
    while size and trials.count < _MOST_TRIALS:
        for start in range(0, len(kept), size):
            fewer = kept[:start] + kept[start + size :]
            if trials.error(fewer) <= bound:
                kept = fewer
                break
        else:
            size //= 2
    return kept
