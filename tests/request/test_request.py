"""Every wrong argument: one clear sentence, before anything is computed."""

from __future__ import annotations

import contextlib
import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdrt.bundle import Manifest
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt.images.infotext import parse_infotext
from kdrt.request.fields import FIELDS, Request
from kdrt.request.grid import training_table
from kdrt.request.resolve import resolve
from kdrt.sampling import SAMPLERS, SCHEDULES
from kdrt_engines import EngineSpec
from tests.support.requests import request_of
from tests.support.tiny_model import TinyModel, tiny_model

HUGE = 10**5000
"""More digits than Python prints."""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": []}, "prompt is an empty list"),
    ({"prompt": 3}, "prompt must be a string or a list of strings, not 3"),
    ({"prompt": ["a", None]}, "prompt must be a string or a list"),
    ({"negative_prompt": ["a", "b"]}, "2 strings in negative_prompt for 1 prompts"),
    ({"negative_prompt": b"a"}, "negative_prompt must be a string"),
    ({"prompt_2": ["a", "b"]}, "2 strings in prompt_2"),
    ({"negative_prompt_2": ["a", "b"]}, "2 strings in negative_prompt_2"),
    ({"height": 100}, "height must be a multiple of 8, and 100 is not: use 96 or 104"),
    ({"width": 7}, "width must be a whole number of at least 8, not 7"),
    ({"width": 64.0}, "width must be a whole number"),
    ({"height": 0}, "height must be a whole number of at least 8"),
    ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"steps": True}, "steps must be a whole number"),
    ({"sampler": "eulre"}, "unknown sampler 'eulre'; known: euler, heun"),
    ({"sampler": None}, "unknown sampler None"),
    ({"schedule": "carras"}, "unknown schedule 'carras'; known: karras"),
    ({"sampler_options": {"eta": 1.0}}, "dpmpp_2m has no option 'eta'"),
    ({"sampler_options": ["eta"]}, "sampler_options must be a mapping"),
    ({"sigmas": [1.0, 2.0]}, "sigmas must descend"),
    ({"sigmas": "karras"}, "sigmas must be a sequence of numbers"),
    ({"sigmas": 3}, "sigmas must be a sequence of numbers"),
    ({"guidance_scale": -1.0}, "guidance_scale must be a finite number of at least 0, not -1.0"),
    ({"guidance_scale": math.inf}, "guidance_scale must be a finite number"),
    ({"guidance_scale": "5"}, "guidance_scale must be a finite number"),
    ({"guidance_rescale": 1.5}, "guidance_rescale must be at most 1, not 1.5"),
    ({"guidance_rescale": math.nan}, "guidance_rescale must be a finite number"),
    ({"images_per_prompt": 0}, "images_per_prompt must be a whole number of at least 1"),
    ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ({"seed": 1.5}, "seed must be a whole number"),
    ({"seed": "7"}, "seed must be a whole number"),
    ({"seed": [1, 2]}, "2 seeds for 1 images"),
    ({"seed": [-1]}, "seed must be a whole number"),
    ({"seed": 2**64}, "seed must be at most 18446744073709551615, not 18446744073709551616"),
    ({"seed": 10**5000}, "seed must be at most 18446744073709551615, not int of 16610 bits"),
    ({"noise_seed": 2**64}, "noise_seed must be at most 18446744073709551615"),
    ({"latents": torch.zeros(1, 4, 6, 8)}, r"of shape \[1, 4, 8, 6\].*not torch.float32 \[1, 4, 6"),
    ({"latents": torch.zeros(1, 4, 8, 6, dtype=torch.int64)}, "floating-point.*not torch.int64"),
    ({"latents": torch.full((1, 4, 8, 6), math.nan)}, "latents must be finite"),
    ({"latents": [0.0]}, "floating-point tensor.*not list"),
    ({"clip_skip": -1}, "clip_skip must be a whole number of at least 0"),
    ({"clip_skip": 9}, "clip_skip must be from 0 to 2"),
    ({"freeu": (1, 2, 3)}, "freeu must be four finite numbers"),
    ({"prompt": "a" * 50_001}, "prompt is 50001 characters long; at most 50000 are allowed"),
    ({"prompt": "\ud83d"}, r"prompt holds half a character \('\\ud83d' at position 0\)"),
    ({"prompt": ["a", "b\udcff"]}, "prompt holds half a character .* at position 1"),
    ({"negative_prompt": "\udcff"}, "negative_prompt holds half a character"),
    ({"prompt_2": "\udcff"}, "prompt_2 holds half a character"),
    ({"negative_prompt_2": "\udcff"}, "negative_prompt_2 holds half a character"),
    (
        {"prompt": "a (red:1e) (hat:250)", "prompt_weighting": "a1111"},
        "a prompt gives 'hat' the weight 250, and weights must be from -100 to 100",
    ),
    ({"negative_prompt": "(a:-101)", "prompt_weighting": "a1111_no_norm"}, "the weight -101"),
    ({"prompt": f"(a:1{'0' * 400})", "prompt_weighting": "a1111"}, "'a' the weight inf"),
    ({"prompt": f"((a:0):1{'0' * 400})", "prompt_weighting": "a1111"}, "'a' the weight nan"),
    ({"prompt": "(" * 5000 + "a", "prompt_weighting": "a1111"}, r"'a' the weight 9\.19"),
    ({"prompt": "a BREAK " * 200, "prompt_weighting": "a1111"}, "is read in 200 chunks"),
    ({"height": 16_384}, "height must be at most 16383, not 16384"),
    ({"width": HUGE}, "width must be at most 16383, not int of 16610 bits"),
    ({"steps": 10_001}, "steps must be at most 10000, not 10001"),
    ({"steps": np.uint64(2**64 - 1)}, "steps must be at most 10000"),
    ({"steps": np.bool_(True)}, "steps must be a whole number"),
    ({"sigmas": itertools.count(-1e9, 1)}, "sigmas are too many: a run has at most 10000 steps"),
    ({"sigmas": [HUGE, 1]}, "sigmas must be a sequence of numbers"),
    ({"timesteps": [HUGE, 1]}, "timesteps must be a sequence of numbers"),
    ({"sigmas": [1e9, 1, 0]}, r"sigmas must be from 1e-08 to 1e\+08, or 0"),
    ({"sigmas": [1, 1e-9, 0]}, r"sigmas must be from 1e-08 to 1e\+08, or 0"),
    ({"sigmas": [math.nan, 0]}, "sigmas must"),
    ({"sigmas": [math.inf, 0]}, "sigmas must be finite"),
    ({"images_per_prompt": 10**23}, "images_per_prompt must be at most 10000, not 10000000000000"),
    ({"guidance_scale": 10_001}, "guidance_scale must be at most 10000, not 10001"),
    ({"guidance_scale": HUGE}, "guidance_scale must be a finite number"),
    ({"guidance_scale": True}, "guidance_scale must be a finite number"),
    ({"guidance_rescale": -HUGE}, "guidance_rescale must be a finite number"),
    ({"guidance_interval": (0, HUGE)}, "guidance_interval must be two finite noise levels"),
    ({"deep_cache": HUGE}, "deep_cache must be at most 2147483647"),
    ({"clip_skip": HUGE}, "clip_skip must be at most 2147483647"),
    ({"comma_backtrack": HUGE}, "comma_backtrack must be at most 2147483647"),
    ({"denoising_end": HUGE}, "denoising_end must be between 0 and 1"),
    ({"denoising_end": math.nan}, "denoising_end must be between 0 and 1, not nan"),
    ({"freeu": (1, 2, 3, HUGE)}, "freeu must be four finite numbers"),
    ({"freeu": (1, 2, 3, 1e9)}, "freeu must be four finite numbers .* of at most 1000"),
    ({"ip_adapter_scale": HUGE}, "ip_adapter_scale must be a finite number, not int of 16610 bits"),
    ({"original_size": (64, HUGE)}, "original_size must be at most 2147483647"),
    ({"sampler_options": {"sampler": 1}}, "dpmpp_2m has no option 'sampler'"),
    ({"schedule_options": {"steps": 1}}, "the karras schedule has no option 'steps'"),
    ({"schedule_options": {"rho": HUGE}}, "rho must be a finite number above 0"),
    ({"schedule_options": {"rho": 1e-300}}, "does not descend with these options"),
    ({"sampler": "euler", "sampler_options": {"s_churn": HUGE}}, "s_churn of euler must be a fin"),
    ({"sampler": "seeds_2", "sampler_options": {"r": 5e-324}}, "seeds_2 has no finite steps"),
    ({"sampler": "a " * 100_000}, "unknown sampler 'a a a a a"),
    ({"schedule": "a" * 1000}, "unknown schedule 'a+…; known"),
    ({"freeu": "sd9"}, "no preset 'sd9'; it has sd14"),
    ({"freeu": range(10**12)}, "freeu must be four finite numbers"),
    ({"freeu": (1, 2, 3, math.nan)}, "freeu must be four finite numbers"),
    ({"original_size": 64}, "original_size must be two whole numbers"),
    ({"negative_target_size": (64, -1)}, "negative_target_size must be a whole number"),
    ({"callback": "print"}, "callback must be a function, not 'print'"),
    ({"progress": "no"}, "progress must be True or False, not 'no'"),
    ({"keep_unmasked": np.ones(2)}, "keep_unmasked must be True or False"),
    ({"latents": torch.zeros(1, 4, 8, 6).to_sparse()}, "latents must be a dense tensor"),
    ({"image": torch.zeros(1, 4, 8, 6, device="meta")}, "image must be a dense tensor"),
    ({"image": torch.zeros(3, 64, 48).to_sparse()}, "image must be a dense tensor"),
    ({"sigmas": torch.zeros(2, device="meta")}, "sigmas must be a sequence of numbers"),
    ({"output_type": "jpg"}, "unknown output_type 'jpg'; known: pil, np, pt, latent"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_arguments(sdxl: TinyModel, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        sdxl.pipeline(**({"prompt": "a"} | wrong))
    assert not sdxl.unet.calls
    assert not sdxl.text_encoders[0].calls


@pytest.mark.parametrize(
    "argument",
    [
        {"prompt_2": "b"},
        {"negative_prompt_2": "b"},
        {"original_size": (64, 64)},
        {"target_size": (64, 64)},
        {"crops_coords_top_left": (1, 0)},
        {"negative_original_size": (64, 64)},
    ],
)
def test_arguments_for_sdxl_only(sd: TinyModel, argument: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=f"only SDXL models take {next(iter(argument))}"):
        sd.pipeline("a", **argument)


@pytest.mark.parametrize("wrong", ["a red circle", None, [], 5])
def test_what_is_no_request_is_told_what_takes_it(sd: TinyModel, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"a kdrt\.Request is a mapping"):
        sd.pipeline.generate(wrong)


def test_lists_are_sizes_too(sd: TinyModel, sdxl: TinyModel) -> None:
    loose: Any = sd.pipeline
    assert loose("a", steps=1, crops_coords_top_left=[0, 0]).images
    loose = sdxl.pipeline
    loose("a", steps=1, original_size=[512, 256], negative_crops_coords_top_left=[0, 0])
    assert sdxl.unet.calls[0]["time_ids"].tolist() == [[512, 256, 0, 0, 64, 48]] * 2


def test_freeu_needs_a_bundle_with_freeu(tmp_path: Path) -> None:
    model = tiny_model(tmp_path, freeu=None)
    with pytest.raises(InvalidRequestError, match="has no FreeU in its UNet"):
        model.pipeline("a", freeu=(1.3, 1.4, 0.9, 0.2))
    assert model.pipeline("a", steps=1, seed=0).images


def test_too_many_steps_for_the_checkpoints_own_grid(sd: TinyModel) -> None:
    with pytest.raises(InvalidRequestError, match="at most 1000"):
        sd.pipeline("a", steps=1001, schedule="scheduler")


def test_numbers_of_numpy_are_numbers(sd: TinyModel) -> None:
    pipe: Any = sd.pipeline
    result = pipe(
        ("a",),
        height=np.int64(64),
        steps=np.int32(1),
        seed=np.int64(3),
        guidance_scale=np.float32(4.0),
    )
    assert result.seeds == [3]
    assert result.infotexts[0].guidance_scale == 4.0
    assert parse_infotext(str(result.infotexts[0]))["Steps"] == "1"
    loose = pipe(
        "a",
        sampler="euler_ancestral",
        sampler_options={"eta": np.float32(0.5)},
        schedule_options={"rho": Fraction(5), "discard_penultimate": np.bool_(False)},
        guidance_rescale=Fraction(1, 2),
        steps=2,
        seed=1,
    )
    exact = pipe(
        "a",
        sampler="euler_ancestral",
        sampler_options={"eta": 0.5},
        schedule_options={"rho": 5, "discard_penultimate": False},
        guidance_rescale=0.5,
        steps=2,
        seed=1,
    )
    assert str(loose.infotexts[0]) == str(exact.infotexts[0])
    assert np.array_equal(np.asarray(loose.images[0]), np.asarray(exact.images[0]))


@pytest.mark.parametrize("weighting", ["none", "a1111"])
@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompts_are_prompts(
    sdxl: TinyModel, prompt: str, weighting: Literal["none", "a1111"]
) -> None:
    """Image to image and unconditional images live on them."""
    result = sdxl.pipeline(
        [prompt, "a"], "", prompt_weighting=weighting, steps=2, seed=1, output_type="np"
    )
    alone = sdxl.pipeline(prompt, "", prompt_weighting=weighting, steps=2, seed=1, output_type="np")
    assert np.array_equal(result.images[0], alone.images[0])
    assert not np.allclose(result.images[0], result.images[1], atol=1e-3)
    found = parse_infotext(str(alone.infotexts[0]))
    assert found["Prompt"] == ""
    assert "Negative prompt" not in found
    assert found["Seed"] == "1"
    empty, _ = sdxl.pipeline.encode_prompt(prompt)
    assert torch.equal(
        empty.encoder_hidden_states, sdxl.pipeline.encode_prompt("")[0].encoder_hidden_states
    )


numbers = st.one_of(
    st.none() | st.booleans() | st.text(max_size=3) | st.binary(max_size=2),
    st.integers() | st.floats() | st.fractions() | st.decimals() | st.complex_numbers(),
    st.sampled_from([HUGE, -HUGE, 2**63, 2**64, np.float32(2), np.int8(-1), np.bool_(True)]),
    st.lists(st.integers() | st.floats(), max_size=4) | st.just(itertools.repeat(1)),
)
NUMERIC = [
    *("comma_backtrack", "height", "width", "steps", "sigmas", "timesteps", "strength"),
    *("denoising_start", "denoising_end", "guidance_scale", "guidance_rescale", "deep_cache"),
    *("guidance_interval", "images_per_prompt", "seed", "noise_seed", "clip_skip", "freeu"),
    *("ip_adapter_scale", "aesthetic_score", "negative_aesthetic_score", "latents", "prompt"),
]


@given(st.dictionaries(st.sampled_from(NUMERIC), numbers, min_size=1, max_size=3))
def test_any_number_is_taken_or_refused(
    fixed: tuple[Manifest, EngineSpec], arguments: dict[str, Any]
) -> None:
    manifest, spec = fixed
    table = training_table(manifest.scheduler)
    with contextlib.suppress(InvalidRequestError):
        resolve(request_of({"prompt": "a"} | arguments), manifest, spec, table)


@given(
    st.sampled_from(sorted(SAMPLERS)),
    st.sampled_from(sorted(SCHEDULES)),
    numbers | st.sampled_from(["heun", "phi_2", "bh2"]),
    st.data(),
)
def test_any_option_is_taken_or_refused(
    fixed: tuple[Manifest, EngineSpec], sampler: str, schedule: str, value: object, data: Any
) -> None:
    manifest, spec = fixed
    options = [*SAMPLERS[sampler].options, "sigmas"]
    others = [*SCHEDULES[schedule].options, "steps"]
    request = Request(
        prompt="a",
        steps=4,
        sampler=sampler,
        sampler_options={data.draw(st.sampled_from(options)): value},
        schedule=schedule,
        schedule_options=data.draw(
            st.just({}) | st.dictionaries(st.sampled_from(others), numbers, max_size=2)
        ),
    )
    with contextlib.suppress(InvalidRequestError):
        resolve(request, manifest, spec, training_table(manifest.scheduler))


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


ODD = [
    *(
        None,
        0,
        -1,
        True,
        1.5,
        math.nan,
        1j,
        HUGE,
        "",
        "x",
        "x" * 10**6,
        "\ud800",
        b"x",
        Fraction(1),
    ),
    *(
        [],
        [1],
        [1, 2],
        (1, 2, 3, 4),
        [None],
        [[1]],
        ["a", "b"],
        {},
        {"a": 1},
        {1: 2},
        {1},
        range(3),
    ),
    *(np.array(1), np.array([1, 2]), np.array(["a", "b"]), np.zeros((4, 4)), np.array([])),
    *(
        torch.tensor(1),
        torch.ones(2),
        torch.ones(1, 4, 8, 6),
        torch.ones(3, 64, 48),
        [torch.ones(2)],
    ),
    *(object(), Unprintable(), int, print, itertools.repeat(0.5)),
]


@pytest.mark.parametrize("name", FIELDS)
def test_any_value_of_any_argument(fixed: tuple[Manifest, EngineSpec], name: str) -> None:
    manifest, spec = fixed
    table = training_table(manifest.scheduler)
    for value in ODD:
        with contextlib.suppress(KdrtError):
            resolve(request_of({"prompt": "a"} | {name: value}), manifest, spec, table)


def test_no_crop_is_none(sdxl: TinyModel) -> None:
    pipe: Any = sdxl.pipeline
    for crop in ((0, 0), [0, 0], None):
        pipe("a", steps=1, crops_coords_top_left=crop)
        assert sdxl.unet.calls[-1]["time_ids"].tolist() == [[64, 48, 0, 0, 64, 48]] * 2


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, EngineSpec]:
    model = tiny_model(tmp_path_factory.mktemp("sdxl"), "sdxl")
    return model.manifest, model.pipeline.engines["unet"].spec


@pytest.mark.parametrize("index", [None, "0", 0.0, [0], -1])
def test_an_index_of_no_image(sd: TinyModel, tmp_path: Path, index: Any) -> None:
    result = sd.pipeline("a", steps=1, seed=1)
    with pytest.raises(InvalidRequestError, match="index must be a whole number of at least 0"):
        result.save(tmp_path / "a.png", index)
