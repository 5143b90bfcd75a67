"""Named profiles: what they mean for each network, and that every refusal names a way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdrt.backends.profiles import (
    NAMES,
    VAE_LATENTS,
    component_profiles,
    is_guided,
    profile_for,
)
from kdrt.bundle import ControlFacts, LatentFacts, Manifest
from kdrt.errors import EngineError
from kdrt_engines.profiles import Profile, Range
from tests.support.enlarging import upscaler_facts
from tests.support.tiny_model import MAX_LENGTH, SCALE, Family, TinyModel, tiny_model

sizes = st.integers(1, 400)
same_model = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def manifest_of(model: TinyModel, pixels: int) -> Manifest:
    latents = LatentFacts(channels=4, scale=SCALE, default_height=pixels, default_width=pixels)
    return model.manifest.model_copy(update={"latents": latents})


def one(manifest: Manifest, component: str, name: str) -> Profile:
    (profile,) = component_profiles(manifest, component, [name])
    return profile


@pytest.mark.parametrize(
    ("family", "pixels", "name", "height", "width"),
    [
        ("sd", 512, "square", (48, 64, 96), (48, 64, 96)),
        ("sd", 512, "portrait", (64, 96, 112), (48, 64, 64)),
        ("sd", 512, "any", (32, 64, 128), (32, 64, 128)),
        ("sdxl", 1024, "square", (96, 128, 160), (96, 128, 160)),
        ("sdxl", 1024, "portrait", (128, 152, 192), (80, 104, 128)),
        ("sdxl", 1024, "landscape", (80, 104, 128), (128, 152, 192)),
        ("sdxl", 1024, "any", (64, 128, 192), (64, 128, 192)),
        ("sdxl", 1024, "static:832x1216x2", (104, 104, 104), (152, 152, 152)),
    ],
)
def test_sizes_follow_from_the_default(
    tmp_path: Path,
    family: Family,
    pixels: int,
    name: str,
    height: tuple[int, int, int],
    width: tuple[int, int, int],
) -> None:
    manifest = manifest_of(tiny_model(tmp_path, family), pixels)
    profile = one(manifest, "unet", name)
    assert profile.ranges["h"] == Range(*height)
    assert profile.ranges["w"] == Range(*width)


def test_guidance_doubles_the_unets_batch(sdxl: TinyModel, tmp_path: Path) -> None:
    assert one(sdxl.manifest, "unet", "any").ranges["B"] == Range(1, 2, 8)
    assert one(sdxl.manifest, "unet", "static:64x48x3").ranges["B"] == Range(3, 6, 6)
    distilled = tiny_model(tmp_path / "other", distilled=True).manifest
    assert not is_guided(distilled)
    assert one(distilled, "unet", "any").ranges["B"] == Range(1, 1, 4)
    assert one(distilled, "unet", "static:64x48x3").ranges["B"] == Range.fixed(3)


def test_perturbed_attention_takes_a_row_more(tmp_path: Path) -> None:
    manifest = tiny_model(tmp_path, perturbed=True).manifest
    assert one(manifest, "unet", "any").ranges["B"] == Range(1, 3, 12)
    assert one(manifest, "unet", "static:64x48x3").ranges["B"] == Range(3, 9, 9)


def test_an_upscaler_is_built_for_its_tiles(sdxl: TinyModel) -> None:
    facts = upscaler_facts(scale=4, tile=256)
    manifest = sdxl.manifest.model_copy(update={"upscalers": {"sharp": facts}})
    (profile,) = component_profiles(manifest, "upscaler-sharp", [*NAMES, "static:64x64x2"])
    side = Range(64, 256, 256)
    assert profile.ranges == {"B": Range.fixed(1), "H": side, "W": side}


def test_prompt_lengths(sdxl: TinyModel) -> None:
    length = Range(MAX_LENGTH, MAX_LENGTH, 3 * MAX_LENGTH)
    assert one(sdxl.manifest, "unet", "square").ranges["L"] == length
    static = one(sdxl.manifest, "unet", "static:64x48x1x24")
    assert static.ranges["L"] == Range.fixed(24)
    encoder = component_profiles(sdxl.manifest, "text_encoder_2", [*NAMES, "static:64x64x1"])
    assert [profile.name for profile in encoder] == ["prompts"]
    assert encoder[0].ranges["L"] == Range.fixed(MAX_LENGTH)


def test_a_profile_covers_every_symbol_of_the_inputs(sdxl: TinyModel) -> None:
    for name, component in sdxl.manifest.components.items():
        for profile in component_profiles(sdxl.manifest, name, NAMES):
            assert set(profile.ranges) == set(component.spec().symbols())


@same_model
@given(pixels=st.integers(4, 600), name=st.sampled_from(NAMES))
def test_the_vae_never_takes_more_than_it_can_bear(sdxl: TinyModel, pixels: int, name: str) -> None:
    manifest = manifest_of(sdxl, 8 * pixels)
    unet, vae = (one(manifest, component, name) for component in ("unet", "vae_decoder"))
    assert vae.ranges["B"] == Range.fixed(1)
    assert vae.ranges["h"].max * vae.ranges["w"].max <= VAE_LATENTS
    for symbol in "hw":
        assert vae.ranges[symbol].max <= unet.ranges[symbol].max
    best = unet.ranges["h"].opt * unet.ranges["w"].opt
    if best <= VAE_LATENTS:
        assert [vae.ranges[s].opt for s in "hw"] == [unet.ranges[s].opt for s in "hw"]


@same_model
@given(h=sizes, w=sizes, rows=st.integers(1, 20), tokens=st.integers(1, 5))
def test_for_every_image_there_is_a_profile_to_build(
    sdxl: TinyModel, h: int, w: int, rows: int, tokens: int
) -> None:
    dims = {"B": rows, "L": tokens * MAX_LENGTH, "h": h, "w": w}
    name = profile_for(sdxl.manifest, "unet", dims)
    assert name is not None
    assert one(sdxl.manifest, "unet", name).allows(dims)


@same_model
@given(h=sizes, w=sizes)
def test_the_vae_has_one_up_to_its_limit(sdxl: TinyModel, h: int, w: int) -> None:
    dims = {"B": 1, "h": h, "w": w}
    name = profile_for(sdxl.manifest, "vae_decoder", dims)
    assert (name is not None) == (h * w <= VAE_LATENTS)
    if name is not None:
        assert one(sdxl.manifest, "vae_decoder", name).allows(dims)


@same_model
@given(h=st.integers(1, 3000), w=st.integers(1, 3000))
def test_an_image_above_the_limit_can_be_decoded_in_square_tiles(
    sdxl: TinyModel, h: int, w: int
) -> None:
    vae = one(sdxl.manifest, "vae_decoder", f"static:{8 * h}x{8 * w}x1")
    if h * w <= VAE_LATENTS:
        assert vae.looseness == 1
    else:
        tile = min(vae.ranges["h"].max, vae.ranges["w"].max)
        assert vae.allows({"B": 1, "h": tile, "w": tile})


def test_names_that_mean_the_same_give_one_profile(sdxl: TinyModel) -> None:
    found = component_profiles(sdxl.manifest, "unet", ["any", "square", "any"])
    assert [profile.name for profile in found] == ["any", "square"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "round",
            "'round' is no profile; choose square, portrait, landscape, any, or static:HxWxB",
        ),
        ("static:64x64", "is no profile"),
        ("static:65x64x1", "must be multiples of 8 pixels"),
        ("static:0x64x1", "must be multiples of 8 pixels"),
        ("static:64x64x0", "makes no image"),
    ],
)
def test_names_that_mean_nothing(sdxl: TinyModel, name: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        component_profiles(sdxl.manifest, "unet", [name])


def test_controls_have_the_sizes_of_their_unet(sdxl: TinyModel) -> None:
    facts = ControlFacts(kind="controlnet", source="it", channels=3)
    manifest = sdxl.manifest.model_copy(
        update={
            "variants": {"control": {"unet": "unet-control"}},
            "controls": {"canny": facts, "lines": facts},
        }
    )
    whole = one(manifest, "unet", "portrait")
    for component in ("unet-control", "controlnet-canny"):
        assert one(manifest, component, "portrait") == whole
    for component in ("controlnet-canny-hint", "t2i-adapter-lines"):
        profile = one(manifest, component, "static:64x48x3")
        assert dict(profile.ranges) == {
            "B": Range(1, 1, 3),
            "h": Range.fixed(64 // SCALE),
            "w": Range.fixed(48 // SCALE),
        }


def test_a_component_without_profiles(sdxl: TinyModel) -> None:
    with pytest.raises(EngineError, match="knows no sizes for the component 'safety_checker'"):
        component_profiles(sdxl.manifest, "safety_checker")
