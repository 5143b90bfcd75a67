"""Every spelling of a LoRA leads to the weights that diffusers computes from it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from kdrt.adapters.lora_file import parse_lora, read_lora
from kdrt.adapters.lora_layer import LoraLayer
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_names import slots
from kdrt.errors import InvalidRequestError
from kdrt_export.families import KNOWN_MODELS
from tests.support.lora_files import (
    ATTENTION,
    CONVOLUTIONS,
    TEXT,
    Layers,
    kohya,
    kohya_with_ldm_names,
    ldm_name,
    networks,
    old_diffusers,
    peft,
    pipeline,
    random_lora,
    with_text_model,
)


def comfyui(layers: Layers) -> dict[str, Tensor]:
    """As its node for saving LoRAs writes them."""
    prefixes = {
        "unet": "diffusion_model",
        "text_encoder": "text_encoders.clip_l.transformer",
        "text_encoder_2": "text_encoders.clip_g.transformer",
    }
    state: dict[str, Tensor] = {}
    for (component, path), (down, up, alpha) in layers.items():
        module = ldm_name(path) if component == "unet" else with_text_model(path)
        key = f"{prefixes[component]}.{module}"
        state |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_comfyui_names_are_those_of_kohya(family: str) -> None:
    pipe = pipeline(family)
    layers = random_lora(networks(pipe), (*ATTENTION, *CONVOLUTIONS, *TEXT, "text_projection"))
    expected = our_weights(pipe, kohya(layers))
    ours = our_weights(pipe, comfyui(layers))
    assert sum(map(len, ours.values())) == len(layers)
    for component, weights in expected.items():
        assert ours[component].keys() == weights.keys()
        assert all(torch.equal(ours[component][name], weights[name]) for name in weights)


SPELLINGS = {
    "kohya": (kohya, (*ATTENTION, *CONVOLUTIONS, *TEXT)),
    "kohya, LDM's names": (kohya_with_ldm_names, (*ATTENTION, *CONVOLUTIONS, *TEXT)),
    "peft": (peft, (*ATTENTION, *CONVOLUTIONS, *TEXT)),
    "old diffusers": (old_diffusers, (*ATTENTION[:4], *TEXT[:4])),
}


def diffusers_weights(pipe: Any) -> dict[str, dict[str, Tensor]]:
    """The weights of every layer with a LoRA, LoRA included."""
    return {
        component: {
            f"{path}.weight": layer.base_layer.weight
            + sum(layer.get_delta_weight(name) for name in layer.active_adapters)
            for path, layer in network.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }
        for component, network in networks(pipe).items()
    }


def our_weights(
    pipe: Any, state: dict[str, Tensor], **options: Any
) -> dict[str, dict[str, Tensor]]:
    layers = parse_lora(state, **options)
    found = {}
    for component, network in networks(pipe).items():
        parameters = dict(network.named_parameters())
        places = slots({name: tuple(p.shape) for name, p in parameters.items()})
        placed = place(layers[component], places)
        assert not placed.unmatched
        found[component] = merged([(placed, 1.0)], parameters.__getitem__)
    return found


@pytest.mark.parametrize(
    ("spelling", "family"),
    [
        *itertools.product(["kohya", "peft", "old diffusers"], ["sd", "sdxl"]),
        ("kohya, LDM's names", "sdxl"),  # for SD, kohya writes diffusers' names
    ],
)
def test_the_weights_are_those_of_diffusers(spelling: str, family: str, tmp_path: Path) -> None:
    write, modules = SPELLINGS[spelling]
    pipe = pipeline(family)
    layers = random_lora(networks(pipe), modules, alpha=1.5 if "kohya" in spelling else None)
    state = write(layers)
    ours = our_weights(pipe, state)
    save_file(state, tmp_path / "lora.safetensors")
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    theirs = diffusers_weights(pipe)
    assert {c: set(w) for c, w in ours.items()} == {c: set(w) for c, w in theirs.items()}
    assert sum(map(len, ours.values())) == len(layers)
    for component, weights in theirs.items():
        for name, weight in weights.items():
            torch.testing.assert_close(ours[component][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["ComfyUI", "LyCORIS"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_norms_and_biases_are_places_too(kind: str, family: str) -> None:
    """In every network one of each sort, by LDM's names for the UNet where ComfyUI has them."""
    pipe = pipeline(family)
    sorts = {
        "unet": {
            "mid_block.resnets.0.norm1": "middle_block.0.in_layers.0",
            "mid_block.resnets.0.norm2": "middle_block.0.out_layers.0",
            "mid_block.resnets.0.conv2": "middle_block.0.out_layers.3",
            "mid_block.attentions.0.norm": "middle_block.1.norm",
            "mid_block.attentions.0.transformer_blocks.0.norm3": (
                "middle_block.1.transformer_blocks.0.norm3"
            ),
            "conv_norm_out": "out.0",
            "conv_out": "out.2",
        },
        "text_encoder": {
            "encoder.layers.0.layer_norm1": "encoder.layers.0.layer_norm1",
            "encoder.layers.0.self_attn.q_proj": "encoder.layers.0.self_attn.q_proj",
            "final_layer_norm": "final_layer_norm",
            "embeddings.position_embedding": "embeddings.position_embedding",
        },
    }
    if family == "sdxl":
        sorts["text_encoder_2"] = sorts["text_encoder"]
    prefixes = {
        "unet": ("diffusion_model.", "lora_unet_"),
        "text_encoder": ("text_encoders.clip_l.transformer.text_model.", "lora_te1_text_model_"),
        "text_encoder_2": ("text_encoders.clip_g.transformer.text_model.", "lora_te2_text_model_"),
    }
    state, expected = {}, {}
    generator = torch.Generator().manual_seed(0)
    for component, modules in sorts.items():
        comfy, lycoris = prefixes[component]
        parameters = dict(networks(pipe)[component].named_parameters())
        for module, ldm in modules.items():
            for last, endings in (
                ("weight", (".diff", ".w_norm")),
                ("bias", (".diff_b", ".b_norm")),
            ):
                name = next((n for n in parameters if n.endswith(f"{module}.{last}")), None)
                if name is None:
                    continue  # an embedding has no bias
                delta = torch.randn(parameters[name].shape, generator=generator)
                path = comfy + ldm if kind == "ComfyUI" else lycoris + module.replace(".", "_")
                state[path + endings[kind == "LyCORIS"]] = delta
                expected[component, name] = parameters[name] + delta
    ours = our_weights(pipe, state)
    assert {(c, n) for c, weights in ours.items() for n in weights} == expected.keys()
    for (component, name), weight in expected.items():
        torch.testing.assert_close(ours[component][name], weight)


