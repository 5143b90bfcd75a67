"""Files, and the parameters in them."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sd_parsers import ParserManager

import kdrt
from kdrt.images.infotext import parse_infotext
from kdrt.images.metadata import MetadataWarning
from kdrt.pipeline.metadata import Infotext
from tests.support.tiny_model import TinyModel, tiny_model

PARAMETERS = Infotext(
    prompt="a red circle, 1: very round\n日本",
    negative_prompt="blurry, Steps",
    steps=20,
    sampler="DPM++ 2M",
    schedule="Karras",
    guidance_scale=7.5,
    seed=123456789012,
    width=64,
    height=48,
    model="demo",
    extras=(("FreeU b1", 1.3), ("Prompt 2", 'with "quotes", and: marks')),
)


def make_image() -> Image.Image:
    return Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))


def test_text_is_the_web_uis() -> None:
    assert str(PARAMETERS) == (
        "a red circle, 1: very round\n日本\n"
        "Negative prompt: blurry, Steps\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, "
        "Seed: 123456789012, Size: 64x48, Model: demo, FreeU b1: 1.3, "
        'Prompt 2: "with \\"quotes\\", and: marks", '
        f"Version: kdrt {kdrt.__version__}"
    )


def test_text_is_read_back() -> None:
    parsed = parse_infotext(str(PARAMETERS))
    assert parsed["Prompt"] == PARAMETERS.prompt
    assert parsed["Negative prompt"] == PARAMETERS.negative_prompt
    assert parsed["Sampler"] == "DPM++ 2M"
    assert parsed["Seed"] == "123456789012"
    assert parsed["Prompt 2"] == 'with "quotes", and: marks'
    assert parsed["Version"] == f"kdrt {kdrt.__version__}"


def test_a_text_without_settings_is_all_prompt() -> None:
    assert parse_infotext("a red circle, round: very") == {"Prompt": "a red circle, round: very"}
    assert parse_infotext("a\nNegative prompt: b\nc") == {
        "Prompt": "a",
        "Negative prompt": "b\nc",
    }


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".jpeg", ".webp"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / "folder" / f"x{suffix}"
    assert kdrt.save_image(make_image(), path, PARAMETERS) == path
    assert kdrt.read_infotext(path) == str(PARAMETERS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.size == (64, 48)
        if suffix.lower() == ".png":
            assert np.array_equal(np.asarray(image), np.asarray(make_image()))


def test_a_file_without_parameters(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg"):
        assert kdrt.read_infotext(kdrt.save_image(make_image(), tmp_path / f"x{suffix}")) is None


def test_arrays_and_tensors_are_images_too(tmp_path: Path) -> None:
    array = np.asarray(make_image(), dtype=np.float32) / 255
    forms: list[Any] = [array, torch.from_numpy(array).permute(2, 0, 1)]
    for index, image in enumerate(forms):
        with Image.open(kdrt.save_image(image, tmp_path / f"{index}.png")) as saved:
            assert np.array_equal(np.asarray(saved), np.asarray(make_image()))


def test_sd_parsers_reads_our_images(tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    result = model.pipeline(
        "a red circle, round",
        "blurry, dark",
        seed=7,
        steps=3,
        sampler="dpmpp_2m_sde",
        sampler_options={"eta": 0.5},
        guidance_rescale=0.25,
        clip_skip=1,
        freeu=(1.3, 1.4, 0.9, 0.2),
        original_size=(512, 256),
    )
    info = ParserManager().parse(result.save(tmp_path / "x.png"))
    assert info is not None
    (sampler,) = info.samplers
    assert sampler.name == "DPM++ 2M SDE"
    assert [p.value for p in sampler.prompts] == ["a red circle, round"]
    assert [p.value for p in sampler.negative_prompts] == ["blurry, dark"]
    assert sampler.model is not None
    assert sampler.model.name == "tiny"
    assert sampler.parameters["seed"] == "7"
    assert sampler.parameters["steps"] == "3"
    assert sampler.parameters["scheduler"] == "Karras"
    assert sampler.parameters["cfg_scale"] == "5"
    expected = {
        "Size": "48x64",
        "Eta": "0.5",
        "Guidance rescale": "0.25",
        "Clip skip": "3",
        "FreeU b1": "1.3",
        "FreeU s2": "0.2",
        "Original size": "256x512",
        "Version": f"kdrt {kdrt.__version__}",
    }
    assert expected.items() <= info.metadata.items()


def test_no_negative_prompt_leaves_no_line(sdxl: TinyModel) -> None:
    result = sdxl.pipeline("a", seed=7, steps=1)
    assert "Negative" not in str(result.infotexts[0])
    assert result.infotexts[0].negative_prompt is None


@pytest.mark.parametrize(
    ("sampler", "options", "label"),
    [
        ("DPM++ 2M SDE Heun", {}, "DPM++ 2M SDE Heun"),
        ("DPM++ 2M SDE Heun", {"solver_type": "midpoint"}, "DPM++ 2M SDE"),
        ("sample_dpmpp_2m_sde", {"solver_type": "heun"}, "DPM++ 2M SDE"),
        ("Euler a", {}, "Euler a"),
        ("heun", {}, "Heun"),
    ],
)
def test_sampler_labels(sdxl: TinyModel, sampler: str, options: dict[str, str], label: str) -> None:
    result = sdxl.pipeline("a", seed=7, steps=2, sampler=sampler, sampler_options=options)
    assert result.infotexts[0].sampler == label


def test_infotexts_tell_of_the_request_as_it_was(sdxl: TinyModel) -> None:
    size: Any = [100, 200]  # a list is taken too
    sigmas = [3.0, 1.0, 0.0]
    result = sdxl.pipeline("a", original_size=size, sigmas=sigmas, seed=7)
    size[:], sigmas[:] = [1, 1], [9.0, 8.0, 7.0]
    assert "Original size: 200x100," in str(result.infotexts[0])
    assert "Sigmas: 3 1 0," in str(result.infotexts[0])


def test_a_pickled_result_tells_the_same(sdxl: TinyModel) -> None:
    latents = torch.zeros(1, 4, 8, 6)
    result = sdxl.pipeline("a", latents=latents, image_filter=lambda image: None, steps=2)
    copy = pickle.loads(pickle.dumps(result))
    assert copy.infotexts == result.infotexts
    assert "Latents: given," in str(copy.infotexts[0])


def test_own_sigmas_and_latents_are_told(sdxl: TinyModel) -> None:
    latents = torch.zeros(1, 4, 8, 6)
    text = str(sdxl.pipeline("a", sigmas=[3, 1, 0], latents=latents).infotexts[0])
    assert "Steps: 2," in text
    assert "Schedule type: Custom" in text
    assert "Sigmas: 3 1 0," in text
    assert "Latents: given" in text


def test_a_quoted_sentence_spoils_no_other_key(sdxl: TinyModel, tmp_path: Path) -> None:
    result = sdxl.pipeline("a", prompt_2="b, c: d", seed=7, steps=1)
    path = result.save(tmp_path / "x.png")
    text = kdrt.read_infotext(path)
    assert text is not None
    assert parse_infotext(text)["Prompt 2"] == "b, c: d"
    info = ParserManager().parse(path)
    assert info is not None
    assert info.samplers[0].parameters["seed"] == "7"


def test_unknown_suffix(tmp_path: Path) -> None:
    for name in ("x.bmp", "x"):
        with pytest.raises(kdrt.OutputError, match=r"must end in one of \.png"):
            kdrt.save_image(make_image(), tmp_path / name)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for target in (tmp_path / "file" / "x.png", tmp_path / "folder.png", tmp_path / "a\0.png"):
        with pytest.raises(kdrt.OutputError, match="cannot write"):
            kdrt.save_image(make_image(), target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(kdrt.OutputError, match="Permission denied"):
        kdrt.save_image(make_image(), tmp_path / "x.png")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize(
    "prompt", ["\ud83d and \udcff", "zero \0 character", "", "  \n", "é", "日"]
)
def test_no_text_loses_a_finished_image(tmp_path: Path, suffix: str, prompt: str) -> None:
    parameters = replace(PARAMETERS, prompt=prompt, model="\udcff")
    text = kdrt.read_infotext(kdrt.save_image(make_image(), tmp_path / f"a{suffix}", parameters))
    assert text == str(parameters).encode(errors="replace").decode()
    assert parse_infotext(text)["Seed"] == "123456789012"


@pytest.mark.parametrize("letter", ["a", "é", "日", "😀"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_long_prompt_loses_its_end_in_a_jpeg_only(
    tmp_path: Path, suffix: str, letter: str
) -> None:
    parameters = replace(PARAMETERS, prompt=letter * 100_000)
    path = tmp_path / f"a{suffix}"
    if suffix == ".jpg":
        with pytest.warns(MetadataWarning, match="a JPEG holds 32500 characters of infotext"):
            kdrt.save_image(make_image(), path, parameters)
        found = parse_infotext(str(kdrt.read_infotext(path)))
        assert found["Prompt"] == letter * (len(found["Prompt"]) - 1) + "…"
        assert 14_000 < len(found["Prompt"]) < 33_000
        assert found["Seed"] == "123456789012"
    else:
        kdrt.save_image(make_image(), path, parameters)
        assert kdrt.read_infotext(path) == str(parameters)


def test_settings_that_no_jpeg_holds_are_cut(tmp_path: Path) -> None:
    parameters = replace(PARAMETERS, extras=(("Sigmas", "1 " * 40_000),))
    with pytest.warns(MetadataWarning):
        path = kdrt.save_image(make_image(), tmp_path / "a.jpg", parameters)
    assert "Seed: 123456789012" in str(kdrt.read_infotext(path))


def test_integers_are_images_too(tmp_path: Path) -> None:
    array = np.asarray(make_image())
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms: list[Any] = [array, array.astype(np.uint16) * 257, tensor]
    for form in forms:
        with Image.open(kdrt.save_image(form, tmp_path / "a.png")) as saved:
            assert np.array_equal(np.asarray(saved), array)


@pytest.mark.parametrize(
    "image",
    [np.full((8, 8, 3), 1.5), np.full((8, 8, 3), np.nan), np.zeros((8, 8, 5)), np.zeros(8), "x"],
    ids=["too large", "NaN", "five channels", "a row", "a string"],
)
def test_what_is_no_image_is_refused(tmp_path: Path, image: Any) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match=r"^image must"):
        kdrt.save_image(image, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_jpeg_gets_alpha_on_white(tmp_path: Path) -> None:
    hidden = Image.new("RGBA", (8, 8), (255, 0, 255, 0))
    with Image.open(kdrt.save_image(hidden, tmp_path / "a.jpg")) as saved:
        assert saved.getpixel((4, 4)) == (255, 255, 255)
    for suffix in (".png", ".webp"):
        with Image.open(kdrt.save_image(hidden, tmp_path / f"a{suffix}")) as saved:
            assert saved.mode == "RGBA"
    deep = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    for suffix in (".jpg", ".webp"):
        with Image.open(kdrt.save_image(deep, tmp_path / f"a{suffix}")) as saved:
            assert abs(int(np.asarray(saved.convert("L"))[4, 4]) - 128) <= 2


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kdrt.save_image(make_image(), tmp_path / "x.png", "old")

    def full(*_: object, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(kdrt.OutputError, match="No space left on device"):
        kdrt.save_image(make_image(), path, "new")
    assert kdrt.read_infotext(path) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_result_save_checks_its_index(sdxl: TinyModel, tmp_path: Path) -> None:
    result = sdxl.pipeline(["a", "b"], seed=1, steps=1, output_type="pt")
    assert "Seed: 2" in str(kdrt.read_infotext(result.save(tmp_path / "x.png", 1)))
    with pytest.raises(kdrt.InvalidRequestError, match="2 images"):
        result.save(tmp_path / "x.png", 2)
    latent = sdxl.pipeline("a", seed=1, steps=1, output_type="latent")
    with pytest.raises(kdrt.InvalidRequestError, match="latents"):
        latent.save(tmp_path / "x.png")
