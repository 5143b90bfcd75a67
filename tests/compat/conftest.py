from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdrt.backends.loading import load_engines
from kdrt.bundle import Bundle
from kdrt.compat import StableDiffusionKDiffusionPipeline, StableDiffusionXLKDiffusionPipeline
from kdrt.pipeline.pipeline import Pipeline
from tests.support.checkpoints import save_checkpoint
from tests.support.eager import torch_engines
from tests.support.once import made_once
from tests.support.restated import Networks

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
        engines: Mapping[str, Any] = self.torch_engines
        if onnx:
            engines = load_engines(bundle, "onnxruntime", threads=1)
        pipeline = CLASSES[self.family](Pipeline(bundle, engines), engine="torch", exact=exact)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return _tiny("sd", tmp_path_factory)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return _tiny("sdxl", tmp_path_factory)


@pytest.fixture(params=["sd", "sdxl"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    found: Tiny = request.getfixturevalue(request.param)
    return found


def _tiny(family: str, factory: pytest.TempPathFactory) -> Tiny:
    def make(folder: Path) -> None:
        checkpoint = save_checkpoint(folder / "checkpoint", family, seed=20)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDRT_HOME", str(folder / "home"))
            made = CLASSES[family].from_pretrained(checkpoint).pipeline.bundle
        (folder / "bundle").symlink_to(made.path)

    folder = made_once(factory, f"compat-{family}", make)
    checkpoint = folder / "checkpoint"
    bundle = Bundle.open((folder / "bundle").resolve())
    return Tiny(family, checkpoint, bundle, torch_engines(checkpoint), Networks.of(checkpoint))
