"""The two networks of a ControlNet, and who takes their residuals, beside diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdrt_export.components import ExportUNet
from kdrt_export.components.controlnet import ExportControlHint, ExportControlNet
from kdrt_export.components.t2i_adapter import ExportT2IAdapter
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.verify import relative_error
from tests.support.tiny_networks import controlnet, t2i_adapter, unet


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_hint_and_step_are_the_whole_controlnet_in_guess_mode(order: str) -> None:
    whole = controlnet("sdxl", controlnet_conditioning_channel_order=order)
    hint = ExportControlHint(controlnet("sdxl", controlnet_conditioning_channel_order=order))
    step = ExportControlNet(controlnet("sdxl", controlnet_conditioning_channel_order=order))
    step.rewrite()
    dims = {"B": 2, "h": 9, "w": 6, "L": 5}
    (image,) = hint.example_inputs(dims)
    given = dict(zip([t.name for t in step.spec.inputs], step.example_inputs(dims), strict=True))
    down, middle = whole(
        given["sample"],
        given["timestep"],
        given["encoder_hidden_states"],
        controlnet_cond=image,
        conditioning_scale=0.7,
        added_cond_kwargs={name: given[name] for name in ("text_embeds", "time_ids")},
        guess_mode=True,
        return_dict=False,
    )
    count = len(down) + 1
    given |= {"hint": hint(image), "scales": 0.7 * torch.logspace(-1, 0, count).expand(2, count)}
    for residual, expected in zip(step(*given.values()), (*down, middle), strict=True):
        assert relative_error(residual, expected) < 1e-5


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_zeros_are_exactly_off(kind: str) -> None:
    plain, controlled = ExportUNet(unet(kind)), ExportUNet(unet(kind), control=True)
    plain.rewrite()
    controlled.rewrite()
    inputs = plain.example_inputs({"B": 2, "h": 7, "w": 10, "L": 5})
    zeros = [
        torch.zeros(tensor.resolve({"B": 2, "h": 7, "w": 10}))
        for tensor in controlled.spec.inputs[len(inputs) :]
    ]
    assert torch.equal(controlled(*inputs, *zeros), plain(*inputs))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_what_controls_give_is_what_a_unet_takes(kind: str) -> None:
    taken = {t.name: t.shape for t in ExportUNet(unet(kind), control=True).spec.inputs}
    given = [
        *ExportControlNet(controlnet(kind)).spec.outputs,
        *ExportT2IAdapter(t2i_adapter(kind), scale=2).spec.outputs,
    ]
    assert {tensor.name: taken[tensor.name] for tensor in given} == {t.name: t.shape for t in given}
    unused = taken.keys() - {tensor.name for tensor in given}
    in_middle = {"adapter_residual_3"} if kind == "sd" else set()
    assert {name for name in unused if "residual" in name} == in_middle


def test_the_last_adapter_residual_goes_to_the_middle_block() -> None:
    names = [t.name for t in ExportUNet(unet("sdxl"), control=True).spec.inputs]
    assert names[-4:] == [f"adapter_residual_{index}" for index in range(4)]
    names = [
        t.name for t in ExportUNet(unet("sdxl", mid_block_type=None), control=True).spec.inputs
    ]
    assert names[-1] == "adapter_residual_2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        (
            {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
            "addition_embed_type='text'",
        ),
    ],
)
def test_a_controlnet_it_does_not_know_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        ExportControlNet(controlnet("sd", **changes))


def test_an_adapter_of_other_squares_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"squares of 2 pixels, .* another family"):
        ExportT2IAdapter(t2i_adapter("sd"), scale=8)
