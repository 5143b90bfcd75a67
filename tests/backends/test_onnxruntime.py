"""With which options a network is loaded with ONNX Runtime."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import kdrt
from kdrt.backends import onnxruntime
from kdrt.backends.onnxruntime import OrtLoader
from kdrt.bundle import Bundle
from kdrt.common.memory import MemoryWarning
from tests.support.image_arrays import as_tensor
from tests.support.linked_bundle import linked_bundle


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with room for the demo model's weights, and not twice."""
    monkeypatch.setattr(onnxruntime, "free_memory", lambda _: 20_000_000)


def latents(bundle: Bundle) -> torch.Tensor:
    pipe = kdrt.load(bundle, engine="onnxruntime")
    return as_tensor(pipe("a red circle", seed=1, steps=2, output_type="latent").images)


def test_weights_stay_in_the_file_where_memory_is_short(
    demo_bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle = linked_bundle(demo_bundle, tmp_path / "demo")
    expected = latents(bundle)
    request.getfixturevalue("short_memory")
    with pytest.warns(
        MemoryWarning, match=r"unet computes with its weights as they are .* 20\.0 MB"
    ):
        found = latents(bundle)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("short_memory")
def test_what_was_optimised_before_needs_no_room(demo_bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = OrtLoader(Bundle.open(demo_bundle), "onnxruntime", 1, False).load("unet")
    assert not engine.config.lean
