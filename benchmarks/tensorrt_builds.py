"""What the TensorRT engines of a bundle cost to build and how well their attention fused.

    python benchmarks/tensorrt_builds.py sd15-random sdxl-random -o benchmarks/results

Reads the records that ``kdrt build`` left beside its engines and writes ``tensorrt_builds.json``
and ``tensorrt_builds.md``; the rows of other models that are there already stay. Nothing here runs
an engine: a build is no statement about its speed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

from kdrt.backends.engine_files import engine_folders
from kdrt.backends.records import in_few_bits, read_record
from kdrt.bundle import Bundle, open_bundle
from kdrt_engines.tensorrt.flavour import TENSORRT, TENSORRT_RTX

_HEADINGS = (
    *("model", "network", "parameters", "GPUs", "attention fused", "kernels", "in few bits"),
    *("scratch", "engine", "build, CPU time", "build, peak memory"),
)


def rows_of(bundle: Bundle) -> list[dict[str, Any]]:
    """One row an engine that lies in the bundle."""
    rows = []
    for flavour in (TENSORRT, TENSORRT_RTX):
        for folder in engine_folders(bundle, flavour):
            record = read_record(bundle, folder)
            built, key = record.built, record.key
            rows.append(
                {
                    "model": bundle.manifest.name,
                    "network": key.component,
                    "parameters": bundle.manifest.components[key.component].parameters,
                    "precision": key.dtype,
                    "format": _format(bundle, key.component),
                    "backend": f"{key.backend} {key.backend_version}",
                    "gpus": [f"sm{number}" for number in key.compute_capabilities],
                    "profiles": [profile.name for profile in key.profiles],
                    "attention_sites": built.attention_sites,
                    "fused_attention": built.fused_attention,
                    "kernels": built.kernels,
                    "multiplying": built.multiplying,
                    "scratch_bytes": built.scratch_memory,
                    "engine_bytes": record.size,
                    "cpu_seconds": built.cpu_seconds,
                    "wall_seconds": built.seconds,
                    "peak_bytes": built.peak_memory,
                    "kdrt": record.kdrt,
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [f"| {' | '.join(_HEADINGS)} |", "|---" * len(_HEADINGS) + "|"]
    for row in rows:
        kernels = sum(row["kernels"].values()) if row["kernels"] else "?"
        fused = "?" if row["fused_attention"] is None else row["fused_attention"]
        cells = [
            row["model"],
            f"{row['network']} ({row.get('format') or row['precision']})",
            f"{row['parameters'] / 1e6:,.1f} M",
            ", ".join(row["gpus"]),
            f"{fused} of {row['attention_sites']}",
            str(kernels),
            _in_few_bits(row.get("multiplying")),
            _megabytes(row["scratch_bytes"]),
            _megabytes(row["engine_bytes"]),
            f"{row['cpu_seconds']:.0f} s",
            _megabytes(row["peak_bytes"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _format(bundle: Bundle, component: str) -> str | None:
    facts = bundle.manifest.quantization
    return facts.format if facts is not None and component in facts.components else None


def _in_few_bits(multiplying: dict[str, int] | None) -> str:
    return "?" if multiplying is None else in_few_bits(multiplying) or "none"


def _megabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e6:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundles", nargs="+", help="names or folders of bundles with engines")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    arguments = parser.parse_args()
    rows = [row for name in arguments.bundles for row in rows_of(open_bundle(name))]
    target = arguments.output / "tensorrt_builds.json"
    if target.exists():
        new = {row["model"] for row in rows}
        before = json.loads(target.read_text())["engines"]
        rows = [row for row in before if row["model"] not in new] + rows
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": None}
    arguments.output.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"machine": machine, "engines": rows}, indent=1) + "\n"
    target.write_text(document)
    (arguments.output / "tensorrt_builds.md").write_text(
        f"# TensorRT engines, as built\n\nOn {machine['cores']} cores without a GPU; the weights "
        "of models called random are. Of a quantised network the convolutions, products and "
        "attentions that multiply in few bits are counted; an attention that is not fused is two "
        f"products. Backends: {', '.join(sorted({row['backend'] for row in rows}))}.\n\n"
        + table(rows)
    )
    print(table(rows))


if __name__ == "__main__":
    main()
