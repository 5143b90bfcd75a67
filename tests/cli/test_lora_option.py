"""LoRAs as the command line has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt.adapters.lora_block_weights import block_weights
from kdrt.adapters.lora_merge import Scale
from kdrt.cli.lora_option import lora_option
from kdrt.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("a/style.safetensors:0.8", "a/style.safetensors", 0.8),
        ("style.safetensors:-2", "style.safetensors", -2.0),
        ("C:/style.safetensors", "C:/style.safetensors", 1.0),
        ("C:/style.safetensors:1e-1", "C:/style.safetensors", 0.1),
        ("C:/a,b=2.safetensors", "C:/a,b=2.safetensors", 1.0),
        (
            "x:0.8,text_encoder=0",
            "x",
            {"unet": 0.8, "text_encoder": 0.0, "text_encoder_2": 0.8},
        ),
        (
            "x:unet=0.5,mid_block=0,down_blocks.1=2",
            "x",
            {
                "unet": {"": 0.5, "mid_block": 0.0, "down_blocks.1": 2.0},
                "text_encoder": 1.0,
                "text_encoder_2": 1.0,
            },
        ),
        (
            "x:0.5,text_encoder.layers.0=0,unet.mid_block=1",
            "x",
            {
                "unet": {"": 0.5, "mid_block": 1.0},
                "text_encoder": {"": 0.5, "layers.0": 0.0},
                "text_encoder_2": 0.5,
            },
        ),
    ],
)
def test_file_and_scale(text: str, path: str, scale: Scale) -> None:
    assert lora_option(text) == (Path(path), scale)


@pytest.mark.parametrize(
    ("said", "unet", "text_encoder"),
    [("", 1.0, 1.0), ("0.5,", 0.5, 0.5), ("0.5,text_encoder=2,", 0.5, 2.0)],
)
def test_weights_of_blocks(said: str, unet: float, text_encoder: float) -> None:
    weights = [0.5, *(index / 10 for index in range(11))]
    text = f"x:{said}lbw={','.join(map(str, weights))}"
    assert lora_option(text) == (Path("x"), block_weights(weights, unet, text_encoder))


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ("lbw=1,0,0", "lbw= has 3 numbers; it takes 17 or 26 for SD"),
        ("mid_block=0,lbw=" + ",".join("1" * 12), "gives lbw= and mid_block too"),
    ],
)
def test_weights_of_other_blocks(scale: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        lora_option(f"x:{scale}")


@pytest.mark.parametrize(
    "text",
    [
        "x.safetensors:1@0.3",
        "x.safetensors:0:1",
        "x.safetensors:start=0.2",
        "x:0@0,1@0.5",
        "x:0.8,start=0.3",
    ],
)
def test_schedules_over_steps_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="changes from step to step, or for two"):
        lora_option(text)


@pytest.mark.parametrize("scale", ["unet=1,unet=0.5", "0,8"])
def test_what_is_given_twice(scale: str) -> None:
    with pytest.raises(InvalidRequestError, match="gives one scale twice; give a number, as"):
        lora_option(f"x:{scale}")


@pytest.mark.parametrize(
    "scale",
    ["0.8,", "", "80%", "0x10", "0.8,mid_block", "mid_block=", "[0.1,0.2]", "a:0.5x", "lbw=ALL"],
)
def test_what_is_no_scale_of_a_file(scale: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.touch()
    with pytest.raises(InvalidRequestError) as refused:
        lora_option(f"{file}:{scale}")
    assert f": {scale!r} is no scale; give a number, as FILE:0.8" in str(refused.value)


def test_a_network_without_a_block_after_its_dot_is_no_block() -> None:
    assert lora_option("x:unet.=0")[1] == {
        "unet": {"": 1.0, "unet.": 0.0},
        "text_encoder": 1.0,
        "text_encoder_2": 1.0,
    }


def test_a_file_that_looks_like_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x:1@0.5").touch()
    assert lora_option("x:1@0.5") == (Path("x:1@0.5"), 1.0)
