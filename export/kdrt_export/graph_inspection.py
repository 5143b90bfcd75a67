"""What is in the graph of a network, and what is wrong with it: ``kdrt inspect --graph``.

Polygraphy describes the graph, and lints it: ONNX's checker, and each node run by itself with ONNX
Runtime, so that a node that cannot run is named.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from kdrt_engines.spec import EngineSpec
from kdrt_export.compare.layers import element_types
from kdrt_export.errors import ExportError
from kdrt_export.onnx.trace import weight_files

_HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

_LINT = "from polygraphy.tools import main; main()"
"""Its command: the linter has no interface in Python, and its logger belongs to the process."""


@dataclass(frozen=True)
class OperatorCount:
    """How often an operator occurs, and in which precision: by the type of its first result."""

    operator: str
    count: int
    float32: int
    half: int


@dataclass(frozen=True)
class Finding:
    """What the linter says: ``exception`` or ``warning``, in its words, and of which nodes."""

    level: str
    message: str
    nodes: tuple[str, ...]


def describe(path: Path) -> str:
    """Polygraphy's description of an ONNX file: inputs, outputs, numbers of weights and nodes.

    Raises:
        ExportError: Polygraphy is not installed.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise _missing("polygraphy")
    from polygraphy.backend.onnx.util import str_from_onnx

    return str(str_from_onnx(onnx.load(path, load_external_data=False)))


def count_operators(path: Path) -> list[OperatorCount]:
    """The operators of an ONNX file, the most frequent first."""
    model = onnx.load(path, load_external_data=False)
    types = element_types(model)
    counts = Counter[str](), Counter[str](), Counter[str]()
    for node in model.graph.node:
        of_result = types.get(node.output[0])
        counts[0][node.op_type] += 1
        counts[1][node.op_type] += of_result == onnx.TensorProto.FLOAT
        counts[2][node.op_type] += of_result in _HALVES
    return [
        OperatorCount(name, count, counts[1][name], counts[2][name])
        for name, count in counts[0].most_common()
    ]


def lint(path: Path, spec: EngineSpec, dims: Mapping[str, int]) -> list[Finding]:
    """What Polygraphy's linter finds in an ONNX file.

    Args:
        path: the file.
        spec: its inputs and outputs.
        dims: a size for every symbol; the nodes are run at these.

    Raises:
        ExportError: a package is not installed, or the linter itself fails.
    """
    for package in ("polygraphy", "onnx_graphsurgeon"):
        if importlib.util.find_spec(package) is None:
            raise _missing(package)
    shapes = [f"{t.name}:[{','.join(map(str, t.resolve(dims)))}]" for t in spec.inputs]
    indices = [f"{t.name}:[0,1]" for t in spec.inputs if t.dtype.startswith("int")]
    ranges = ["--val-range", *indices] if indices else []
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        read = _with_one_name(path, Path(folder))
        words = ["check", "lint", str(read), "--input-shapes", *shapes, *ranges, "-o", str(report)]
        # -P: or modules would be imported from the working folder, whosever that is.
        done = subprocess.run(
            [sys.executable, "-P", "-c", _LINT, *words], capture_output=True, text=True, check=False
        )
        if not report.is_file():
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ExportError(f"Polygraphy cannot lint {path}: {''.join(reason) or 'no reason'}")
        entries = json.loads(report.read_text(encoding="utf-8"))["lint_entries"]
    return [
        Finding(entry["level"], entry["message"], tuple(entry.get("nodes") or ()))
        for entry in entries
    ]


def _with_one_name(path: Path, folder: Path) -> Path:
    """The file, or a copy of it and its weights in ``folder``. ONNX takes weights with two names
    for an attack; a bundle that was copied by links has them."""
    weights = weight_files(onnx.load(path, load_external_data=False), path.parent)
    if all(file.stat().st_nlink == 1 for file in weights):
        return path
    for file in (path, *weights):
        shutil.copyfile(file, folder / file.name)
    return folder / path.name


def _missing(package: str) -> ExportError:
    return ExportError(
        f"looking into a graph needs the package '{package}', which is not installed: "
        "pip install 'kdrt[export]'"
    )
