"""The same latents as the removed pipelines: bit by bit where k-diffusion's own functions drive
the torch engine, to rounding with kdrt's plans and with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.compat_calls import BLUE, RED, SAMPLERS, ours, relative, seeded
from tests.support.restated import latents

BOTH = [False, True]
pytestmark = pytest.mark.filterwarnings("ignore:Should have:UserWarning")


@pytest.mark.parametrize("karras", BOTH, ids=["default", "karras"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_on_every_grid(tiny: Any, sampler: str, karras: bool) -> None:
    options: dict[str, Any] = {"karras": karras, "noise_seed": 5, "height": 40, "width": 24}
    expected = latents(tiny.networks, [RED], sampler, generator=seeded(), **options)
    exact = ours(tiny.pipe(), [RED], sampler, generator=seeded(), **options)
    assert torch.equal(exact, expected)
    native = ours(tiny.pipe(exact=False), [RED], sampler, generator=seeded(), **options)
    # The original's own rounding of its midpoint, which differs from processor to processor; see
    # "How equal" in docs/compat.md.
    assert relative(native, expected) <= (1.1e-5 if sampler == "dpm_2_ancestral" else 1e-5)
    assert expected.std() > 0.05


CASES: dict[str, dict[str, Any]] = {
    "negative": {"negatives": ["a large green square", ""]},
    "clip skip": {"clip_skip": 1, "negatives": ["blue", "2"]},
    "several a prompt": {"per_prompt": 2, "noise_seed": [1, 2, 3, 4]},
    "v-prediction": {"velocity": True},
    "not square": {"height": 24, "width": 56},
}


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde"])
@pytest.mark.parametrize("case", CASES)
def test_every_argument(tiny: Any, case: str, sampler: str) -> None:
    options = {"noise_seed": 3} | CASES[case]
    velocity = options.pop("velocity", False)
    count = 2 * options.get("per_prompt", 1)
    expected = latents(
        tiny.networks,
        [RED, BLUE],
        sampler,
        generator=seeded(count),
        velocity=velocity,
        **options,
    )
    facts = {"prediction_type": "v_prediction"} if velocity else {}
    exact = ours(tiny.pipe(**facts), [RED, BLUE], sampler, generator=seeded(count), **options)
    assert torch.equal(exact, expected)
    pipe = tiny.pipe(exact=False, **facts)
    native = ours(pipe, [RED, BLUE], sampler, generator=seeded(count), **options)
    assert relative(native, expected) <= 1e-5


@pytest.mark.parametrize("sampler", ["lms", "dpmpp_2m_sde"])
def test_onnxruntime(tiny: Any, sampler: str) -> None:
    options: dict[str, Any] = {"noise_seed": 5, "negatives": ["blue"]}
    expected = latents(tiny.networks, [RED], sampler, generator=seeded(), **options)
    for exact in BOTH:
        pipe = tiny.pipe(exact=exact, onnx=True)
        out = ours(pipe, [RED], sampler, generator=seeded(), **options)
        assert relative(out, expected) <= 5e-5


def test_the_global_generator(tiny: Any) -> None:
    torch.manual_seed(11)
    expected = latents(tiny.networks, [RED], "dpmpp_2m_sde")
    torch.manual_seed(11)
    assert torch.equal(ours(tiny.pipe(), [RED], "dpmpp_2m_sde"), expected)


def test_encode_prompt_gives_what_a_call_uses(tiny: Any) -> None:
    pipe = tiny.pipe()
    arguments = ([RED, BLUE], None, 1, True) if tiny.family == "sd" else ([RED, BLUE],)
    embeds = pipe.encode_prompt(*arguments)
    names = ["prompt_embeds", "negative_prompt_embeds"]
    if tiny.family == "sdxl":
        names += ["pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    expected = ours(pipe, [RED, BLUE], "euler", generator=seeded())
    out = ours(pipe, None, "euler", generator=seeded(), **dict(zip(names, embeds, strict=True)))
    assert torch.equal(out, expected)
