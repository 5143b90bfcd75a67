"""Control images of a request: what is taken, what is refused, and what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kdrt
from kdrt.errors import InvalidRequestError
from kdrt.images.metadata import MetadataWarning
from kdrt.request.controls import MAX_CONTROLS
from tests.support.control_pair import ControlPair
from tests.support.diffusers_pair import HEIGHT, SCALE, WIDTH

pytestmark = pytest.mark.filterwarnings("ignore:.*truncat")

GREY = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
ASKED: dict[str, Any] = {"seed": 1, "steps": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ControlPair:
    return ControlPair(tmp_path_factory.mktemp("sd"), "sd")


def made(pair: ControlPair, **fields: Any) -> torch.Tensor:
    ours: Any = pair.ours
    images: torch.Tensor = ours("a red circle", **{**ASKED, **fields}).images
    return images


def test_scale_0_is_exactly_off(pair: ControlPair) -> None:
    control = kdrt.ControlImage(GREY, "edges")
    off = kdrt.ControlImage(GREY, "edges", scale=0)
    plain = made(pair)
    assert pair.ours.adapters.variants_in_use == {}
    assert torch.equal(made(pair, control=off), plain)
    assert pair.ours.adapters.variants_in_use == {}
    assert not torch.allclose(made(pair, control=control), plain, rtol=0.01)
    assert pair.ours.adapters.variants_in_use == {"unet": "unet-control"}
    # And of the UNet that takes controls: nothing is added.
    other = kdrt.ControlImage(GREY, "sketch", start=0.9)  # of three steps none is within
    assert torch.equal(made(pair, control=[off, other]), plain)


def test_images_of_any_kind(pair: ControlPair) -> None:
    expected = made(pair, control=kdrt.ControlImage(Image.fromarray(GREY), "edges"))
    kinds = [GREY, GREY[..., None], np.stack([GREY] * 3, -1), torch.tensor(GREY)[None] / 255]
    for kind in kinds:
        found = made(pair, control=kdrt.ControlImage(kind, "edges"))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_second_pass_is_controlled_too(pair: ControlPair) -> None:
    """At its own size, arrays too."""
    asked = {**ASKED, "hires_scale": 1.5, "hires_upscaler": "latent"}
    early = made(pair, control=kdrt.ControlImage(GREY, "edges"), **asked)
    assert early.shape[2:] == (1.5 * HEIGHT / SCALE, 1.5 * WIDTH / SCALE)
    assert not torch.allclose(made(pair, **asked), early, rtol=0.01)


def test_a_batch_is_its_images(pair: ControlPair) -> None:
    pictures = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    ours: Any = pair.ours
    both = ours(["a", "b"], control=kdrt.ControlImage(pictures, "edges", process="canny"), **ASKED)
    for index, prompt in enumerate(("a", "b")):
        control = kdrt.ControlImage(pictures[index], "edges", process="canny")
        alone = ours(prompt, control=control, **{**ASKED, "seed": 1 + index}).images
        assert (both.images[index : index + 1] - alone).norm() < 1e-5 * alone.norm()


def test_requests_in_company(pair: ControlPair) -> None:
    """With and without controls, of different images, scales and windows."""
    pictures = [GREY, 255 - GREY]
    requests: list[Any] = [
        {"control": kdrt.ControlImage(pictures[0], "edges", scale=0.7)},
        {"control": kdrt.ControlImage(pictures[1], "edges", end=0.5), "guess_mode": True},
        {"control": [kdrt.ControlImage(pictures[1], name) for name in ("edges", "sketch")]},
        {},
    ]
    requests = [{**each, "prompt": "a", "seed": 3, "steps": 4} for each in requests]
    expected = [pair.ours.generate(each, output_type="latent").images for each in requests]
    with kdrt.Batcher(pair.ours) as batcher:
        handles = [batcher.submit(each, output_type="latent") for each in requests]
        for handle, latents in zip(handles, expected, strict=True):
            torch.testing.assert_close(handle.result().images, latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "k_diffusion.sample_euler", "unipc"])
def test_samplers_of_other_kinds(pair: ControlPair, sampler: str) -> None:
    if sampler.startswith("k_diffusion"):
        pytest.importorskip("k_diffusion")
    early = made(pair, sampler=sampler, control=kdrt.ControlImage(GREY, "edges", end=0.4))
    whole = made(pair, sampler=sampler, control=kdrt.ControlImage(GREY, "edges"))
    plain = made(pair, sampler=sampler)
    for one, other in ((early, whole), (early, plain)):
        assert (one - other).norm() > 1e-3 * other.norm()


WRONG: dict[str, tuple[Any, str]] = {
    "no control image": (GREY, "must be a kdrt.ControlImage or a list of them.* not ndarray"),
    "a name": (kdrt.ControlImage(GREY, "edge"), "unknown control 'edge'.* did you mean 'edges'"),
    "no name": (kdrt.ControlImage(GREY), "needs the name of one: edges, lines, sketch, colour"),
    "a scale": (kdrt.ControlImage(GREY, "edges", scale=float("nan")), "must be a finite number"),
    "scales": (kdrt.ControlImage(GREY, "edges", scale=GREY), "must be a finite number"),  # type: ignore[arg-type]
    "a large scale": (kdrt.ControlImage(GREY, "edges", scale=1e300), "must be at most 1000"),
    "an end": (kdrt.ControlImage(GREY, "edges", end=1.5), "end of a control image must be at most"),
    "a window": (kdrt.ControlImage(GREY, "edges", start=0.5, end=0.5), "must start before it ends"),
    "an image": (kdrt.ControlImage("a.png", "edges"), "must be a PIL image, an array or a tensor"),
    "a shape": (kdrt.ControlImage(GREY[None, None, None], "edges"), "must be of shape"),
    "too many images": (kdrt.ControlImage([GREY] * 3, "edges"), "3 images in a control image"),
    "a processor": (kdrt.ControlImage(GREY, "edges", process="hed"), "unknown process 'hed'"),
    "too many": ([kdrt.ControlImage(GREY, "edges")] * (MAX_CONTROLS + 1), "at most 8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(pair: ControlPair, name: str) -> None:
    control, message = WRONG[name]
    with pytest.raises(InvalidRequestError, match=message):
        made(pair, control=control)


def test_a_deep_cache_beside_control(pair: ControlPair) -> None:
    with pytest.raises(InvalidRequestError, match="deep_cache leaves out the layers that control"):
        made(pair, control=kdrt.ControlImage(GREY, "edges"), deep_cache=2)


def test_guess_mode_without_control(pair: ControlPair) -> None:
    with pytest.raises(InvalidRequestError, match="guess_mode says how to use control"):
        made(pair, guess_mode=True)


def test_what_an_image_tells(pair: ControlPair, tmp_path: Path) -> None:
    controls = [
        kdrt.ControlImage(GREY, "edges", scale=0.5, end=0.6, process="canny"),
        kdrt.ControlImage(GREY, "lines", scale=0),
        kdrt.ControlImage(GREY, "sketch"),
    ]
    ours: Any = pair.ours
    result = ours("a", control=controls, guess_mode=True, **ASKED)
    told = dict(result.infotexts[0].extras)
    assert told["ControlNet 0"] == (
        "Module: canny, Model: edges, Weight: 0.5, Guidance Start: 0, Guidance End: 0.6"
    )
    assert told["ControlNet 1"] == "Model: sketch, Weight: 1, Guidance Start: 0, Guidance End: 1"
    assert told["Guess mode"] == "yes"

    info = PngInfo()
    info.add_text("parameters", str(result.infotexts[0]))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.warns(MetadataWarning, match="ControlNet 0 .* ControlNet 1 .* Guess mode"):
        request = kdrt.request_from(tmp_path / "a.png")
    assert not {"control", "guess_mode"} & request.keys()
    # Given anew they are what the image says no more.
    again = kdrt.request_from(tmp_path / "a.png", control=controls)
    assert again["guess_mode"] is True
    assert again["control"] is controls


def test_controls_count_in_what_fits(pair: ControlPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ControlNets give, and the inputs of the UNet in which it is summed."""
    unet = pair.ours.bundle.manifest.components["unet-control"].spec()
    residuals = [t for t in unet.inputs if "residual" in t.name]
    dims = {"B": 1, "h": HEIGHT // SCALE, "w": WIDTH // SCALE}
    each = 4 * sum(torch.Size(tensor.resolve(dims)).numel() for tensor in residuals)
    asked: list[int] = []
    monkeypatch.setattr(
        "kdrt.pipeline.memory_check.check_unet_fits", lambda needed, *size: asked.append(needed)
    )
    for names in ([], ["sketch"], ["edges"], ["edges", "lines"]):
        made(pair, control=[kdrt.ControlImage(GREY, name) for name in names])
    plain = asked[0]
    assert [needed - plain for needed in asked] == [0, each, 2 * each, 3 * each]


def test_the_masked_part_alone(pair: ControlPair) -> None:
    """A control image is of the whole, as the mask is, and is cut with it."""
    image = Image.fromarray(np.stack([GREY] * 3, -1)).resize((3 * WIDTH, 3 * HEIGHT))
    mask = Image.new("L", image.size)
    mask.paste(255, (WIDTH, HEIGHT, 2 * WIDTH, 2 * HEIGHT))
    within = Image.new("RGB", image.size, "white")
    within.paste(image, (0, 0))
    outside = within.copy()
    within.paste((10, 200, 30), (WIDTH, HEIGHT, 2 * WIDTH, 2 * HEIGHT))
    outside.paste((10, 200, 30), (0, 0, WIDTH, HEIGHT))

    def part(control: Any) -> np.ndarray[Any, Any]:
        ours: Any = pair.ours
        result = ours(
            "a",
            image=image,
            mask_image=mask,
            inpaint_padding=0,
            control=kdrt.ControlImage(control, "edges"),
            **{**ASKED, "output_type": "np"},
        )
        pixels: np.ndarray[Any, Any] = result.images
        return pixels

    plain = Image.new("RGB", image.size, "white")
    plain.paste(image, (0, 0))
    assert np.array_equal(part(plain), part(outside))
    assert not np.array_equal(part(plain), part(within))
