"""The nodes: what ComfyUI lists, and what they make of the demo model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdrt
from tests.support.fake_comfyui import (
    FakeComfyUI,
    InterruptProcessingException,
    LatentPreviewMethod,
)

STEPS = 3


@pytest.fixture(autouse=True)
def _demo(demo_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDRT_HOME", str(demo_home))


def defaults(node: Any) -> dict[str, Any]:
    """What a new node in ComfyUI holds: the defaults of its inputs, or the first of a list."""
    inputs = {each.args[0]: each.options for each in node.define_schema().options["inputs"]}
    return {
        name: options["default"] if "default" in options else options["options"][0]
        for name, options in inputs.items()
    }


def images(comfyui: FakeComfyUI, **changes: Any) -> torch.Tensor:
    node = comfyui.nodes.KdrtImage
    (made,) = node.execute(**{**defaults(node), "steps": STEPS, **changes}).args
    assert isinstance(made, torch.Tensor)
    return made


def test_both_nodes_are_listed(comfyui: FakeComfyUI) -> None:
    async def listed() -> list[Any]:
        nodes: list[Any] = await (await comfyui.nodes.comfy_entrypoint()).get_node_list()
        return nodes

    schemas = [node.define_schema().options for node in asyncio.run(listed())]
    assert [schema["node_id"] for schema in schemas] == ["KdrtLoadModel", "KdrtImage"]
    assert [*map(len, (schema["outputs"] for schema in schemas))] == [1, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "prompt": "a red circle",
            "negative_prompt": "a green star",
            "guidance_scale": 3.0,
            "sampler": "euler_ancestral",
            "schedule": "normal",
            "seed": 2**64 - 1,
            "width": 48,
            "height": 32,
            "images_per_prompt": 2,
        },
    ],
)
def test_the_image_is_kdrts_own(changes: dict[str, Any], comfyui: FakeComfyUI) -> None:
    found = images(comfyui, **changes)
    request: Any = {"prompt": "", "seed": 0, **changes}
    expected = kdrt.load("demo")(steps=STEPS, output_type="np", **request).images
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected)
    assert [told[:2] for told in comfyui.progress] == [(n, STEPS) for n in range(1, STEPS + 1)]


def test_previews_are_made_where_comfyui_wants_them(comfyui: FakeComfyUI) -> None:
    images(comfyui)
    assert {preview for *_, preview in comfyui.progress} == {None}
    comfyui.args.preview_method = LatentPreviewMethod.Auto
    images(comfyui)
    kind, preview, size = comfyui.progress[-1][2]
    assert (kind, preview.size, size) == ("JPEG", (16, 16), 512)


def test_an_interrupted_image_ends_at_its_step(comfyui: FakeComfyUI) -> None:
    comfyui.interrupted = True
    with pytest.raises(InterruptProcessingException):
        images(comfyui)
    assert len(comfyui.progress) == 1
    assert images(comfyui).shape == (1, 64, 64, 3)  # the pipeline is free again


def test_an_error_of_kdrt_reaches_the_user(comfyui: FakeComfyUI) -> None:
    with pytest.raises(kdrt.InvalidRequestError, match="width"):
        images(comfyui, width=13)


def test_a_model_shares_the_pipeline_of_the_images(comfyui: FakeComfyUI) -> None:
    node = comfyui.nodes.KdrtLoadModel
    (patcher,) = node.execute(**defaults(node)).args
    pipeline = comfyui.module("pipelines").pipeline_of("demo", "automatic")
    assert patcher.model.diffusion_model._pipeline is pipeline
    assert patcher.load_device == pipeline.engines["unet"].device
    assert patcher.model.latent_format.scale_factor == 0.5  # of the demo model's VAE


def test_a_bundle_exported_again_is_loaded_again(comfyui: FakeComfyUI, home: Path) -> None:
    node, manifest = comfyui.nodes.KdrtLoadModel, home / "bundles" / "some" / "manifest.json"
    assert node.fingerprint_inputs(bundle="some", engine="torch") == 0
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert node.fingerprint_inputs(bundle="some") == manifest.stat().st_mtime_ns
