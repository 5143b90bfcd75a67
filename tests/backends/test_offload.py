"""Components in turn: the same images, and never more than one stage in memory."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kdrt.backends.offload import OffloadedEngine, Offloader
from kdrt.backends.stages import stage_of
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Engine, EngineSpec, TensorSpec
from kdrt_engines.torch_eager import TorchEngine
from tests.support.image_arrays import as_array
from tests.support.tiny_model import TinyModel, tiny_model

ENCODER = EngineSpec(
    (TensorSpec("image", "float32", ("B", 3, "8*h", "8*w")),),
    (TensorSpec("moments", "float32", ("B", 8, "h", "w")),),
)


class Encode(torch.nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        latents = image[:, :, ::8, ::8]
        latents = torch.cat([latents, latents[:, :1]], dim=1)
        return torch.cat([latents, latents], dim=1)


class Watched:
    """A pipeline in offloader, and the stages that were in memory at every load."""

    def __init__(self, model: TinyModel) -> None:
        self.alive: dict[str, weakref.ref[Engine]] = {}
        self.together: list[set[str]] = []
        self.offloader = Offloader()
        modules = {name: e.module for name, e in model.pipeline.engines.items()}  # type: ignore[attr-defined]
        specs = {name: e.spec for name, e in model.pipeline.engines.items()}
        modules["vae_encoder"], specs["vae_encoder"] = Encode(), ENCODER
        engines = {
            name: OffloadedEngine(
                self.offloader,
                name,
                specs[name],
                torch.device("cpu"),
                partial(self._load, name, modules[name], specs[name]),
            )
            for name in modules
        }
        self.pipeline = Pipeline(model.pipeline.bundle, engines, offloader=self.offloader)

    def _load(self, name: str, module: torch.nn.Module, spec: EngineSpec) -> Engine:
        engine = TorchEngine(module, spec)
        gc.collect()
        alive = {n for n, reference in self.alive.items() if reference() is not None}
        self.together.append({stage_of(n) for n in (*alive, name)})
        self.alive[name] = weakref.ref(engine)
        return engine


@pytest.mark.parametrize("options", [{}, {"sampler": "dpm_adaptive"}, {"images_per_prompt": 2}])
def test_the_images_are_the_same_and_one_stage_is_in_memory(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = tiny_model(tmp_path, "sdxl")
    watched = Watched(model)
    arguments: dict[str, Any] = {"steps": 4, "seed": 3, "output_type": "np", **options}
    expected = as_array(model.pipeline("a red circle", "green", **arguments).images)
    for _ in range(2):
        actual = as_array(watched.pipeline("a red circle", "green", **arguments).images)
        assert np.array_equal(actual, expected)
    assert watched.together, "something was loaded"
    assert all(len(stages) == 1 for stages in watched.together), watched.together
    assert {stage for stages in watched.together for stage in stages} == {"text", "unet", "vae"}
    assert watched.offloader.loaded() == ("vae_decoder",)


def test_beginning_with_an_image_has_turns_too(tmp_path: Path) -> None:
    watched = Watched(tiny_model(tmp_path, "sdxl"))
    image = Image.new("RGB", (48, 64), "red")
    mask = np.zeros((64, 48), np.uint8)
    mask[:32] = 255
    watched.pipeline("a", image=image, mask_image=mask, steps=4, seed=1)
    assert all(len(stages) == 1 for stages in watched.together), watched.together


def test_weights_are_put_in_again_when_the_turn_comes_back(tmp_path: Path) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.factor

    spec = EngineSpec((TensorSpec("x", "float32", ("B",)),), (TensorSpec("y", "float32", ("B",)),))
    offloader = Offloader()
    engine = OffloadedEngine(
        offloader, "unet", spec, torch.device("cpu"), lambda: TorchEngine(Scaled(), spec)
    )
    engine.with_weights({"factor": torch.tensor([3.0])})
    offloader.begin("vae")
    assert not engine.is_loaded
    binding = engine.bind(B=1)
    binding.inputs["x"].fill_(2)
    binding.run()
    assert binding.outputs["y"].item() == 6
