"""What the tests of the exporter share: a tiny model in diffusers' folder format."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from kdrt_export.sources import demo_folder
from tests.support.controls import Controls, export_controls
from tests.support.tiny_networks import save_sd_folder


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of tiny networks. Do not write into it."""
    tokenizer = CLIPTokenizer.from_pretrained(str(demo_folder() / "tokenizer"), model_max_length=20)
    return save_sd_folder(tmp_path_factory.mktemp("sd"), tokenizer)


@pytest.fixture(scope="session")
def controls(sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Controls:
    """The same model with controls, as a bundle. Do not write into it."""
    return export_controls(sd_folder, tmp_path_factory.mktemp("controls"))
