"""Writing the quantised networks of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from kdrt.bundle import Bundle, Component, Manifest
from kdrt_engines.onnx_weights import StoredWeight, stored_weights
from kdrt_export.onnx.trace import RawTensor, write_proto, write_weights
from kdrt_export.quantize.formats import Format
from kdrt_export.quantize.layers import (
    QuantizableLayer,
    quantizable_layers,
    without_float32,
)
from kdrt_export.quantize.qdq import Ranges, quantize_graph
from kdrt_export.quantize.sensitivity import precision_of
from kdrt_export.quantize.weights import quantize_weight

WEIGHTS_FILE = "quantized.bin"
"""Beside the graphs."""

_NUMBERS, _SCALE = "_quantized", "_scale"
"""What the two parts of a weight are called after it."""


def unets_of(manifest: Manifest) -> list[str]:
    """The UNets of a bundle: the plain one, and those of its variants. The shallow one of a deep
    cache, which computes the outermost layers, is not among them."""
    variants = (parts["unet"] for parts in manifest.variants.values() if "unet" in parts)
    return list(dict.fromkeys(["unet", *variants]))


@dataclass(frozen=True)
class Quantized:
    """What a UNet's layers become.

    Attributes:
        into: the format.
        layers: those of the plain UNet that are quantised. Other UNets have the same ones, with the
            same ranges; what they have besides stays as it is.
        ranges: of all that these read.
    """

    into: Format
    layers: Sequence[QuantizableLayer]
    ranges: Ranges

    def write(self, bundle: Bundle, folder: Path) -> dict[str, Component]:
        """Write the UNets of a bundle into the folder of a new one.

        Returns:
            What its manifest says of them.
        """
        components = bundle.manifest.components
        places: dict[Path, list[str]] = {}
        for name in unets_of(bundle.manifest):
            places.setdefault(Path(components[name].onnx).parent, []).append(name)
        for place, names in places.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            self._write(bundle, [components[name] for name in names], folder, place)
        return {
            name: components[name].model_copy(update={"onnxruntime": None, "verification": ()})
            for names in places.values()
            for name in names
        }

    def _write(
        self, bundle: Bundle, components: Sequence[Component], folder: Path, place: Path
    ) -> None:
        """Write graphs that share a file of weights."""
        stored: dict[str, StoredWeight] = {}
        models: dict[str, ir.Model] = {}
        parts: dict[str, tuple[str, slice]] = {}
        for component in components:
            path = bundle.file(component.onnx)
            stored |= stored_weights(path)
            model = ir.load(path)
            layers = self._layers(model, component)
            for layer in layers:
                for name, rows in layer.part_weights().items():
                    parts[name] = str(layer.weight), rows
            self._quantize(model, layers)
            models[component.onnx] = model
        outside: dict[str, list[ir.Value]] = {}
        for model in models.values():
            for value in model.graph.initializers.values():
                if value.const_value is None or isinstance(value.const_value, ir.ExternalTensor):
                    outside.setdefault(str(value.name), []).append(value)
        written = write_weights(
            self._tensors(outside, stored, parts), folder / place / WEIGHTS_FILE
        )
        for name, values in outside.items():
            for value in values:
                value.const_value = written[name]
                value.type, value.shape = ir.TensorType(written[name].dtype), written[name].shape
        for file, model in models.items():
            write_proto(ir.to_proto(model), folder / file)

    def _layers(self, model: ir.Model, component: Component) -> list[QuantizableLayer]:
        """The layers of a UNet that are those of the plain one, built like them."""
        chosen = {(layer.name, layer.kind): layer for layer in self.layers}
        found = without_float32(quantizable_layers(model.graph, self.into), component.float32)
        return [
            layer
            for layer in found
            if (same := chosen.get((layer.name, layer.kind))) is not None
            and layer.parts == same.parts
            and len(layer.reads) == len(same.reads)
        ]

    def _quantize(self, model: ir.Model, layers: Sequence[QuantizableLayer]) -> None:
        """Quantise layers of a graph; their weights in few bits have no values yet."""
        weights = {
            name: (ir.val(name + _NUMBERS), ir.val(name + _SCALE))
            for layer in layers
            for name in layer.part_weights()
        }
        chosen = {(layer.name, layer.kind): layer for layer in self.layers}
        ranges: dict[str, float] = {}
        for layer in layers:  # what they read may have another name here
            same = chosen[layer.name, layer.kind]
            for name, other in zip(layer.reads, same.reads, strict=True):
                ranges[name] = max(ranges.get(name, 0.0), self.ranges[other])
        quantize_graph(model, layers, ranges, self.into, weights, precision_of(model))

    def _tensors(
        self,
        names: Iterable[str],
        stored: Mapping[str, StoredWeight],
        parts: Mapping[str, tuple[str, slice]],
    ) -> Iterator[tuple[str, Tensor | RawTensor]]:
        """The weights by these names, one in memory at a time; ``parts`` says of which rows of
        which weight each in few bits is made."""
        for name in names:
            if name in stored:
                yield name, stored[name].read()
            elif name.endswith(_NUMBERS):
                part = name.removesuffix(_NUMBERS)
                original, rows = parts[part]
                weight = quantize_weight(stored[original].read()[rows], self.into)
                yield name, RawTensor(weight.values, self.into.dtype, weight.shape)
                yield part + _SCALE, weight.scale
