"""One layer of every kind, under the names that each program gives it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdrt.adapters.lora_file import parse_lora
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_names import slots
from tests.support.lycoris_layers import AT_FULL_STRENGTH, MODULES, adapted_layer

UNET = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
LDM = "middle_block.1.transformer_blocks.0.attn2.to_k"
TEXT = "text_model.encoder.layers.0.mlp.fc1"

SPELLINGS = {
    "kohya": ("unet", f"lora_unet_{UNET.replace('.', '_')}"),
    "kohya, LDM's names": ("unet", f"lora_unet_{LDM.replace('.', '_')}"),
    "LyCORIS alone": ("unet", f"lycoris_{UNET.replace('.', '_')}"),
    "diffusers": ("unet", f"unet.{UNET}"),
    "peft": ("unet", f"base_model.model.{UNET}"),
    "ComfyUI": ("unet", f"diffusion_model.{LDM}"),
    "kohya, text": ("text_encoder", f"lora_te1_{TEXT.replace('.', '_')}"),
    "OneTrainer, text": ("text_encoder", f"lora_te_{TEXT.replace('.', '_')}"),
    "diffusers, text": ("text_encoder", f"text_encoder.{TEXT}"),
    "peft, text": ("text_encoder", f"base_model.model.{TEXT}"),
    "ComfyUI, text": ("text_encoder", f"text_encoders.clip_l.transformer.{TEXT}"),
    "ComfyUI, second text": ("text_encoder_2", f"text_encoders.clip_g.transformer.{TEXT}"),
}
SHAPES = {
    "unet": {
        f"unet.{UNET}.weight": (12, 10),
        f"unet.{UNET}.bias": (12,),
        "unet.down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3),
    },
    "text_encoder": {f"{TEXT}.weight": (12, 10), f"{TEXT}.bias": (12,)},
}


@pytest.fixture(scope="module", params=[*MODULES, *AT_FULL_STRENGTH])
def adapter(request: pytest.FixtureRequest) -> tuple[nn.Linear, dict[str, Tensor]]:
    torch.manual_seed(0)
    layer = nn.Linear(10, 12)
    return layer, adapted_layer(request.param, layer, rank=2, alpha=1, scale=1).file


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_program_means_the_same_weights(
    spelling: str, adapter: tuple[nn.Linear, dict[str, Tensor]]
) -> None:
    layer, file = adapter
    network, prefix = SPELLINGS[spelling]
    shapes = SHAPES["unet" if network == "unet" else "text_encoder"]
    state = {key.replace("lora_unet_layer", prefix, 1): tensor for key, tensor in file.items()}
    layers = parse_lora(state)
    assert layers.keys() == {network}
    placed = place(layers[network], slots(shapes))
    assert not placed.unmatched
    base = {"weight": layer.weight.detach(), "bias": layer.bias.detach()}
    ours = merged([(placed, 1.0)], lambda name: base[name.rpartition(".")[2]])
    plain = place(
        parse_lora(file)["unet"], slots({f"layer.{name}": p.shape for name, p in base.items()})
    )
    wanted = merged([(plain, 1.0)], lambda name: base[name.rpartition(".")[2]])
    assert {name.rpartition(".")[2]: weight.tolist() for name, weight in ours.items()} == {
        name.rpartition(".")[2]: weight.tolist() for name, weight in wanted.items()
    }


@pytest.mark.parametrize(
    "key",
    [
        "unet.x.lora_magnitude_vector",
        "unet.x.lora_magnitude_vector.weight",
        "unet.x.lora_magnitude_vector.default.weight",
        "base_model.model.x.lora_magnitude_vector",
        "lora_unet_x.dora_scale",
    ],
)
def test_magnitudes_of_dora(key: str) -> None:
    prefix = key.rpartition("x.")[0] + "x"
    pair = {
        f"{prefix}.lora_A.weight": torch.ones(2, 4),
        f"{prefix}.lora_B.weight": torch.ones(3, 2),
    }
    (layer,) = parse_lora({**pair, key: torch.ones(3)})["unet"].values()
    assert layer.kind == "DoRA"
