"""Build TensorRT-RTX engines in CI, on a machine without a GPU.

    python examples/build_engines.py sdxl --gpu sm86,sm89,sm120 -o ./sdxl-bundle

Exports the model in half precision, builds its engines, and fails if attention of the UNet or of a
text encoder did not become fused kernels: such an engine works and is slow, which is better known
here than on the GPU. The folder ``-o`` is what to keep as an artefact. The machine that serves it
says once that it trusts its engines: ``kdrt trust FOLDER``.

Needs ``pip install 'kdrt[export,tensorrt-rtx]'``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--gpu", default="sm86,sm89,sm120")
    parser.add_argument("--profile", default="any")
    parser.add_argument("--component", action="append", default=[])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    folder = str(arguments.output)
    kdrt("export", arguments.model, "-o", folder, "--precision", "fp16")
    components = [part for name in arguments.component for part in ("--component", name)]
    options = ["--gpu", arguments.gpu, "--profile", arguments.profile, *components]
    kdrt("build", folder, "--engine", "tensorrt-rtx", *options)

    records = [json.loads(path.read_text()) for path in arguments.output.rglob("record.json")]
    if problems := list(unfused(records)):
        sys.exit("\n".join(problems))


def kdrt(*arguments: str) -> None:
    """Run a command of kdrt; its failure is this script's."""
    done = subprocess.run([sys.executable, "-m", "kdrt", *arguments], check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def unfused(records: Iterable[dict[str, Any]]) -> Iterable[str]:
    """One sentence for each engine whose attention is not all fused. The VAE's never is: its heads
    are too wide."""
    for record in records:
        key, built = record["key"], record["built"]
        expected = built["attention_sites"] * len(key["profiles"])
        if not key["component"].startswith("vae") and (built["fused_attention"] or 0) < expected:
            yield f"{key['component']}: {built['fused_attention']} of {expected} attentions fused"


if __name__ == "__main__":
    main()