def test_the_alphas_diffusers_saves_as_metadata(tmp_path: Path) -> None:
    from peft import LoraConfig

    pipe = pipeline("sd")
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "ff.net.2"],
        alpha_pattern={"attn1.to_q": 10, "to_k": 2},
        init_lora_weights=False,
    )
    pipe.unet.add_adapter(config)
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(pipe.unet)
    pipe.save_lora_weights(
        tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=config.to_dict()
    )
    file = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    expected = diffusers_weights(pipe)["unet"]
    base = {n.replace(".base_layer", ""): p for n, p in pipe.unet.named_parameters()}
    placed = place(file.layers["unet"], slots({n: tuple(p.shape) for n, p in base.items()}))
    ours = merged([(placed, 1.0)], base.__getitem__)
    assert set(ours) == set(expected)
    for name, weight in expected.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mid", [True, False])
def test_a_convolution_in_three_steps_is_one(mid: bool) -> None:
    """LoCon's definition: the factors are convolutions after each other."""
    generator = torch.Generator().manual_seed(0)
    size = 1 if mid else 3
    down = torch.randn(4, 6, size, size, generator=generator)
    middle = torch.randn(4, 4, 3, 3, generator=generator) if mid else None
    up = torch.randn(5, 4, 1, 1, generator=generator)
    x = torch.randn(2, 6, 7, 9, generator=generator)
    steps = torch.nn.functional.conv2d(x, down)
    if middle is not None:
        steps = torch.nn.functional.conv2d(steps, middle)
    expected = torch.nn.functional.conv2d(steps, up) * 0.25
    delta = LoraLayer(down, up, middle, 0.25).delta()
    torch.testing.assert_close(torch.nn.functional.conv2d(x, delta), expected, rtol=1e-4, atol=1e-4)


def test_fused_projections_take_deltas_in_their_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "unet.a.attn1.to_qkv.weight": (12, 5),
        "unet.a.attn2.to_q.weight": (4, 5),
        "unet.a.attn2.to_kv.weight": (8, 7),
        "unet.a.norm.weight": (5,),
    }
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    rows = {"a_attn1_to_q": 0, "a_attn1_to_v": 8, "a_attn2_to_k": 0, "a_attn2_to_v": 4}
    layers = {
        module: LoraLayer(
            torch.randn(2, 7 if "attn2" in module else 5, generator=generator),
            torch.randn(4, 2, generator=generator),
        )
        for module in rows
    }
    result = merged([(place(layers, slots(shapes)), -1.5)], weights.__getitem__)
    assert set(result) == {"unet.a.attn1.to_qkv.weight", "unet.a.attn2.to_kv.weight"}
    for name in result:
        expected = weights[name].clone()
        for module, first in rows.items():
            if module.rpartition("_to_")[0] == name.removeprefix("unet.").rpartition(".to_")[
                0
            ].replace(".", "_"):
                expected[first : first + 4] += -1.5 * layers[module].up @ layers[module].down
        torch.testing.assert_close(result[name], expected)
    # The middle third belongs to to_k, which this LoRA leaves alone.
    assert torch.equal(
        result["unet.a.attn1.to_qkv.weight"][4:8], weights["unet.a.attn1.to_qkv.weight"][4:8]
    )


