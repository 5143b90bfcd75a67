"""What a benchmark needs besides kdrt."""

from __future__ import annotations

from importlib.util import find_spec

from kdrt_bench.errors import BenchmarkError

_MODULES = ("jinja2", "matplotlib", "scipy", "torchmetrics")


def check_possible(suite: str) -> None:
    """Before an hour is spent on figures that nothing can draw.

    Raises:
        BenchmarkError: a package is missing, or the GPU.
    """
    if suite == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise BenchmarkError(
                "the suite 'gpu' needs a GPU, and CUDA sees none here; choose quick or full"
            )
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise BenchmarkError(
            f"benchmarks need {', '.join(missing)}; pip install 'kdrt[bench]', and "
            "'kdrt[bench-peers]' for peers to compare with"
        )
