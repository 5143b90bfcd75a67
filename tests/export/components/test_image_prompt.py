"""What turns images into an adapter's tokens computes what diffusers and transformers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdrt_export.components.image_prompt import ExportImageEncoder, ExportProjection
from kdrt_export.ip_adapter import IpAdapter, attach
from kdrt_export.verify import relative_error
from tests.support.ip_adapter import EMBEDDING, FACE, HIDDEN, SIDE, vision_model, write_adapter
from tests.support.tiny_networks import unet

ROWS = (SIDE // 8) ** 2 + 1
"""Hidden states of the tiny image encoder."""

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "linear": {"image_embeds": (EMBEDDING,)},
    "plus": {"hidden_states": (ROWS, HIDDEN)},
    "full": {"hidden_states": (ROWS, HIDDEN)},
    "faceid": {"image_embeds": (FACE,)},
    "faceid-plus": {"image_embeds": (FACE,), "hidden_states": (ROWS, HIDDEN)},
}


def projection(kind: str, folder: Path) -> ExportProjection:
    network = unet("sd")
    adapter = IpAdapter(str(write_adapter(folder, network, kind)))
    assert adapter.kind == kind
    return attach(network, [adapter])[0]


def by_diffusers(network: Any, kind: str, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    if kind == "faceid-plus":
        network.clip_embeds = inputs[1][:, None]
        inputs = inputs[:1]
    result: torch.Tensor = network(*inputs)
    return result


@pytest.mark.parametrize("kind", SHAPES)
def test_a_projection(kind: str, tmp_path: Path) -> None:
    component = projection(kind, tmp_path)
    shapes = {t.name: t.shape[1:] for t in component.spec.inputs}
    assert shapes == SHAPES[kind]
    inputs = component.example_inputs({"B": 3})
    expected = by_diffusers(component.network, kind, inputs)
    assert expected.shape == (3, *component.spec.outputs[0].shape[1:])
    component.rewrite()
    assert relative_error(component(*inputs), expected) < 1e-6


@pytest.mark.parametrize(("embeds", "states"), [(True, False), (False, True), (True, True)])
def test_an_image_encoder(embeds: bool, states: bool) -> None:
    model = vision_model()
    component = ExportImageEncoder(model, embeds=embeds, states=states)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model(pixels, output_hidden_states=True)
    wanted = {"image_embeds": result.image_embeds, "hidden_states": result.hidden_states[-2]}
    names = [tensor.name for tensor in component.spec.outputs]
    assert names == [n for n, given in zip(wanted, (embeds, states), strict=True) if given]
    component.rewrite()
    outputs = component(pixels)
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    for name, output in zip(names, found, strict=True):
        assert relative_error(output, wanted[name]) < 1e-6
