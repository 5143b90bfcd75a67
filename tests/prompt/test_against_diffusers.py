"""Prompt embeddings against diffusers' own pipelines: every layer, and learned tokens.

Both run the same tiny text encoders, every parameter of which is random.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdrt.bundle import Bundle
from kdrt.compat.textual_inversion import TextualInversionMixin
from kdrt.pipeline.pipeline import Pipeline
from tests.support.diffusers_pair import LAYERS, diffusers_pipeline, kdrt_pipeline
from tests.support.tiny_model import WIDTHS, Family

PROMPTS = [
    "a red circle on <cat> , <cat>",
    "zeb",
    "a large green square and 2 yellow stars , <cat>",
]
"""The last one is too long."""

FIRST, SECOND = (
    torch.randn(3, width, generator=torch.Generator().manual_seed(width)) for width in WIDTHS
)

pytestmark = pytest.mark.filterwarnings("ignore")


class Ours(TextualInversionMixin):
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline


def pair(folder: Path, family: Family) -> tuple[Any, Ours]:
    """The same pipeline as diffusers' and as ours."""
    generator = torch.Generator().manual_seed(1)
    theirs = diffusers_pipeline(family, "epsilon")
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(theirs, name, None)
        for parameter in encoder.parameters() if isinstance(encoder, nn.Module) else ():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    if family == "sd":
        # diffusers' clip_skip looks for it, and transformers 5 has it no more.
        object.__setattr__(theirs.text_encoder, "text_model", theirs.text_encoder)
    return theirs, Ours(kdrt_pipeline(folder, family, theirs))


def their_embeddings(theirs: Any, prompts: list[str], clip_skip: int | None = None) -> list[Tensor]:
    with torch.no_grad():
        if "text_encoder_2" in theirs.components:
            options: dict[str, Any] = {
                "do_classifier_free_guidance": True,
                "num_images_per_prompt": 1,
            }
            # Not its default: without a negative prompt it makes zeros.
            options["negative_prompt"] = ["a star"] * len(prompts)
            return list(theirs.encode_prompt(prompts, clip_skip=clip_skip, **options))
        return list(
            theirs.encode_prompt(
                prompts, "cpu", 1, True, ["a star"] * len(prompts), clip_skip=clip_skip
            )
        )


def our_embeddings(ours: Ours, prompts: list[str], clip_skip: int | None = None) -> list[Tensor]:
    """In diffusers' order; SD has no pooled ones."""
    both = ours.pipeline.encode_prompt(prompts, "a star", clip_skip=clip_skip)
    hidden = [told.encoder_hidden_states for told in both]
    return hidden + [told.text_embeds for told in both if told.text_embeds is not None]


def assert_same(ours: Ours, theirs: Any, prompts: list[str], clip_skip: int | None = None) -> None:
    expected = their_embeddings(theirs, prompts, clip_skip)
    actual = our_embeddings(ours, prompts, clip_skip)
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "clip_skip"),
    [("sd", skip) for skip in (None, *range(LAYERS + 1))]
    + [("sdxl", skip) for skip in (None, *range(LAYERS))],
)
def test_every_layer(tmp_path: Path, family: Family, clip_skip: int | None) -> None:
    theirs, ours = pair(tmp_path, family)
    assert_same(ours, theirs, ["a red circle", "a star"], clip_skip)
    plain = our_embeddings(ours, ["a red circle", "a star"])
    skipped = our_embeddings(ours, ["a red circle", "a star"], clip_skip)
    assert torch.equal(plain[0], skipped[0]) == (not clip_skip)
    assert torch.equal(plain[1], skipped[1])  # never the negative prompt


def test_one_layer_more_is_an_error_in_both(tmp_path: Path) -> None:
    most_of: dict[Family, int] = {"sd": LAYERS, "sdxl": LAYERS - 1}
    for family, most in most_of.items():
        theirs, ours = pair(tmp_path / family, family)
        with pytest.raises(IndexError):
            their_embeddings(theirs, ["a"], most + 1)
        with pytest.raises(ValueError, match=f"from 0 to {most}"):
            our_embeddings(ours, ["a"], most + 1)


