"""Evaluations that do less: which, and what they compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.inputs import DenoiserInputs
from kdrt.denoise.shortcuts import EvaluationOrder, Shortcuts, check_deep_cache, check_interval
from kdrt.errors import InvalidRequestError
from kdrt.images.infotext import parse_infotext
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.fields import Request
from kdrt.request.grid import training_table
from kdrt.request.resolve import resolve
from kdrt.sampling import SeededNoise, make_plan, sample
from kdrt_engines import EngineSpec
from kdrt_engines.spec import TensorSpec
from tests.support.tiny_model import (
    Family,
    TinyModel,
    tiny_deep_unet,
    tiny_model,
    tiny_shallow_unet,
    unet_spec,
)

SIGMAS = st.lists(st.floats(0.01, 20), min_size=1, max_size=40)
LIMITS = st.tuples(st.floats(0, 5), st.floats(6, 20))
EVERYWHERE, NOWHERE = (-1.0, 1e6), (1e5, 1e6)
MASK = np.zeros((64, 48), np.uint8)
MASK[:32] = 255


@given(SIGMAS, st.none() | LIMITS, st.none() | st.integers(2, 6))
def test_every_evaluation_has_what_it_needs(
    sigmas: list[float], limits: tuple[float, float] | None, deep_cache: int | None
) -> None:
    shortcuts = Shortcuts(limits, deep_cache)
    kinds = shortcuts.kinds(sigmas)
    order = EvaluationOrder(shortcuts)
    assert kinds == tuple(map(order.next, sigmas))
    assert set(kinds) <= set(shortcuts.possible_kinds())
    shallow = 0
    for index, (sigma, kind) in enumerate(zip(sigmas, kinds, strict=True)):
        assert kind.guided == (limits is None or limits[0] < sigma <= limits[1])
        shallow = 0 if kind.full else shallow + 1
        assert shallow < (deep_cache or 1)
        if not kind.full:  # the one before left what it goes on from, for the same batch
            assert kinds[index - 1].guided == kind.guided
        elif deep_cache and index >= deep_cache:  # and nothing is full without need
            before = kinds[index - deep_cache + 1 : index]
            alike = {each.guided for each in before} == {kind.guided}
            assert not alike or not any(each.full for each in before)


def test_the_paper_includes_the_upper_end_only() -> None:
    shortcuts = Shortcuts((1.0, 3.0))
    assert [shortcuts.guides(sigma) for sigma in (3.1, 3.0, 1.1, 1.0)] == [False, True, True, False]


def latents(model: TinyModel, **arguments: Any) -> torch.Tensor:
    arguments = {"steps": 5, "seed": 3, "output_type": "latent", **arguments}
    model.unet.calls.clear()
    result = model.pipeline("a red circle", "green", **arguments).images
    assert isinstance(result, torch.Tensor)
    return result


def batches(model: TinyModel) -> list[int]:
    return [len(call["sample"]) for call in model.unet.calls]


VARIOUS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "heun", "images_per_prompt": 2},
        {"sampler": "dpmpp_sde", "guidance_rescale": 0.5},
        {"sampler": "dpm_adaptive", "images_per_prompt": 2},
        {"image": torch.ones(1, 4, 8, 6), "mask_image": MASK},
    ],
    ids=["plain", "heun", "rescaled", "adaptive", "masked"],
)


@VARIOUS
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_guidance_everywhere_is_the_plain_run_bit_for_bit(
    family: Family, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, family)
    expected = latents(model, **options)
    assert torch.equal(latents(model, guidance_interval=EVERYWHERE, **options), expected)


@VARIOUS
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_guidance_nowhere_is_the_run_without_guidance(
    family: Family, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(tmp_path, family)
    unguided = latents(model, guidance_scale=1.0, **options)
    expected = batches(model)
    assert torch.equal(latents(model, guidance_interval=NOWHERE, **options), unguided)
    assert batches(model) == expected, "half of the work is saved"


def test_in_between_each_evaluation_is_the_one_or_the_other(
    sdxl: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against two denoisers, each prepared for a run of its own."""
    low, high = 0.4, 4.0
    actual = latents(sdxl, guidance_interval=(low, high))
    assert set(batches(sdxl)) == {1, 2}

    prepared: list[Denoiser] = []
    original = Denoiser.prepare

    def prepare(self: Denoiser, inputs: DenoiserInputs, *, unconditional: bool = False) -> None:
        prepared.append(self)
        original(self, inputs, unconditional=unconditional)

    monkeypatch.setattr(Denoiser, "prepare", prepare)
    latents(sdxl, guidance_scale=1.0)
    latents(sdxl)
    unguided, guided = prepared
    sigmas = [step.sigma for step in sdxl.pipeline.stream("a", steps=5, guidance_scale=1.0)]
    latents(sdxl, guidance_scale=1.0)  # those steps had another prompt

    noise = SeededNoise([3], (4, 8, 6)).latents() * sigmas[0]
    expected = sample(
        make_plan("dpmpp_2m", [*sigmas, 0.0]),
        noise,
        lambda x, sigma: (guided if low < sigma <= high else unguided)(x, sigma),
    )
    assert torch.equal(actual, expected)


