"""Adapters on the command line and in an image's parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import kdrt
from kdrt import cli
from kdrt.bundle import sha256
from kdrt.images.infotext import parse_infotext
from tests.support.lora_files import kohya, networks, random_lora
from tests.support.tiny_bundles import TinyModel


@pytest.fixture
def sd(tiny_models: Callable[[str], TinyModel]) -> TinyModel:
    return tiny_models("sd")


@pytest.fixture
def files(sd: TinyModel, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "style.safetensors", tmp_path / "other.safetensors"]
    for seed, path in enumerate(paths):
        save_file(kohya(random_lora(networks(sd.diffusers()), ("to_q",), seed=seed)), path)
    return paths


def generate(model: TinyModel, out: Path, *options: object) -> int:
    sizes = ["--width", "32", "--height", "32", "--steps", "1", "--seed", "1"]
    arguments = ["generate", model.bundle, "a star", "-o", out, *sizes, *options]
    return cli.run([str(each) for each in arguments])


def test_loras_of_an_image(
    sd: TinyModel, files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain, changed = tmp_path / "plain.png", tmp_path / "changed.png"
    assert generate(sd, plain) == 0
    options = ["--lora", f"{files[0]}:0.8", "--lora", str(files[1])]
    assert generate(sd, changed, *options) == 0
    assert "LoRA style at 0.8, other at 1: " in capfd.readouterr().err
    assert plain.read_bytes() != changed.read_bytes()
    text = str(kdrt.read_infotext(changed))
    settings = parse_infotext(text)
    hashes = ", ".join(f"{path.stem}: {sha256(path)[:12]}" for path in files)
    assert (settings["Lora hashes"], settings["Lora weights"]) == (hashes, "style: 0.8, other: 1")
    assert "Lora" not in str(kdrt.read_infotext(plain))
    assert cli.run(["info", str(changed), "--json"]) == 0
    left_out = json.loads(capfd.readouterr().out)["Not in the command"]
    assert left_out == f"Lora hashes ({hashes}), Lora weights (style: 0.8, other: 1)"


def test_one_weight_is_told_as_one(
    sd: TinyModel, files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(files[0])
    layer = min(tensors).partition(".")[0]
    one = {name: each for name, each in tensors.items() if name.partition(".")[0] == layer}
    save_file(one, tmp_path / "one.safetensors")
    assert generate(sd, tmp_path / "a.png", "--lora", tmp_path / "one.safetensors") == 0
    assert "LoRA one at 1: 1 weight changed in " in capfd.readouterr().err


def test_loras_of_one_name_are_told_apart_by_their_folders(
    sd: TinyModel, files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").mkdir()
    second = files[1].rename(tmp_path / "b" / "style.SAFETENSORS")
    options = ["--lora", f"{files[0]}:0.8", "--lora", f"{second}:0.5"]
    assert generate(sd, tmp_path / "both.png", *options) == 0
    assert "LoRA style at 0.8, b/style at 0.5: " in capfd.readouterr().err
    settings = parse_infotext(str(kdrt.read_infotext(tmp_path / "both.png")))
    assert settings["Lora weights"] == "style: 0.8, b/style: 0.5"


def test_a_strict_lora_has_to_fit_wholly(
    sd: TinyModel, files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(files[0])
    tensors |= {f"lora_te2_x.lora_{part}.weight": torch.ones(1, 1) for part in ("down", "up")}
    save_file(tensors, tmp_path / "more.safetensors")
    options = ["--lora", tmp_path / "more.safetensors"]
    assert generate(sd, tmp_path / "out.png", *options) == 0
    assert "have no effect: text_encoder_2.x" in capfd.readouterr().err
    assert generate(sd, tmp_path / "strict.png", *options, "--strict-lora") == 2
    assert "text_encoder_2.x; leave out strict (--strict-lora)" in capfd.readouterr().err
    assert not (tmp_path / "strict.png").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lora", "none.safetensors"], "there is no LoRA file none.safetensors"),
        (["--ip-adapter-image", "none.png"], "cannot read none.png: No such file"),
    ],
)
def test_what_cannot_be_used(
    sd: TinyModel,
    options: list[str],
    words: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert generate(sd, tmp_path / "out.png", *options) == 2
    assert words in capfd.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_a_lora_is_looked_at_before_anything_is_loaded(
    sd: TinyModel, files: list[Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """This engine cannot be loaded, so whatever is said before that is said without it."""
    options = ["--engine", "torch"]
    stranger = tmp_path / "stranger.safetensors"
    save_file(
        {f"lora_unet_x.lora_{part}.weight": torch.ones(1, 1) for part in ("down", "up")}, stranger
    )
    (tmp_path / "damaged.safetensors").write_bytes(files[0].read_bytes()[:100])
    for lora, words in (
        (stranger, "it is made for another kind of model"),
        (tmp_path / "damaged.safetensors", "damaged"),
        (f"{files[0]}:nan", "must be a finite number"),
        (files[0], "--target torch"),
    ):
        assert generate(sd, tmp_path / "out.png", *options, "--lora", lora) == 2
        assert words in capfd.readouterr().err
