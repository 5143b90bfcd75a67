"""What is read of a bundle after it was loaded: wherever the process went, and only what belongs
to the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import kdrt
from kdrt.common.atomic_io import new_folder

LAYER = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
ARGUMENTS: dict[str, Any] = {"steps": 1, "seed": 1, "height": 64, "width": 64, "output_type": "np"}


@pytest.fixture
def copied(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of this test's own."""
    return shutil.copytree(demo_bundle, tmp_path / "bundle", copy_function=os.link)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    file = tmp_path / "lora.safetensors"
    down, up = torch.full((2, 128), 0.02), torch.full((128, 2), 0.02)
    save_file({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, file)
    return file


def image(pipe: kdrt.Pipeline, **changes: object) -> np.ndarray:
    images = pipe("a red circle", **(ARGUMENTS | changes)).images
    assert isinstance(images, np.ndarray)
    return images


Reader = Callable[[kdrt.Pipeline, Path], object]
READERS: dict[str, Reader] = {
    "a LoRA": lambda pipe, lora: pipe.adapters.load_lora(lora),
    "the whole graph": lambda pipe, _: image(pipe, freeu=(1.1, 1.2, 0.9, 0.2)),
    "the encoder": lambda pipe, _: image(pipe, image=np.zeros((64, 64, 3)), strength=1),
    "every component": lambda pipe, _: image(pipe),
}


def loaded(path: Path | str, reader: str) -> kdrt.Pipeline:
    return kdrt.load(path, engine="onnxruntime", threads=1, low_vram=reader == "every component")


@pytest.mark.parametrize(
    ("reader", "named"), [*((reader, False) for reader in READERS), ("every component", True)]
)
def test_a_relative_path_holds_when_the_process_moves(
    copied: Path, lora: Path, monkeypatch: pytest.MonkeyPatch, reader: str, named: bool
) -> None:
    monkeypatch.chdir(copied.parent)
    if named:
        (copied.parent / "bundles").mkdir()
        copied.rename(copied.parent / "bundles" / "mine")
        monkeypatch.setenv("KDRT_HOME", ".")
    pipe = loaded("mine" if named else "bundle", reader)
    before = image(pipe)
    monkeypatch.chdir("/")
    READERS[reader](pipe, lora)
    if reader != "a LoRA":
        assert np.array_equal(image(pipe), before)


@pytest.mark.parametrize(
    ("reader", "change"),
    [
        *((reader, "exported again") for reader in READERS),
        ("the encoder", "moved"),
        ("a LoRA", "deleted"),
        ("the encoder", "written to"),
        ("the whole graph", "written to"),
    ],
)
def test_a_bundle_that_changed_is_not_read_any_more(
    copied: Path, lora: Path, reader: str, change: str
) -> None:
    pipe = loaded(copied, reader)
    before = image(pipe)
    if change == "exported again":
        elsewhere = copied.rename(copied.with_name("elsewhere"))
        with new_folder(copied) as folder:
            shutil.copytree(elsewhere, folder, dirs_exist_ok=True)
    elif change == "moved":
        copied.rename(copied.with_name("elsewhere"))
    elif change == "written to":
        for file in copied.glob("onnx/*/weights.bin"):
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content[::-1])
    else:
        shutil.rmtree(copied)
    with pytest.raises(kdrt.BundleError, match=r"has changed since it was opened.*load it again"):
        READERS[reader](pipe, lora)
    if reader != "every component":
        assert np.array_equal(image(pipe), before), "what was read before still works"
        assert pipe.adapters.loras == {}
    if change == "exported again":
        READERS[reader](loaded(copied, reader), lora)
