"""Acceptance on a GPU: ``pytest -m gpu -n 0 tests/gpu``. Left out without the marker, skipped
without a CUDA device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdrt.build.engines import build_engines
from kdrt.bundle import Bundle, open_bundle
from kdrt.denoise.cuda_graphs import CaptureWarning
from kdrt_engines.tensorrt.flavour import flavour_for
from tests.support.gpu import Quiet

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="CUDA sees no GPU here")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _exact_and_captured() -> Iterator[None]:
    """No TF32 in torch, and no graph that quietly was not captured."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaptureWarning)
        yield
    torch.backends.cudnn.allow_tf32 = before


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


@pytest.fixture(scope="session")
def built(bundle: Bundle) -> str:
    """The flavour of TensorRT that serves this GPU, its engines built here."""
    major, minor = torch.cuda.get_device_capability()
    flavour = flavour_for(10 * major + minor)
    pytest.importorskip(flavour.module)
    build_engines(bundle, flavour, (10 * major + minor,), report=Quiet())
    return flavour.name


@pytest.fixture
def capability() -> int:
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor
