"""Manifests that strangers wrote: controls that do not fit the UNet are found before they run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdrt.bundle import Component, ControlFacts, Manifest, TensorInfo
from kdrt.bundle.control_checks import control_faults
from tests.support.tiny_model import CHANNELS, SCALE, tiny_model

Shape = tuple[int | str, ...]

DOWN: Shape = ("B", 6, "h", "w")
MIDDLE: Shape = ("B", 6, "ceil(h/2)", "ceil(w/2)")
IMAGE: Shape = ("B", 3, f"{SCALE}*h", f"{SCALE}*w")


def tensors(shapes: dict[str, Shape]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(name=n, dtype="float32", shape=s) for n, s in shapes.items())


def component(inputs: dict[str, Shape], outputs: dict[str, Shape]) -> Component:
    return Component(
        onnx="onnx/it/model.onnx", inputs=tensors(inputs), outputs=tensors(outputs), parameters=0
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """With a ControlNet and a T2I-Adapter that fit."""
    plain = tiny_model(tmp_path, "sd").manifest
    whole = plain.components["unet"]
    taken = {"down_residual_0": DOWN, "mid_residual": MIDDLE, "adapter_residual_0": DOWN}
    step: dict[str, Shape] = {
        "sample": ("B", CHANNELS, "h", "w"),
        "timestep": ("B",),
        "encoder_hidden_states": whole.spec().input("encoder_hidden_states").shape,
        "hint": ("B", 6, "h", "w"),
        "scales": ("B", 2),
    }
    components = {
        "unet-control": whole.model_copy(update={"inputs": (*whole.inputs, *tensors(taken))}),
        "controlnet-edges-hint": component({"image": IMAGE}, {"hint": ("B", 6, "h", "w")}),
        "controlnet-edges": component(step, {"down_residual_0": DOWN, "mid_residual": MIDDLE}),
        "t2i-adapter-lines": component({"image": IMAGE}, {"adapter_residual_0": DOWN}),
    }
    return plain.model_copy(
        update={
            "components": {**plain.components, **components},
            "variants": {"control": {"unet": "unet-control"}},
            "controls": {
                "edges": ControlFacts(kind="controlnet", source="it", channels=3),
                "lines": ControlFacts(kind="t2i-adapter", source="it", channels=3),
            },
        }
    )


def test_what_fits(manifest: Manifest) -> None:
    assert not [*control_faults(manifest)]


def reshaped(name: str, tensor: str, shape: Shape | None) -> Callable[[Manifest], dict[str, Any]]:
    """Give a tensor of a component another shape; None is none of that tensor."""

    def change(manifest: Manifest) -> dict[str, Any]:
        old = manifest.components[name]
        both = {
            side: tuple(
                t.model_copy(update={"shape": shape or t.shape}) if t.name == tensor else t
                for t in getattr(old, side)
                if shape is not None or t.name != tensor
            )
            for side in ("inputs", "outputs")
        }
        return {"components": {**manifest.components, name: old.model_copy(update=both)}}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (reshaped("unet-control", "mid_residual", ("B", 6, "8*h", "8*w")), "'mid_residual' of"),
        (reshaped("unet-control", "mid_residual", ("B", 6, "h", "ceil(w/2)")), "'mid_residual' of"),
        (reshaped("unet-control", "adapter_residual_0", (6,)), "'adapter_residual_0' of unet-c"),
        (lambda _: {"variants": {}}, "there is no UNet for the control 'edges'"),
        (
            lambda m: {"components": {n: c for n, c in m.components.items() if "-hint" not in n}},
            "'edges' has no component controlnet-edges-hint",
        ),
        (reshaped("controlnet-edges-hint", "image", ("B", 1, "8*h", "8*w")), "takes no image"),
        (reshaped("controlnet-edges-hint", "hint", ("B", 7, "h", "w")), "'hint' of controlnet"),
        (reshaped("controlnet-edges", "mid_residual", DOWN), "gives what the UNet does not"),
        (reshaped("controlnet-edges", "mid_residual", None), "does not give all that"),
        (reshaped("controlnet-edges", "scales", ("B", 5)), "'scales' of controlnet-edges"),
        (reshaped("controlnet-edges", "sample", ("B", 9, "h", "w")), "'sample' of controlnet"),
        (reshaped("t2i-adapter-lines", "adapter_residual_0", MIDDLE), "t2i-adapter-lines gives"),
    ],
)
def test_what_does_not_fit(
    manifest: Manifest, change: Callable[[Manifest], dict[str, Any]], words: str
) -> None:
    faults = [*control_faults(manifest.model_copy(update=change(manifest)))]
    assert words in faults[0]
