"""What a benchmark needs besides kdrt."""

from __future__ import annotations

from importlib.util import find_spec

from kdrt.bench.errors import BenchmarkError

_MODULES = ("jinja2", "matplotlib", "scipy", "torchmetrics")


def check_installed() -> None:
    """Before an hour is spent on figures that nothing can draw.

    Raises:
        BenchmarkError: something is missing.
    """
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise BenchmarkError(
            f"benchmarks need {', '.join(missing)}; pip install 'kdrt[bench]', and "
            "'kdrt[bench-peers]' for OpenVINO"
        )
