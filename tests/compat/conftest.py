from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from checkpoints import save_checkpoint
from eager import torch_engines
from restated import Networks

from kdrt.bundle import Bundle
from kdrt.compat import StableDiffusionKDiffusionPipeline, StableDiffusionXLKDiffusionPipeline
from kdrt.engine_store import load_engines
from kdrt.pipeline import Pipeline

CLASSES = {
    "sd": StableDiffusionKDiffusionPipeline,
    "sdxl": StableDiffusionXLKDiffusionPipeline,
}


@dataclass(frozen=True)
class Tiny:
    """A tiny checkpoint, its bundle, and engines of it.

    The torch engines run the rewritten networks as an exported program does, without the minutes
    it takes to make one.
    """

    family: str
    checkpoint: Path
    bundle: Bundle
    torch_engines: dict[str, Any]
    networks: Networks

    def pipe(self, *, exact: bool = True, onnx: bool = False, **facts: Any) -> Any:
        """A drop-in pipeline; ``facts`` replace some of the scheduler's."""
        manifest = self.bundle.manifest
        scheduler = manifest.scheduler.model_copy(update=facts)
        bundle = Bundle(self.bundle.path, manifest.model_copy(update={"scheduler": scheduler}))
        engines = self.torch_engines
        if onnx:
            engines = load_engines(bundle, "onnxruntime", threads=1)
        pipeline = CLASSES[self.family](Pipeline(bundle, engines), engine="torch", exact=exact)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """With several threads sums are split by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return _tiny("sd", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return _tiny("sdxl", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(params=["sd", "sdxl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    found: Tiny = request.getfixturevalue(request.param)
    return found


def _tiny(family: str, folder: Path) -> Tiny:
    checkpoint = save_checkpoint(folder / "checkpoint", family, seed=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRT_HOME", str(folder / "home"))
        bundle = CLASSES[family].from_pretrained(checkpoint).pipeline.bundle
    return Tiny(family, checkpoint, bundle, torch_engines(checkpoint), Networks.of(checkpoint))
