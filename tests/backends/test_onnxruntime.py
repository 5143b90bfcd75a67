"""With which options a network is loaded with ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kdrt
from kdrt.backends import onnxruntime
from kdrt.backends.onnxruntime import OrtLoader
from kdrt.bundle import Bundle
from kdrt_engines.onnxruntime.engine import OrtEngine
from tests.support.image_arrays import as_tensor
from tests.support.linked_bundle import linked_bundle


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with room for the demo model's weights, and not twice."""
    monkeypatch.setattr(onnxruntime, "whole_memory", lambda: 20_000_000)


def latents(bundle: Bundle, **options: Any) -> torch.Tensor:
    pipe = kdrt.load(bundle, engine="onnxruntime", **options)
    return as_tensor(pipe("a red circle", seed=1, steps=2, output_type="latent").images)


def unet(bundle: Bundle, *, low_vram: bool) -> OrtEngine:
    return OrtLoader(bundle, "onnxruntime", 1, False, low_vram).load("unet")


@pytest.mark.usefixtures("small_machine")
def test_weights_stay_in_the_file_where_low_vram_asks_for_it(
    demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = linked_bundle(demo_bundle, tmp_path / "demo")
    assert unet(bundle, low_vram=True).config.lean
    assert not unet(bundle, low_vram=False).config.lean
    found, expected = latents(bundle, low_vram=True), latents(bundle)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_machine")
def test_what_was_optimised_before_needs_no_room(demo_bundle: Path) -> None:
    assert not unet(Bundle.open(demo_bundle), low_vram=True).config.lean


def test_a_machine_with_room_rearranges_weights(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = linked_bundle(demo_bundle, tmp_path / "demo")
    assert not unet(bundle, low_vram=True).config.lean
