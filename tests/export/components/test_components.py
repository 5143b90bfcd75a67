"""The rewritten networks compute what the untouched ones compute, at odd sizes too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdrt_export.components import (
    ExportComponent,
    ExportUNet,
    ExportVaeDecoder,
    ExportVaeEncoder,
    vae_tile,
)
from kdrt_export.components.shallow_unet import ExportShallowUNet
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.verify import make_cases, relative_error
from tests.support.components import COMPONENTS
from tests.support.tiny_networks import unet, vae


@pytest.fixture(params=COMPONENTS)
def component(request: pytest.FixtureRequest) -> ExportComponent:
    return COMPONENTS[request.param]()


def test_equals_the_untouched_network(component: ExportComponent) -> None:
    shapes = [
        {"B": 1, "h": 8, "w": 8, "L": 20},
        {"B": 3, "h": 9, "w": 15, "L": 7},
        {"B": 2, "h": 5, "w": 4, "L": 12},
    ]
    cases = make_cases(component, shapes)
    component.rewrite()
    for case in cases:
        out = component(*case.inputs)
        outputs = (out,) if isinstance(out, torch.Tensor) else out
        for tensor, value, expected in zip(
            component.spec.outputs, outputs, case.expected, strict=True
        ):
            assert tuple(value.shape) == tensor.resolve(case.dims) == tuple(expected.shape)
            assert relative_error(value, expected) < 5e-6


def test_freeu_of_the_reference_has_an_effect() -> None:
    component = ExportUNet(unet("sdxl"))
    (case,) = make_cases(component, [{"B": 1, "h": 8, "w": 8, "L": 5}])
    off = (*case.inputs[:-1], torch.ones(1, 4))
    (plain,) = component.reference(*off)
    assert relative_error(plain, case.expected[0]) > 1e-3
    component.rewrite()
    assert relative_error(component(*off), plain) < 5e-6


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 7)])
def test_every_image_has_freeu_of_its_own(height: int, width: int) -> None:
    component = ExportUNet(unet("sd"))
    component.rewrite()
    *inputs, _ = component.example_inputs({"B": 2, "h": height, "w": width, "L": 5})
    freeu = torch.tensor([[1.3, 1.4, 0.9, 0.2], [0.8, 1.0, 1.0, 1.5]])
    together = component(*inputs, freeu)
    for own in (slice(0, 1), slice(1, 2)):
        alone = component(*(tensor[own] for tensor in inputs), freeu[own])
        assert relative_error(together[own], alone) < 5e-6
    others = component(*inputs, freeu.flip(0))
    assert relative_error(others[0], together[0]) > 1e-3


def test_the_timestep_may_be_fractional() -> None:
    component = ExportUNet(unet("sd"))
    component.rewrite()
    sample, _, context, freeu = component.example_inputs({"B": 1, "h": 8, "w": 8, "L": 5})
    results = [component(sample, torch.tensor([t]), context, freeu) for t in (400.0, 400.5, 401.0)]
    assert relative_error(results[1], results[0]) > 1e-5
    assert relative_error(results[1], results[2]) > 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"addition_embed_type": "text", "addition_embed_type_num_heads": 4},
            "addition_embed_type",
        ),
        ({"num_class_embeds": 3}, "num_class_embeds"),
        ({"center_input_sample": True}, "center_input_sample"),
        (
            {"down_block_types": ("AttnDownBlock2D", "DownBlock2D", "DownBlock2D")},
            "AttnDownBlock2D",
        ),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "UNetMidBlock2DSimpleCrossAttn"),
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        (
            {"cross_attention_dim": (24, 24, 12)},
            r"cross_attention_dim=\(24, 24, 12\) .* one width, and this one has 12 and 24",
        ),
        (
            {
                "mid_block_type": None,
                "down_block_types": ("DownBlock2D",) * 3,
                "up_block_types": ("UpBlock2D",) * 3,
            },
            "has no cross-attention",
        ),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 48,
            },
            "has no room for a prompt beside 6 numbers",
        ),
        ({"layers_per_block": 0}, "layers_per_block=0 .* a layer at least"),
    ],
)
def test_a_unet_it_does_not_know_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        ExportUNet(unet("sd", **changes))


@pytest.mark.parametrize("size", [0, -8, 2.5, "64", "x", [64], [64, 0], [1, 2, 3], True, {}])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(UnsupportedModelError, match="sample_size must be a whole number"):
        ExportUNet(unet("sd", sample_size=size))
    with pytest.raises(UnsupportedModelError, match="sample_size must be a whole number"):
        vae_tile(SimpleNamespace(config=SimpleNamespace(sample_size=size)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({"scaling_factor": factor}, "scaling_factor must be a number above 0")
            for factor in (0, -1.0, "0.2", None, float("nan"), [0.2])
        ),
        ({"shift_factor": 0.1}, "shift_factor=0.1 belongs to another family"),
        *(
            ({"latents_mean": mean, "latents_std": std}, "must be 4 numbers each")
            for mean, std in (
                ([0.0] * 3, [1.0] * 4),
                ([0.0] * 4, [1.0] * 3 + [0.0]),
                ([0.0] * 3 + [float("nan")], [1.0] * 4),
                ("none", [1.0] * 4),
                (0.0, 1.0),
            )
        ),
    ],
)
def test_a_vae_that_scales_its_latents_by_nonsense_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    for half in (ExportVaeDecoder, ExportVaeEncoder):
        with pytest.raises(UnsupportedModelError, match=words):
            half(vae(**changes))


def test_nothing_is_lost_where_a_shallow_unet_replaces_layers() -> None:
    """A UNet without a middle block: a copy of it has nothing where that would be, too."""
    shallow = ExportShallowUNet(unet("sd", mid_block_type=None))
    assert shallow.unet.mid_block is None
    assert shallow.unet.encoder_hid_proj is None
