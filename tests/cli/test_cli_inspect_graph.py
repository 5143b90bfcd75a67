"""``kdrt inspect`` on what a float16 network keeps in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdrt.bundle import write_manifest
from tests.support.command_line import Cli
from tests.support.planted import OVERFLOWING, planted_bundle


@pytest.fixture(scope="module")
def planted(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose VAE's decoder is said to keep a module in float32."""
    folder = tmp_path_factory.mktemp("planted") / "bundle"
    manifest = planted_bundle(demo_bundle, folder, torch.float16).manifest
    decoder = manifest.components["vae_decoder"].model_copy(update={"float32": (OVERFLOWING,)})
    components = {**manifest.components, "vae_decoder": decoder}
    write_manifest(folder, manifest.model_copy(update={"components": components}))
    return folder


def test_what_is_kept_in_float32_is_shown(cli: Cli, planted: Path, demo: str) -> None:
    outcome = cli("inspect", planted)
    assert outcome.code == 0, outcome.err
    title, line = outcome.out.partition("kept in float32")[1:]
    assert title
    assert line.split()[:2] == ["vae_decoder", OVERFLOWING]
    assert "kept in float32" not in cli("inspect", demo).out