def test_a_foreign_sampler_is_guided_by_its_own_sigmas(sdxl: TinyModel) -> None:
    def euler(
        model: Any,
        x: torch.Tensor,
        sigmas: torch.Tensor,
        extra_args: Any = None,
        callback: Any = None,
        disable: Any = None,
    ) -> torch.Tensor:
        for index in range(len(sigmas) - 1):
            denoised = model(x, sigmas[index] * x.new_ones(len(x)), **(extra_args or {}))
            x = x + (x - denoised) / sigmas[index] * (sigmas[index + 1] - sigmas[index])
        return x

    limits = (0.4, 4.0)
    ours = latents(sdxl, sampler="euler", guidance_interval=limits)
    sizes = batches(sdxl)
    theirs = latents(sdxl, sampler=euler, guidance_interval=limits)
    assert batches(sdxl) == sizes
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


class ByHand:
    """A denoiser without guidance that keeps the deep feature itself."""

    def __init__(self, model: TinyModel, every: int) -> None:
        self._model, self._every, self._count = model, every, 0
        self._told = {k: v[-1:] for k, v in model.unet.calls[0].items() if k != "sample"}
        self._schedule = training_table(model.manifest.scheduler)

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        told = {**self._told, "timestep": torch.tensor([self._schedule.timestep(sigma)])}
        sample = x * (1 / math.sqrt(sigma * sigma + 1))
        if self._count % self._every == 0:
            _, self._deep = tiny_deep_unet(sample, **told)
        self._count += 1
        return x - sigma * tiny_shallow_unet(sample, told["timestep"], deep_feature=self._deep)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2s_ancestral"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_deep_cache_is_a_loop_written_by_hand(
    family: Family, sampler: str, tmp_path: Path
) -> None:
    """Stages count, not steps."""
    model = tiny_model(tmp_path, family, deep=True)
    actual = latents(model, sampler=sampler, guidance_scale=1.0, deep_cache=3)
    assert model.shallow is not None
    full, shallow = len(model.unet.calls), len(model.shallow.calls)
    assert full == -(-(full + shallow) // 3)
    sigmas = [step.sigma for step in model.pipeline.stream("a", steps=5)]
    noise = SeededNoise([3], (4, 8, 6))
    start = noise.latents() * sigmas[0]
    by_hand = ByHand(model, 3)
    planned = make_plan(sampler, [*sigmas, 0.0])
    expected = sample(planned, start, by_hand, noise.draw(planned.slots))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@VARIOUS
def test_a_network_that_does_not_change_loses_nothing(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a deep feature that depends on the prompt alone, both halves of every kind of run are
    those of the whole network: nothing is swapped or stale."""
    from tests.support import tiny_model as networks

    def prompt_only(
        sample: torch.Tensor, timestep: torch.Tensor, **rest: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        still = {"sample": torch.zeros_like(sample), "timestep": torch.zeros_like(timestep)}
        deep = networks.tiny_unet(**still, **rest)
        return networks.tiny_shallow_unet(sample, timestep, deep_feature=deep), deep

    monkeypatch.setattr(networks, "tiny_deep_unet", prompt_only)
    model = tiny_model(tmp_path, "sdxl", deep=True)
    for more in ({}, {"guidance_interval": (0.4, 4.0)}):
        expected = latents(model, **options, **more)
        assert torch.equal(latents(model, deep_cache=3, **options, **more), expected)
        assert model.shallow is not None
        assert len(model.shallow.calls) > 0


def with_inputs(*names: str) -> EngineSpec:
    """A UNet that also takes these, and hands out no depth."""
    spec = unet_spec()
    more = tuple(TensorSpec(name, "float32", ("B",)) for name in names)
    return EngineSpec((*spec.inputs, *more), spec.outputs)


def test_the_unet_in_use_must_hand_out_its_depth(tmp_path: Path) -> None:
    """An IP-Adapter's, in a bundle that has a shallow one for the plain UNet, does not."""
    model = tiny_model(tmp_path, deep=True)
    request = Request(prompt="a", deep_cache=2)
    table = training_table(model.manifest.scheduler)
    unet = model.manifest.components["unet"].spec()
    assert resolve(request, model.manifest, unet, table).shortcuts.deep_cache == 2
    with pytest.raises(InvalidRequestError, match="the plain UNet, and this one has ip-adapter"):
        resolve(request, model.manifest, with_inputs("ip_scale"), table)
    with pytest.raises(InvalidRequestError, match="pag_scale and deep_cache do not go together"):
        resolve({**request, "pag_scale": 3}, model.manifest, with_inputs("pag_rows"), table)


def test_a_deep_cache_needs_a_shallow_unet(sdxl: TinyModel) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"'tiny' has none; export it with `kdrt export tests"
    ):
        sdxl.pipeline("a", deep_cache=2)


def test_nothing_is_left_for_the_next_image(sdxl: TinyModel) -> None:
    expected = latents(sdxl)
    latents(sdxl, guidance_interval=(0.4, 4.0), seed=8)
    assert torch.equal(latents(sdxl), expected)
    assert set(batches(sdxl)) == {2}


def test_the_image_says_so(sdxl: TinyModel) -> None:
    result = sdxl.pipeline("a", seed=1, steps=2, guidance_interval=(0.25, 5.42))
    assert parse_infotext(str(result.infotexts[0]))["Guidance interval"] == "0.25 to 5.42"
    assert "Deep cache" not in str(result.infotexts[0])
    plain = sdxl.pipeline("a", seed=1, steps=2)
    assert "Guidance interval" not in str(plain.infotexts[0])


@pytest.mark.parametrize(
    "value", [(1.0,), (2.0, 1.0), (1.0, 1.0), (0.0, math.inf), (math.nan, 1.0), "12", 3.0, (0, "a")]
)
def test_an_interval_is_two_noise_levels(value: object) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"guidance_interval must be two finite noise levels"
    ):
        check_interval("guidance_interval", value)


@pytest.mark.parametrize("value", [0, -2, 1.5, True, "3"])
def test_a_deep_cache_is_a_number_of_evaluations(value: object) -> None:
    with pytest.raises(
        InvalidRequestError, match="deep_cache must be a whole number of at least 1"
    ):
        check_deep_cache("deep_cache", value)
    with pytest.raises(InvalidRequestError, match="every evaluation full; leave it out, or take 2"):
        check_deep_cache("deep_cache", 1)


def test_where_an_interval_would_do_nothing(sdxl: TinyModel, tmp_path: Path) -> None:
    def refused(pipe: Pipeline, match: str, **options: Any) -> None:
        with pytest.raises(InvalidRequestError, match=match):
            pipe("a", guidance_interval=(0.3, 5.0), **options)

    refused(sdxl.pipeline, "no effect: at guidance_scale=1 there is no", guidance_scale=1.0)
    refused(
        sdxl.pipeline, "at every noise level; take a sampler without CFG", sampler="euler_cfg_pp"
    )
    distilled = tiny_model(tmp_path / "lcm", "sd", distilled=True)
    refused(distilled.pipeline, "'tiny' is distilled and runs no second half")
