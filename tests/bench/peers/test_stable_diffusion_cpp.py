"""stable-diffusion.cpp as a peer, with a stand-in for its package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdrt.bundle import open_bundle
from kdrt_bench.errors import BenchmarkError, PeerUnavailableError
from kdrt_bench.ggml_model import check_architecture
from kdrt_bench.jobs import BenchJob, ImageWorkload
from kdrt_bench.models import model_of
from kdrt_bench.runners import noise_levels
from kdrt_bench.stages import StageClock

MakeRunner = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the stand-in was asked for; ``made`` is how many steps it makes."""
    asked: dict[str, Any] = {"made": 4}

    class StandIn:
        def __init__(self, **options: Any) -> None:
            asked["options"] = options

        def generate_image(self, prompt: str, **options: Any) -> list[Any]:
            asked.update(options, prompt=prompt)
            for step in range(asked["made"] + 1):
                options["progress_callback"](step, options["sample_steps"], 0.0)
            return [Image.new("RGBA", (options["width"], options["height"]), "white")]

    stand_in = SimpleNamespace(StableDiffusion=StandIn)
    monkeypatch.setitem(sys.modules, "stable_diffusion_cpp", stand_in)
    monkeypatch.delitem(sys.modules, "kdrt_bench.peers.stable_diffusion_cpp", raising=False)
    return asked


@pytest.fixture
def runner(asked: dict[str, Any], demo_bundle: Path, tmp_path: Path) -> MakeRunner:
    """Runs a workload of the demo; its file is there already."""
    from kdrt_bench.peers.stable_diffusion_cpp import StableDiffusionCpp

    def make(workload: ImageWorkload, clock: StageClock) -> Any:
        model = model_of(str(demo_bundle)).model_copy(update={"cache": tmp_path})
        (tmp_path / "ggml" / "f16").mkdir(parents=True)
        job = BenchJob(
            peer="sd-cpp-f16", model=model, workloads=(workload,), threads=2, folder=tmp_path
        )
        peer = StableDiffusionCpp(job, open_bundle(str(demo_bundle)), {"weights": "f16"})
        return peer.generator(workload, clock)

    return make


def test_it_makes_the_job_of_the_others(
    asked: dict[str, Any], runner: MakeRunner, demo_bundle: Path
) -> None:
    clock = StageClock()
    made = runner(ImageWorkload(steps=4, guidance=1), clock)
    made.run()
    (image,) = made.outputs()
    assert image.dtype == np.float32
    assert image.shape == (1, 64, 64, 3)
    assert image.max() == 1.0
    assert asked["options"]["n_threads"] == 2
    assert asked["options"]["model_path"].endswith("ggml/f16/model.gguf")
    assert (asked["sample_steps"], asked["cfg_scale"], asked["seed"]) == (4, 1, 7)
    levels = [float(level) for level in asked["sigmas"].split(",")]
    assert levels == pytest.approx(noise_levels(open_bundle(str(demo_bundle)), 4))
    assert set(clock.seconds()) == {"encode", "denoise", "decode"}


def test_a_loop_that_makes_other_steps_is_no_comparison(
    asked: dict[str, Any], runner: MakeRunner
) -> None:
    made = runner(ImageWorkload(steps=4), StageClock())
    asked["made"] = 3
    with pytest.raises(BenchmarkError, match="3 steps were made in place of 4"):
        made.run()


def test_it_says_that_it_cannot_read_the_demo(demo_bundle: Path) -> None:
    with pytest.raises(PeerUnavailableError, match="'demo' has a UNet of another"):
        check_architecture(model_of(str(demo_bundle)))
