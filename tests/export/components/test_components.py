"""The rewritten networks compute what the untouched ones compute, at odd sizes too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdrt_export.components import (
    ExportComponent,
    ExportTextEncoder,
    ExportUNet,
    ExportVaeDecoder,
    ExportVaeEncoder,
    vae_tile,
)
from kdrt_export.components.shallow_unet import ExportShallowUNet
from kdrt_export.errors import UnsupportedModelError
from kdrt_export.verify import make_cases, relative_error
from tests.support.tiny_networks import text_encoder, unet, vae

PRUNED: dict[str, dict[str, Any]] = {
    # Segmind's SSD-1B and Vega: a middle block without attention, transformers of their own depths.
    "of SSD-1B": {
        "mid_block_type": "UNetMidBlock2D",
        "layers_per_block": 2,
        "transformer_layers_per_block": [1, [1, 2], [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 1, 2], [2, 1, 1], 1],
    },
    # KOALA-700M, BK-SDM-tiny: no middle block.
    "of KOALA": {"mid_block_type": None},
    "of uneven depth": {"layers_per_block": [1, 3, 2]},
}
COMPONENTS = {
    **{
        f"unet {kind}": lambda kind=kind: ExportUNet(unet(kind))
        for kind in ("sd", "sd2", "sdxl", "lcm")
    },
    "refiner unet": lambda: ExportUNet(
        unet("sdxl", projection_class_embeddings_input_dim=5 * 8 + 20), time_ids=5
    ),
    "inpainting unet": lambda: ExportUNet(unet("sd", in_channels=9)),
    "unet with its deep feature": lambda: ExportUNet(unet("sd"), deep_feature=True),
    **{
        f"shallow unet {kind}": lambda kind=kind: ExportShallowUNet(unet(kind))
        for kind in ("sd", "sdxl", "lcm")
    },
    "shallow unet with FreeU in it": lambda: ExportShallowUNet(
        unet(
            "sd",
            block_out_channels=(16, 32),
            attention_head_dim=(2, 4),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    ),
    **{
        f"{what} {name}": lambda kind=kind, changes=changes: kind(unet("sdxl", **changes))
        for what, kind in (("unet", ExportUNet), ("shallow unet", ExportShallowUNet))
        for name, changes in PRUNED.items()
    },
    "unet with its prompt's width for each block": lambda: ExportUNet(
        unet("sd", cross_attention_dim=(24, 24, 24))
    ),
    "unet that upcasts attention": lambda: ExportUNet(unet("sd", upcast_attention=True)),
    "unet without fused qkv": lambda: ExportUNet(unet("sdxl"), fuse_qkv=False),
    "text encoder": lambda: ExportTextEncoder(text_encoder(), normalize=True),
    "text encoder 2": lambda: ExportTextEncoder(text_encoder(projection=True), normalize=False),
    "vae decoder": lambda: ExportVaeDecoder(vae()),
    "vae decoder with statistics": lambda: ExportVaeDecoder(
        vae(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.0, 2.0, 0.5, 0.8])
    ),
    "vae encoder": lambda: ExportVaeEncoder(vae()),
}


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
    off = (*case.inputs[:-1], torch.ones(4))
    (plain,) = component.reference(*off)
    assert relative_error(plain, case.expected[0]) > 1e-3
    component.rewrite()
    assert relative_error(component(*off), plain) < 5e-6


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
def test_a_unet_it_does_not_know_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        ExportUNet(unet("sd", **changes))


@pytest.mark.parametrize("size", [0, -8, 2.5, "64", "x", [64], [64, 0], [1, 2, 3], True, {}])
def test_a_size_that_is_none_is_refused(size: object) -> None:
    with pytest.raises(UnsupportedModelError, match="sample_size must be a whole number"):
        ExportUNet(unet("sd", sample_size=size))
    with pytest.raises(UnsupportedModelError, match="sample_size must be a whole number"):
        vae_tile(SimpleNamespace(config=SimpleNamespace(sample_size=size)))  # type: ignore[arg-type]


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
    changes: dict[str, object], words: str
) -> None:
    for half in (ExportVaeDecoder, ExportVaeEncoder):
        with pytest.raises(UnsupportedModelError, match=words):
            half(vae(**changes))


def test_nothing_is_lost_where_a_shallow_unet_replaces_layers() -> None:
    """A UNet without a middle block: a copy of it has nothing where that would be, too."""
    shallow = ExportShallowUNet(unet("sd", mid_block_type=None))
    assert shallow.unet.mid_block is None
    assert shallow.unet.encoder_hid_proj is None
