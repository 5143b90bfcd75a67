"""Acceptance on a GPU: ``pytest -m gpu -n 0 tests/gpu``. Left out without the marker, skipped
without a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdrt.bundle import Bundle, open_bundle

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="CUDA sees no GPU here")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(scope="session")
def gpu_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A ``KDRT_HOME`` with the demo model in float32, for every engine."""
    from kdrt_export.stage import export

    home = tmp_path_factory.mktemp("gpu-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRT_HOME", str(home))
        export("demo", precision="fp32", targets=("onnxruntime", "torch"))
        yield home


@pytest.fixture(scope="session")
def bundle(gpu_home: Path) -> Bundle:
    return open_bundle(gpu_home / "bundles" / "demo")


@pytest.fixture
def capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