@pytest.mark.parametrize("kind", ["dict", "tensor", "a1111", ".safetensors", ".bin", ".pt"])
def test_sd_learned_tokens(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    theirs, ours = pair(tmp_path / "bundle", "sd")
    before = our_embeddings(ours, PROMPTS)
    a1111 = {"string_to_param": {"*": FIRST}, "name": "<cat>", "step": 3}
    source: Any = {"dict": {"<cat>": FIRST}, "tensor": FIRST, "a1111": a1111}.get(kind)
    if source is None:
        source = str(tmp_path / f"file{kind}")
        if kind == ".safetensors":
            save_file({"<cat>": FIRST}, source)
        else:
            torch.save({"<cat>": FIRST} if kind == ".bin" else a1111, source)
    for pipeline in (theirs, ours):
        pipeline.load_textual_inversion(source, token="<cat>" if kind == "tensor" else None)
        pipeline.load_textual_inversion({"zeb": FIRST[1]})
    assert_same(ours, theirs, PROMPTS)
    assert_same(ours, theirs, PROMPTS, clip_skip=1)
    assert not torch.equal(our_embeddings(ours, PROMPTS)[0], before[0])
    written = theirs.maybe_convert_prompt(PROMPTS, theirs.tokenizer)
    assert ours.maybe_convert_prompt(PROMPTS, ours.tokenizer) == written

    ours.unload_textual_inversion()
    for one, other in zip(our_embeddings(ours, PROMPTS), before, strict=True):
        assert torch.equal(one, other)
    theirs.unload_textual_inversion()
    assert_same(ours, theirs, PROMPTS)


def test_several_at_once_and_one_unloaded(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "sd")
    for pipeline in (theirs, ours):
        pipeline.load_textual_inversion([{"<cat>": FIRST[:1]}, {"zeb": FIRST[1]}])
    assert_same(ours, theirs, PROMPTS)
    for pipeline in (theirs, ours):
        pipeline.unload_textual_inversion("<cat>")
    assert_same(ours, theirs, PROMPTS)


@pytest.mark.parametrize("legacy", [False, True])
def test_sdxl_learned_tokens(tmp_path: Path, legacy: bool) -> None:
    """``legacy``: CLIP's first configurations, which pool at the highest id."""
    theirs, ours = pair(tmp_path, "sdxl")
    if legacy:
        manifest = ours.pipeline.bundle.manifest
        facts = [f.model_copy(update={"pooled_token": None}) for f in manifest.text_encoders]
        manifest = manifest.model_copy(update={"text_encoders": tuple(facts)})
        ours.pipeline = Pipeline(Bundle(tmp_path, manifest), ours.pipeline.engines)
        for encoder in (theirs.text_encoder, theirs.text_encoder_2):
            getattr(encoder, "text_model", encoder).eos_token_id = 2
    assert_same(ours, theirs, PROMPTS)
    for pipeline in (theirs, ours):
        for vectors, suffix in ((FIRST, ""), (SECOND, "_2")):
            objects = {
                name: getattr(pipeline, name + suffix) for name in ("text_encoder", "tokenizer")
            }
            pipeline.load_textual_inversion(vectors, token="<cat>", **objects)
        pipeline.load_textual_inversion({"zeb": FIRST[1]})  # the first encoder only
    assert_same(ours, theirs, PROMPTS)
    assert_same(ours, theirs, PROMPTS, clip_skip=1)


def test_a_file_for_both_encoders_is_the_same_as_two(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "sdxl")
    ours.load_textual_inversion({"clip_l": FIRST, "clip_g": SECOND}, token="<cat>")
    theirs.load_textual_inversion(FIRST, token="<cat>")
    theirs.load_textual_inversion(
        SECOND, token="<cat>", text_encoder=theirs.text_encoder_2, tokenizer=theirs.tokenizer_2
    )
    assert_same(ours, theirs, PROMPTS)


@pytest.mark.parametrize("source", [{"red</w>": FIRST}, {"<cat>": FIRST[:, 1:]}])
def test_what_diffusers_refuses_we_refuse(tmp_path: Path, source: Any) -> None:
    for pipeline in pair(tmp_path, "sd"):
        with pytest.raises(ValueError, match=r"vocabulary|shape|numbers"):
            pipeline.load_textual_inversion(source)


def test_a_whole_image_with_a_learned_token(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path, "sdxl")
    latents = torch.randn(1, 4, 16, 16)
    common: dict[str, Any] = {
        "latents": latents,
        "height": 32,
        "width": 32,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }
    for pipeline in (theirs, ours):
        pipeline.load_textual_inversion({"<cat>": FIRST})
    prompt, negative = "a red <cat>", "<cat>"
    expected = theirs(prompt, negative_prompt=negative, num_inference_steps=3, **common).images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ours.pipeline(
            prompt, negative, sigmas=theirs.scheduler.sigmas.tolist(), sampler="euler", **common
        )
    torch.testing.assert_close(result.images, expected, rtol=1e-4, atol=1e-4)
