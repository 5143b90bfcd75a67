"""``kdrt lora inspect``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.command_line import Cli

LAYER = "mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "style.safetensors"
    tensors = {
        f"lora_unet_{LAYER}.lora_down.weight": torch.full((2, 128), 0.01),
        f"lora_unet_{LAYER}.lora_up.weight": torch.ones(128, 2),
        f"lora_unet_{LAYER}.alpha": torch.tensor(1.0),
        "lora_unet_elsewhere.lokr_w1": torch.ones(2, 2),
        "lora_unet_elsewhere.lokr_w2": torch.ones(2, 2),
    }
    tags = {"ss_tag_frequency": json.dumps({"a": {"\x1b[31mred": 3}}), "ss_output_name": "style"}
    save_file(tensors, path, tags)
    return path


def test_for_people(cli: Cli, demo: str, file: Path) -> None:
    outcome = cli("lora", "inspect", file, "--bundle", demo)
    assert outcome.code == 0
    for line in (
        r"kind +LoKr \(1\), LoRA \(1\)",
        "base +unknown",
        r"rank +2 \(1\)",
        "alpha / rank +0.5 to 1",
        f"fits {demo} +1 of 2 layers",
        r"trained words +\\x1b\[31mred",
        "mid_block +1",
        "ss_output_name +style",
    ):
        assert re.search(line, outcome.out), line
    assert "\x1b" not in outcome.out


def test_for_programs(cli: Cli, demo: str, file: Path) -> None:
    found = json.loads(cli("lora", "inspect", file, "--bundle", demo, "--json").out)
    assert found["kinds"] == {"LoRA": 1, "LoKr": 1}
    assert found["layers"][1] == {
        "network": "unet",
        "module": LAYER,
        "kind": "LoRA",
        "rank": 2,
        "strength": 0.5,
    }
    assert (found["fitting"], found["not_fitting"]) == (1, ["unet.elsewhere"])
    assert found["refusal"] is None
    assert found["trained_words"] == ["\x1b[31mred"]


def test_what_fits_by_name_alone_is_what_generate_refuses(
    cli: Cli, demo: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    prefix = f"lora_unet_{LAYER}"
    save_file(
        {
            f"{prefix}.lora_down.weight": torch.ones(2, 96),
            f"{prefix}.lora_up.weight": torch.ones(128, 2),
        },
        path,
    )
    found = json.loads(cli("lora", "inspect", path, "--bundle", demo, "--json").out)
    assert (found["fitting"], found["not_fitting"]) == (0, [f"unet.{LAYER}"])
    assert "made for another model" in found["refusal"]
    assert found["refusal"] in cli("generate", demo, "x", "--lora", path).refusal()
    told = cli("lora", "inspect", path, "--bundle", demo).out
    assert re.search(f"fits {demo} +0 of 1 layer\n", re.sub(" +\n", "\n", told))
    assert found["sha256"] in told


def test_what_is_no_lora(cli: Cli, tmp_path: Path) -> None:
    assert "there is no LoRA file" in cli("lora", "inspect", tmp_path / "none").refusal()
    save_file({"lora_unet_x.lambda_layer": torch.ones(1, 2)}, tmp_path / "t.safetensors")
    said = cli("lora", "inspect", tmp_path / "t.safetensors").refusal()
    assert "is T-LoRA by 'lora_unet_x.lambda_layer', which kdrt does not read" in said


def test_a_lora_that_changes_nothing_makes_no_image(cli: Cli, demo: str, tmp_path: Path) -> None:
    zeros = {
        f"lora_unet_{LAYER}.lora_down.weight": torch.ones(2, 128),
        f"lora_unet_{LAYER}.lora_up.weight": torch.zeros(128, 2),
    }
    save_file(zeros, tmp_path / "zero.safetensors")
    assert re.search("effect +none", cli("lora", "inspect", tmp_path / "zero.safetensors").out)
    said = cli("generate", demo, "x", "--lora", tmp_path / "zero.safetensors").refusal()
    assert "zero.safetensors would change nothing: none of its layers" in said
