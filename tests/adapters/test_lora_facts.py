"""What a file is, told from its tensors and metadata."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kdrt.adapters.lora_facts import LoraFacts, facts_of
from kdrt.adapters.lora_file import check_effect, read_lora
from kdrt.errors import InvalidRequestError

CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def facts(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
) -> LoraFacts:
    save_file(tensors, folder / "x.safetensors", metadata)
    return facts_of(read_lora(folder / "x.safetensors"))


def lora(key: str, into: int, rank: int = 4, alpha: float = 2) -> dict[str, torch.Tensor]:
    return {
        f"{key}.lora_down.weight": torch.rand(rank, into),
        f"{key}.lora_up.weight": torch.rand(8, rank),
        f"{key}.alpha": torch.tensor(alpha),
    }


@pytest.mark.parametrize(
    ("into", "base"),
    [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "SDXL")],
)
def test_the_base_shows_in_the_size_of_cross_attention(
    into: int, base: str, tmp_path: Path
) -> None:
    found = facts(tmp_path, lora(CROSS, into), {"ss_base_model_version": "sd_v3"})
    assert found.base == base
    assert str(into) in found.evidence
    dora = lora(CROSS, into) | {f"{CROSS}.dora_scale": torch.rand(8, 1)}
    assert facts(tmp_path, dora).base == base


@pytest.mark.parametrize(
    ("key", "metadata", "base"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", {}, "SDXL"),
        ("lora_unet_conv_in", {"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
        (
            "lora_unet_conv_in",
            {"modelspec.architecture": "stable-diffusion-v1/lora"},
            "Stable Diffusion 1.x",
        ),
        ("lora_unet_conv_in", {"ss_base_model_version": "flux1"}, None),
        ("lora_unet_conv_in", {}, None),
    ],
)
def test_else_names_and_metadata_tell(
    key: str, metadata: dict[str, str], base: str | None, tmp_path: Path
) -> None:
    assert facts(tmp_path, lora(key, 4), metadata).base == base


def test_kinds_ranks_and_blocks(tmp_path: Path) -> None:
    found = facts(
        tmp_path,
        lora(CROSS, 768)
        | lora(CROSS.replace("to_k", "to_v"), 768, rank=2)
        | {"lora_unet_mid_block_resnets_0_norm1.w_norm": torch.ones(8)}
        | {"lora_unet_conv_in.oft_blocks": torch.rand(2, 4, 4)}
        | {"bundle_emb.cat.clip_l": torch.rand(1, 8)},
    )
    assert found.kinds() == {"LoRA": 2, "whole difference": 1, "OFT": 1}
    assert found.ranks() == {2: 1, 4: 1}
    assert {layer.strength for layer in found.layers} == {0.5, 1.0, None}
    assert found.blocks("unet") == {"down_blocks_1": 2, "mid_block": 1, "conv_in": 1}
    assert found.embeddings == ("cat",)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (
            {
                "ss_tag_frequency": json.dumps({"10_a": {"dog": 3, "cat": 9}, "b": {"dog": 7}}),
                "modelspec.trigger_phrase": "a photo of sks",
            },
            ("a photo of sks", "dog", "cat"),
        ),
        ({"ss_tag_frequency": "[1"}, ()),
        ({"ss_tag_frequency": '{"a": [1, 2]}'}, ()),
        ({"ss_tag_frequency": '{"a": {"b": "many"}}'}, ()),
        ({"ss_tag_frequency": '{"a": {"b": Infinity}}'}, ()),
        ({"ss_tag_frequency": '{"a": {"\\ud800x": 1}}'}, ("?x",)),
    ],
)
def test_trained_words(metadata: dict[str, str], words: tuple[str, ...], tmp_path: Path) -> None:
    assert facts(tmp_path, lora(CROSS, 768), metadata).words == words


ZEROS = {
    "LoRA": {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.zeros(4, 2)},
    "alpha of 0": {
        "lora_down.weight": torch.ones(2, 4),
        "lora_up.weight": torch.ones(4, 2),
        "alpha": torch.tensor(0.0),
    },
    "LoHa": {f"hada_w{n}_{m}": torch.full((2, 2), n - 1.0) for n in (1, 2) for m in "ab"},
    "LoKr": {"lokr_w1": torch.ones(2, 2), "lokr_w2": torch.zeros(2, 2)},
    "GLoRA": {
        f"{part}.weight": torch.zeros(2, 2) if part[1] == "2" else torch.ones(2, 2)
        for part in ("a1", "a2", "b1", "b2")
    },
    "OFT": {"oft_blocks": torch.ones(2, 2, 2), "rescale": torch.ones(4, 1)},
    "BOFT": {"oft_blocks": torch.ones(2, 1, 2, 2)},
    "OFT of inputs": {"oft_R.weight": torch.zeros(2, 3)},
    "(IA)³": {"weight": torch.zeros(4), "on_input": torch.tensor(0)},
    "peft's (IA)³": {"ia3_l": torch.ones(4, 1)},
    "whole difference": {"diff": torch.zeros(4, 4)},
}


@pytest.mark.parametrize("kind", ZEROS)
def test_a_lora_that_changes_nothing(kind: str, tmp_path: Path) -> None:
    tensors = {f"lora_unet_x.{part}": t.clone() for part, t in ZEROS[kind].items()}
    assert facts(tmp_path, tensors).changes_nothing
    with pytest.raises(InvalidRequestError, match=r"x\.safetensors would change nothing: none"):
        check_effect(read_lora(tmp_path / "x.safetensors"))
    more = tensors | {"lora_unet_y.diff": torch.ones(2, 2)}
    assert not facts(tmp_path, more).changes_nothing