def test_several_add_up_in_float32_and_are_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator).half()
    layers = [
        LoraLayer(torch.randn(2, 5, generator=generator), torch.randn(6, 2, generator=generator))
        for _ in range(2)
    ]
    placed = [place({"a": layer}, slots({"a.weight": (6, 5)})) for layer in layers]
    total = weight.float() + 0.3 * layers[0].delta() - 2 * layers[1].delta()
    result = merged([(placed[0], 0.3), (placed[1], -2.0)], {"a.weight": weight}.__getitem__)
    assert torch.equal(result["a.weight"], total.half())
    assert merged([(placed[0], 0.0)], {"a.weight": weight}.__getitem__) == {}


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (
            "sdxl",
            {
                "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
                "input_blocks_8_1_transformer_blocks_9_attn2_to_k": (
                    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k"
                ),
                "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
                "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
                "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
                "label_emb_0_0": "add_embedding.linear_1",
                "out_2": "conv_out",
            },
        ),
        (
            "sd15",
            {
                "input_blocks_11_0_out_layers_3": "down_blocks.3.resnets.1.conv2",
                "output_blocks_2_1_conv": "up_blocks.0.upsamplers.0.conv",
                "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
                "output_blocks_11_1_proj_in": "up_blocks.3.attentions.2.proj_in",
            },
        ),
    ],
)
def test_ldm_names_of_the_real_networks(model: str, names: dict[str, str]) -> None:
    with torch.device("meta"):
        network = UNet2DConditionModel(**KNOWN_MODELS[model].architecture.unet)
    found = slots({f"unet.{name}": tuple(p.shape) for name, p in network.named_parameters()})
    assert {ldm: found[ldm].weight for ldm in names} == {
        ldm: f"unet.{module}.weight" for ldm, module in names.items()
    }


DOWN, UP = torch.ones(2, 4), torch.ones(4, 2)
PAIR = {"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"lora_unet_x.dora_scale": DOWN}, "there is nothing beside 'lora_unet_x.dora_scale'"),
        ({"unet.x.oft_r": DOWN}, "is OFT as peft wrote it before 0.16 by 'unet.x.oft_r'"),
        ({"unet.x.boft_R": DOWN}, "is peft's BOFT by 'unet.x.boft_R', which kdrt does not read"),
        ({"lora_unet_x.lambda_layer": DOWN}, "is T-LoRA by"),
        ({"model.weight": DOWN}, "belong to no LoRA kdrt knows, such as 'model.weight'"),
        ({"unet.x.lora_A.weight": DOWN}, "x has only half of a LoRA"),
        ({"bundle_emb.cat.clip_l": DOWN}, "use load_textual_inversion"),
        ({}, "holds no LoRA kdrt knows"),
    ],
)
def test_what_is_no_lora(state: dict[str, Tensor], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        parse_lora(state, None, "mine.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="there is no LoRA file"):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(InvalidRequestError, match=r"bad\.safetensors is damaged"):
        read_lora(tmp_path / "bad.safetensors")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(InvalidRequestError, match=r"a \.safetensors file is needed"):
        read_lora(tmp_path / "text.txt")
    save_file(PAIR, tmp_path / "meta.safetensors", {"lora_adapter_metadata": json.dumps([1])})
    with pytest.raises(InvalidRequestError, match="metadata are damaged"):
        read_lora(tmp_path / "meta.safetensors")


def test_pickles_only_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "lora.bin"
    torch.save({"state_dict": PAIR}, path)
    with pytest.raises(
        InvalidRequestError, match=r"a pickle, which can run code .*export --allow-pickle"
    ):
        read_lora(path)
    assert set(read_lora(path, allow_pickle=True).layers["unet"]) == {"x"}


def test_another_model_is_refused_by_size() -> None:
    placed = place({"a": LoraLayer(DOWN, UP)}, slots({"a.weight": (6, 5)}))
    with pytest.raises(
        InvalidRequestError, match=r"made for another model: at a\.weight it has 4 x 4"
    ):
        merged([(placed, 1.0)], {"a.weight": torch.zeros(6, 5)}.__getitem__, "mine")
