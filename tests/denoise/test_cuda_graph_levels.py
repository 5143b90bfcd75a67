"""Graph levels of a pipeline: who gets which, and the same images at each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdrt.pipeline.pipeline
from kdrt.common.streams import OwnStream
from kdrt.compat import StableDiffusionXLKDiffusionPipeline
from kdrt.denoise.cuda_graphs import CudaGraphRunner, cuda_graph_level
from kdrt.denoise.denoising import Denoising
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Engine
from tests.support.tiny_model import TinyModel, tiny_model


class Work:
    """A stand-in for a captured graph, which does the work again."""

    def __init__(self, work: object) -> None:
        self._work, self.size, self.replays = work, 1, 0
        work()  # type: ignore[operator]

    def replay(self) -> None:
        self.replays += 1
        self._work()  # type: ignore[operator]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """All captures, which are possible on this CPU now."""
    works: list[Work] = []

    def capture(work: object, held: object) -> Work:
        works.append(Work(work))
        return works[-1]

    def runner(self: Denoising, denoise: object) -> CudaGraphRunner:
        return CudaGraphRunner(denoise, self._cuda_graph, self.graphs, capture)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoising, "_runner", runner)
    monkeypatch.setattr(
        kdrt.pipeline.pipeline, "cuda_graph_level", lambda asked, engine: asked or "off"
    )
    return works


def at(model: TinyModel, level: str) -> Pipeline:
    return Pipeline(model.pipeline.bundle, model.pipeline.engines, cuda_graph=level)  # type: ignore[arg-type]


MASK = np.zeros((64, 48), np.uint8)
MASK[:32] = 255


@pytest.mark.parametrize("level", ["step", "loop"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_rescale": 0.6},
        {"guidance_method": "apg", "apg_threshold": 2.0},
        {"guidance_method": "cfg_zero_star", "sampler": "tcd"},
        {"sampler": "euler_cfg_pp"},
        {"sampler": "dpmpp_3m_sde", "images_per_prompt": 2},
        {"image": torch.ones(1, 4, 8, 6), "mask_image": MASK},
        {"image": torch.ones(1, 4, 8, 6), "mask_image": MASK // 2, "soft_mask": True},
    ],
    ids=["plain", "unguided", "rescaled", "apg", "zero*", "cfg++", "noisy", "masked", "soft"],
)
def test_every_level_makes_the_same_images(
    sdxl: TinyModel, made: list[Work], level: str, options: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"steps": 5, "output_type": "latent", **options}
    pipe = at(sdxl, level)
    for seed in (1, 2):
        expected = sdxl.pipeline("a red circle", seed=seed, **arguments).images
        actual = pipe("a red circle", seed=seed, **arguments).images
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(made) == 1, "the second image needs no new capture"
    assert made[0].replays == (2 if level == "loop" else 2 * len(pipe.stream("a", **arguments)))


@pytest.mark.parametrize("level", ["step", "loop"])
@pytest.mark.parametrize("masked", [False, True])
def test_an_interval_of_guidance_makes_the_same_images(
    sdxl: TinyModel, made: list[Work], level: str, masked: bool
) -> None:
    """Steps have a graph for each kind of evaluation; an interval that leaves the sequence of
    kinds as it is needs no other graph of the whole run."""
    options = {"image": torch.ones(1, 4, 8, 6), "mask_image": MASK} if masked else {}
    arguments: dict[str, Any] = {"steps": 6, "seed": 1, "output_type": "latent", **options}
    pipe = at(sdxl, level)
    for limits, graphs in (((0.5, 5.0), 1), ((0.5, 5.1), 1), ((-1.0, 5.0), 2)):
        expected = sdxl.pipeline("a", guidance_interval=limits, **arguments).images
        actual = pipe("a", guidance_interval=limits, **arguments).images
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert len(made) == (graphs if level == "loop" else 2)


@pytest.mark.parametrize("level", ["step", "loop"])
def test_a_deep_cache_makes_the_same_images(tmp_path: Path, made: list[Work], level: str) -> None:
    model = tiny_model(tmp_path, "sdxl", deep=True)
    pipe = at(model, level)
    arguments: dict[str, Any] = {
        "steps": 6,
        "sampler": "heun",
        "output_type": "latent",
        "deep_cache": 3,
    }
    interval: dict[str, Any] = {"guidance_interval": (0.5, 5.0)}
    plain: dict[str, Any] = {}
    for seed, more, graphs in ((1, plain, 1), (2, plain, 1), (3, interval, 2)):
        expected = model.pipeline("a", seed=seed, **arguments, **more).images
        actual = pipe("a", seed=seed, **arguments, **more).images
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        assert len(made) == (graphs if level == "loop" else 2 * graphs)


@pytest.mark.parametrize("level", ["step", "loop"])
def test_perturbed_attention_makes_the_same_images(
    tmp_path: Path, made: list[Work], level: str
) -> None:
    model = tiny_model(tmp_path, "sdxl", perturbed=True)
    pipe = at(model, level)
    arguments: dict[str, Any] = {"steps": 5, "output_type": "latent", "pag_adaptive_scale": 0.002}
    for seed, scale in ((1, 3.0), (2, 2.0)):
        expected = model.pipeline("a", seed=seed, pag_scale=scale, **arguments).images
        actual = pipe("a", seed=seed, pag_scale=scale, **arguments).images
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(made) == 1, "another scale needs no new capture"


def test_one_capture_serves_every_guidance_scale(sdxl: TinyModel, made: list[Work]) -> None:
    pipe = at(sdxl, "step")
    for scale in (2.0, 9.0):
        actual = pipe("a", seed=1, steps=4, guidance_scale=scale, output_type="latent").images
        expected = sdxl.pipeline(
            "a", seed=1, steps=4, guidance_scale=scale, output_type="latent"
        ).images
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert len(made) == 1


def test_a_region_is_replaced_in_place(sdxl: TinyModel, made: list[Work]) -> None:
    pipe = at(sdxl, "step")
    for value, mask in ((1.0, MASK), (-0.5, np.ascontiguousarray(MASK[::-1]))):
        options: dict[str, Any] = {
            "image": torch.full((1, 4, 8, 6), value),
            "mask_image": mask,
            "steps": 4,
            "seed": 3,
            "output_type": "latent",
        }
        expected = sdxl.pipeline("a", **options).images
        torch.testing.assert_close(pipe("a", **options).images, expected, rtol=1e-4, atol=1e-4)
    assert len(made) == 1


def test_who_watches_gets_every_step(sdxl: TinyModel, made: list[Work]) -> None:
    pipe = at(sdxl, "loop")
    seen: list[int] = []
    pipe("a", steps=4, callback=lambda step: seen.append(step.index))
    assert seen == [0, 1, 2, 3]
    assert [step.index for step in pipe.stream("a", steps=4)] == [0, 1, 2, 3]
    assert len(made) == 1
    pipe("a", steps=4)
    assert [work.replays for work in made] == [8, 1]


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "foreign"])
def test_what_decides_as_it_goes_is_not_captured(
    sdxl: TinyModel, made: list[Work], sampler: str
) -> None:
    def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):  # type: ignore[no-untyped-def]
        for index in range(len(sigmas) - 1):
            denoised = model(x, sigmas[index] * x.new_ones(len(x)), **(extra_args or {}))
            x = x + (x - denoised) / sigmas[index] * (sigmas[index + 1] - sigmas[index])
        return x

    at(sdxl, "loop")("a", steps=3, sampler=euler if sampler == "foreign" else sampler)
    assert made == []


@pytest.mark.parametrize(("level", "replays"), [("step", 5), ("loop", 1)])
def test_the_compat_classes_replay_the_pipelines_graphs(
    sdxl: TinyModel, made: list[Work], level: str, replays: int
) -> None:
    graphed, plain = (
        StableDiffusionXLKDiffusionPipeline(pipeline)
        for pipeline in (at(sdxl, level), sdxl.pipeline)
    )
    latents = torch.randn(1, 4, 8, 6)
    arguments: dict[str, Any] = {
        "height": 64,
        "width": 48,
        "num_inference_steps": 5,
        "latents": latents,
        "output_type": "latent",
    }
    pipes: list[Any] = [plain, graphed]
    expected, actual = (pipe("a red circle", **arguments).images for pipe in pipes)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert [work.replays for work in made] == [replays]
    assert len(graphed.pipeline.denoising) == 1, "the pipeline's own buffers"


def test_other_engines_drop_the_graphs(sdxl: TinyModel, made: list[Work]) -> None:
    pipe = at(sdxl, "step")
    pipe("a", steps=3)
    assert len(pipe.denoising.graphs) == 1
    pipe.replace_engines({"unet": sdxl.pipeline.engines["unet"]})
    assert len(pipe.denoising.graphs) == 0
    for width in (48, 56, 64, 72, 80):
        pipe("a", steps=3, width=width, output_type="latent")
    assert len(pipe.denoising.graphs) == 4, "those of sizes that were forgotten are gone"


def test_a_cpu_has_no_graphs(sdxl: TinyModel) -> None:
    bundle, engines = sdxl.pipeline.bundle, sdxl.pipeline.engines
    assert sdxl.pipeline.cuda_graph == "off"
    assert Pipeline(bundle, engines, cuda_graph="off").cuda_graph == "off"
    with pytest.raises(InvalidRequestError, match=r"cuda_graph='step' needs CUDA.*runs on cpu"):
        Pipeline(bundle, engines, cuda_graph="step")
    with pytest.raises(
        InvalidRequestError, match="unknown cuda_graph 'all'; known: off, step, loop"
    ):
        Pipeline(bundle, engines, cuda_graph="all")  # type: ignore[arg-type]


def test_on_cuda_steps_are_captured_unless_the_engine_does_it_itself(sdxl: TinyModel) -> None:
    engine: Engine = sdxl.pipeline.engines["unet"]
    engine.device = torch.device("cuda")
    assert cuda_graph_level(None, engine) == "step"
    engine.capturable = False
    assert cuda_graph_level(None, engine) == "off"
    assert cuda_graph_level("loop", engine) == "loop"


def test_streams_change_hands_around_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            events.append(f"{self.name} waits for {other.name}")

    class Entered:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            events.append(f"in {self.stream.name}")

        def __exit__(self, *error: object) -> None:
            events.append(f"out of {self.stream.name}")

    caller, own = Stream("caller"), Stream("own")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: caller)
    monkeypatch.setattr(torch.cuda, "stream", Entered)
    closed: list[bool] = []

    def steps() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            closed.append(True)

    of_steps: Any = steps()
    stand_in: Any = own
    run: Any = OwnStream(torch.device("cuda"), stand_in).over(of_steps)
    hand_over = ["own waits for caller", "in own", "out of own", "caller waits for own"]
    assert next(run) == 0
    assert events == hand_over
    assert next(run) == 1
    assert events == hand_over * 2
    run.close()
    assert closed == [True]
    assert events == hand_over * 2, "leaving needs no GPU"
