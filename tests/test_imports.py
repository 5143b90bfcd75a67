"""The runtime stays lean: what it may import, and when."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

import kdrt

FORBIDDEN = ("diffusers", "transformers", "onnx", "onnxscript", "polygraphy", "kdrt_export")
_ROOT = Path(__file__).resolve().parents[1]

_GENERATE = """
import sys, tempfile
from pathlib import Path
from tests.support.tiny_model import tiny_model
model = tiny_model(Path(tempfile.mkdtemp()))
folder = Path(tempfile.mkdtemp())
model.pipeline("a red circle", steps=2, seed=0).save(folder / "x.png")
import kdrt_engines.onnxruntime.engine
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def modules_after(code: str) -> set[str]:
    paths = [_ROOT, _ROOT / "export", _ROOT / "engines", _ROOT / "benchmarks"]
    prologue = f"import sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    command = [sys.executable, "-c", prologue + code]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_a_generation_needs_no_export_package() -> None:
    loaded = modules_after(_GENERATE)
    assert {"kdrt", "torch", "onnxruntime"} <= loaded
    assert not loaded & set(FORBIDDEN)


def test_importing_kdrt_imports_nothing_heavy() -> None:
    loaded = modules_after("import kdrt; print(*sys.modules)")
    assert "kdrt" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "pydantic", "onnxruntime", "tokenizers", "rich"}


def test_a_benchmark_loads_no_runtime_but_that_of_its_row() -> None:
    loaded = modules_after("import kdrt_bench.worker; print(*sys.modules)")
    assert {"kdrt_bench.worker", "torch"} <= loaded
    assert not loaded & {"onnxruntime", "openvino", "diffusers", "transformers"}


def test_every_public_name_is_there() -> None:
    for name in kdrt.__all__:
        assert getattr(kdrt, name) is not None
    assert set(kdrt.__all__) <= set(dir(kdrt))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kdrt.nonsense


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports within functions and for type checking included."""
    packages = ("kdrt", "kdrt_engines", "kdrt_export", "kdrt_bench")
    graph = grimp.build_graph(*packages, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > 300
    TopologicalSorter(imports).prepare()  # raises CycleError, which names a circle
