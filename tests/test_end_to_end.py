"""The main job: the demo model through the exporter and ONNX Runtime equals diffusers' networks
in eager PyTorch, from the prompt to the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import kdrt
from kdrt.bundle import Bundle
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines.torch_eager import TorchEngine
from kdrt_export.components import ExportComponent, ExportTextEncoder, ExportUNet, ExportVaeDecoder
from kdrt_export.sources import open_source
from tests.support.image_arrays import as_tensor


class Untouched(nn.Module):
    """A component that answers with the original network: no rewrite, no ONNX."""

    def __init__(self, component: ExportComponent) -> None:
        super().__init__()
        self.component = component

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.component.reference(*inputs)


@pytest.fixture(scope="module")
def eager(demo_bundle: Path) -> Pipeline:
    source = open_source("demo")
    components: dict[str, ExportComponent] = {
        "unet": ExportUNet(source.unet()),
        "vae_decoder": ExportVaeDecoder(source.vae()),
        "text_encoder": ExportTextEncoder(source.text_encoder(0), normalize=False),
        "text_encoder_2": ExportTextEncoder(source.text_encoder(1), normalize=False),
    }
    engines = {name: TorchEngine(Untouched(c), c.spec) for name, c in components.items()}
    return Pipeline(Bundle.open(demo_bundle), engines)


@pytest.fixture(scope="module")
def exported(demo_bundle: Path) -> Pipeline:
    return kdrt.load(demo_bundle)


REQUESTS: dict[str, dict[str, Any]] = {
    "default": {},
    "odd size": {"height": 52, "width": 76, "steps": 6},
    "freeu": {"freeu": (1.1, 1.2, 0.6, 0.4), "steps": 6},
    "negative and clip skip": {"negative_prompt": "blue", "clip_skip": 1, "steps": 6},
    "stochastic": {"sampler": "dpmpp_sde", "schedule": "exponential", "steps": 6},
    "without guidance": {"guidance_scale": 1.0, "sampler": "heun", "steps": 4},
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_latents_equal_eager(eager: Pipeline, exported: Pipeline, request_name: str) -> None:
    options: dict[str, Any] = {
        "prompt": ["a red circle on a blue background", "a star"],
        "seed": 7,
        "output_type": "latent",
        **REQUESTS[request_name],
    }
    expected, out = (as_tensor(p(**options).images) for p in (eager, exported))
    assert float((out - expected).norm() / expected.norm()) <= 5e-5


def test_pixels_equal_eager(eager: Pipeline, exported: Pipeline) -> None:
    images = [
        as_tensor(p("a green heart", seed=1, output_type="pt").images) for p in (eager, exported)
    ]
    assert float((images[0] - images[1]).abs().max()) < 1e-3
