"""A whole model of a pruned UNet (as Segmind's SSD-1B) in the EDM formulation (as Playground v2.5),
exported with a shallow UNet: FreeU, LoRA and DeepCache on it are those of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler
from safetensors.torch import save_file

import kdrt
from kdrt.cli.inspect import inspect
from kdrt.pipeline.pipeline import Pipeline
from kdrt_export.stage import export
from kdrt_export.verify import relative_error
from tests.support.lora_files import ATTENTION, CONVOLUTIONS, networks, peft, pipeline, random_lora
from tests.support.tiny_bundles import by_diffusers, by_kdrt, latents
from tests.support.tiny_networks import unet

BOUND = 2e-5
FREEU = {"b1": 1.2, "b2": 1.3, "s1": 0.8, "s2": 0.3}
PRUNED: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2D",
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, [1, 2], [2, 1]],
    "reverse_transformer_layers_per_block": [[1, 1, 2], [2, 1, 1], 1],
}


def diffusers_pipeline() -> Any:
    pipe = pipeline("sdxl")
    pipe.register_modules(
        unet=unet("sdxl", cross_attention_dim=48, **PRUNED), scheduler=EDMEulerScheduler()
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def expected(pipe: Any) -> torch.Tensor:
    # diffusers begins at √(σ² + 1), and kdrt at σ.
    begin = pipe.scheduler.config.sigma_max / pipe.scheduler.init_noise_sigma
    return by_diffusers(pipe, latents=latents() * begin)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pruned")
    diffusers_pipeline().save_pretrained(home / "folder")
    return export(str(home / "folder"), home / "bundle", variants=["deepcache"])


@pytest.fixture
def pipe(bundle: Path) -> Pipeline:
    return kdrt.load(bundle, engine="onnxruntime")


def test_the_manifest_says_how_it_was_trained(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = pipe.bundle.manifest.scheduler
    assert facts.prediction_type == "epsilon"
    assert facts.edm is not None
    assert (facts.edm.sigma_min, facts.edm.sigma_max, facts.edm.sigma_data) == (0.002, 80.0, 0.5)
    inspect(str(pipe.bundle.path))
    shown = capsys.readouterr().out
    assert "0.002 to 80, continuous (EDM)" in shown
    assert "beta" not in shown


def test_latents_are_those_of_diffusers(pipe: Pipeline) -> None:
    theirs = diffusers_pipeline()
    assert relative_error(by_kdrt(pipe), expected(theirs)) < BOUND
    theirs.enable_freeu(**FREEU)
    plain = by_kdrt(pipe)
    ours = by_kdrt(pipe, freeu=tuple(FREEU.values()))
    assert relative_error(ours, expected(theirs)) < BOUND
    assert relative_error(ours, plain) > 1e-3


def test_a_lora_on_every_layer_is_that_of_diffusers(pipe: Pipeline, tmp_path: Path) -> None:
    theirs = diffusers_pipeline()
    file = tmp_path / "all.safetensors"
    modules = (*ATTENTION, *CONVOLUTIONS)
    save_file(peft(random_lora(networks(theirs), modules, alpha=None)), file)
    theirs.load_lora_weights(str(file))
    plain = by_kdrt(pipe)
    pipe.adapters.load_lora(file)
    ours = by_kdrt(pipe)
    assert relative_error(ours, expected(theirs)) < BOUND
    assert relative_error(ours, plain) > 1e-2


def test_deep_cache_is_near_and_full_evaluations_are_exact(pipe: Pipeline) -> None:
    whole = by_kdrt(pipe)
    cached = by_kdrt(pipe, deep_cache=2)
    assert 1e-6 < relative_error(cached, whole) < 0.5
    # Every evaluation is full where a run has only one.
    assert torch.equal(by_kdrt(pipe, deep_cache=2, sigmas=[80, 0]), by_kdrt(pipe, sigmas=[80, 0]))
