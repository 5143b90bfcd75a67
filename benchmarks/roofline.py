"""The least time that GPUs can take for one run of a UNet, by the type that it multiplies in.

    python benchmarks/roofline.py sd15 sdxl -o benchmarks/results

An estimate of peak rates and sizes, with nothing measured in it: the formula is in
:mod:`kdrt_export.quantize.roofline`. Bundles are float16 ones, at their own size, one image at a
time with guidance. Of a quantised network all layers that the format is for count as quantised.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from kdrt.backends.profiles import component_profiles
from kdrt.bundle import Bundle, open_bundle
from kdrt_export.quantize.formats import FORMATS
from kdrt_export.quantize.layers import quantizable_layers
from kdrt_export.quantize.roofline import GPUS, HALF, Work, least_seconds, work_of

_TYPES = (HALF, "int8", "fp8")


def rows_of(bundle: Bundle) -> list[dict[str, Any]]:
    """One row for each GPU."""
    component = bundle.manifest.components["unet"]
    (profile,) = component_profiles(bundle.manifest, "unet", ("any",))
    dims = profile.sizes("opt")
    spec = component.spec()
    path = bundle.file(component.onnx)
    model = onnx.load(path, load_external_data=False)
    layers = work_of(model, {tensor.name: tensor.resolve(dims) for tensor in spec.inputs})
    left = {type_: _left(path, type_, layers) for type_ in _TYPES}
    return [
        {
            "model": bundle.manifest.name,
            "sizes": dict(dims),
            "operations": sum(layer.operations for layer in layers),
            "gpu": gpu.name,
            "source": gpu.source,
            "milliseconds": {
                type_: 1e3 * least_seconds(layers, gpu, type_, left[type_])
                for type_ in _TYPES
                if type_ in gpu.rates
            },
        }
        for gpu in GPUS
    ]


def _left(path: Path, type_: str, layers: list[Work]) -> set[tuple[str, str]]:
    """The layers that a format leaves as they are."""
    every = {(layer.name, layer.kind) for layer in layers}
    if type_ == HALF:
        return every
    graph = ir.load(path).graph
    return every - {(each.name, each.kind) for each in quantizable_layers(graph, FORMATS[type_])}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| model | GPU | {' | '.join(_TYPES)} |", "|---" * (2 + len(_TYPES)) + "|"]
    for row in rows:
        times = [row["milliseconds"].get(type_) for type_ in _TYPES]
        half = times[0]
        cells = [
            "no kernels" if time is None else f"{time:.2f} ms ({half / time:.2f} x)"
            for time in times
        ]
        lines.append(f"| {row['model']} | {row['gpu']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", nargs="+", help="names or folders of float16 bundles")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    rows = [row for name in arguments.bundles for row in rows_of(open_bundle(name))]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "roofline.json").write_text(json.dumps(rows, indent=1) + "\n")
    sources = "\n".join(f"- {gpu.name}: {gpu.source}" for gpu in GPUS)
    (arguments.output / "roofline.md").write_text(
        "# The least time of one run of a UNet: an estimate\n\nNothing here is measured. The time "
        "is Σ max(F / P, N / W) over the layers: F operations at the peak rate P of their type, N "
        "bytes moved at the bandwidth W. An image at a time with guidance, at the model's own "
        f"size.\n\n{table(rows)}\nPeak rates, without sparsity and with sums in float32:\n\n"
        f"{sources}\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
