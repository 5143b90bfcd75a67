"""The runtime stays lean: what it may import, and when."""

from __future__ import annotations

import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import find_spec
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
print(*sys.modules)
"""

_LOAD = "import sys, kdrt; kdrt.load; print(*sys.modules)"

_NEEDED_BY_FEW = {
    "filelock",
    "numpy.polynomial",
    "kdrt.adapters.embedding_file",
    "kdrt.adapters.image_prompt",
    "kdrt.adapters.ip_adapter",
    "kdrt.adapters.lora",
    "kdrt.adapters.lora_file",
    "kdrt.adapters.lora_kinds",
    "kdrt.adapters.textual_inversion",
    "kdrt.backends.engine_files",
    "kdrt.backends.fallback",
    "kdrt.backends.inductor",
    "kdrt.backends.kept",
    "kdrt.backends.offload",
    "kdrt.backends.records",
    "kdrt.backends.tensorrt",
    "kdrt.backends.torch_programs",
    "kdrt.batching",
    "kdrt.common.lock",
    "kdrt.denoise.conditioning_store",
    "kdrt.denoise.cuda_graphs",
    "kdrt.denoise.flight_states",
    "kdrt.denoise.in_flight",
    "kdrt.denoise.row_denoiser",
    "kdrt.sampling.slots",
    "kdrt_engines.inductor",
    "kdrt_engines.tensorrt.engine",
}
"""What an image of a prompt alone, made with the default engine on a CPU, does not use. Everybody
would wait for it at every start."""


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


@pytest.mark.parametrize("code", [_LOAD, _GENERATE], ids=["load", "generate"])
def test_what_few_images_need_is_imported_for_those_only(code: str) -> None:
    loaded = modules_after(code)
    assert "kdrt.pipeline.pipeline" in loaded
    assert loaded & _NEEDED_BY_FEW == set()


def test_the_listed_modules_exist() -> None:
    for name in _NEEDED_BY_FEW:
        assert find_spec(name) is not None


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
