"""ControlNets and T2I-Adapters out of files: the networks they were saved of, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, T2IAdapter
from safetensors.torch import save_file
from torch import nn

from kdrt.bundle import MOST_CONTROLS
from kdrt_export.control import Control, ControlSource, UNetFacts, find_controls
from kdrt_export.errors import ExportError, SourceError, UnsupportedModelError
from kdrt_export.sources.control import adapter_weights, controlnet_weights
from tests.support.single_file import original_controlnet
from tests.support.tiny_networks import controlnet, t2i_adapter, unet

WIDE: dict[str, Any] = {"conditioning_embedding_out_channels": (4, 8, 8, 12)}
"""With the eight layers that the original layout has."""


def read_controlnet(state: dict[str, torch.Tensor], file: Path, kind: str) -> ControlNetModel:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return controlnet_weights(file, unet(kind).config, 4, allow_pickle=False).network()


def assert_same(made: nn.Module, expected: nn.Module) -> None:
    state = made.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("kind", ["sd", "sd2", "sdxl"])
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_controlnet_in_a_file(kind: str, layout: str, tmp_path: Path) -> None:
    whole = controlnet(kind, **WIDE)
    state = whole.state_dict() if layout == "diffusers" else original_controlnet(whole)
    made = read_controlnet(state, tmp_path / "it.safetensors", kind)
    assert_same(made, whole)
    assert not made.config.global_pool_conditions


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"},
        {"transformer_layers_per_block": (1, 0, 1)},
        {"conditioning_channels": 5},
    ],
)
def test_a_smaller_controlnet_in_a_file(changes: dict[str, Any], tmp_path: Path) -> None:
    whole = controlnet("sdxl", **changes)
    assert_same(read_controlnet(whole.state_dict(), tmp_path / "it.safetensors", "sdxl"), whole)


def test_a_file_that_is_called_so_pools(tmp_path: Path) -> None:
    state = controlnet("sd").state_dict()
    made = read_controlnet(state, tmp_path / "control_v11e_sd15_Shuffle.safetensors", "sd")
    assert made.config.global_pool_conditions


def original_adapter(adapter: T2IAdapter) -> dict[str, torch.Tensor]:
    """The state under its authors' names: layers numbered through in a full one, of two each."""
    state = {}
    for name, tensor in adapter.adapter.state_dict().items():
        body, _, rest = name.partition(".")
        if body == "body":
            size, *path = rest.split(".")
            if path[0] == "resnets" and adapter.config.adapter_type == "light_adapter":
                name = f"body.{size}.body.{'.'.join(path[1:])}"
            elif path[0] == "resnets":
                name = f"body.{2 * int(size) + int(path[1])}.{'.'.join(path[2:])}"
            elif adapter.config.adapter_type != "light_adapter":
                name = f"body.{2 * int(size)}.{'.'.join(path)}"
        state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd", {"num_res_blocks": 2, "in_channels": 1}),
        ("sd", {"adapter_type": "light_adapter", "num_res_blocks": 4}),
        ("sdxl", {"num_res_blocks": 2}),
    ],
)
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_an_adapter_in_a_file(
    family: str, changes: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    whole = t2i_adapter(family, **changes)
    state = whole.state_dict() if layout == "diffusers" else original_adapter(whole)
    save_file(state, tmp_path / "it.safetensors")
    weights = adapter_weights(tmp_path / "it.safetensors", family, 2, allow_pickle=False)
    made = weights.network()
    assert_same(made, whole)
    assert [*made.config.channels] == whole.config.channels
    for setting in ("in_channels", "num_res_blocks", "downscale_factor", "adapter_type"):
        assert made.config[setting] == whole.config[setting]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_controlnet"], "is a control-LoRA, which cannot be exported as a ControlNet"),
        (["task_embedding", "conv_in.weight"], "is a ControlNet-Union"),
        (["lllite_unet_input_blocks_4_1.depth"], "is a ControlLLLite"),
        (["ip_adapter.1.to_k_ip.weight"], "is an IP-Adapter"),
    ],
)
def test_networks_of_other_kinds_are_refused_by_name(
    names: list[str], words: str, tmp_path: Path
) -> None:
    file = tmp_path / "it.safetensors"
    save_file({name: torch.ones(2) for name in names}, file)
    with pytest.raises(UnsupportedModelError, match=rf"it\.safetensors {words}"):
        controlnet_weights(file, unet("sd").config, 4, allow_pickle=False)
    with pytest.raises(UnsupportedModelError, match=r"cannot be exported as a T2I-Adapter"):
        adapter_weights(file, "sd", 2, allow_pickle=False)


def test_files_that_hold_no_whole_network(tmp_path: Path) -> None:
    file = tmp_path / "it.safetensors"
    state = controlnet("sd").state_dict()
    del state["mid_block.resnets.0.conv1.weight"]
    with pytest.raises(SourceError, match=r"lacks mid_block\.resnets\.0\.conv1\.weight"):
        read_controlnet(state, file, "sd")
    with pytest.raises(SourceError, match=r"other shapes: .* for another family"):
        read_controlnet(controlnet("sd", cross_attention_dim=32).state_dict(), file, "sd")
    save_file({"adapter.conv_in.weight": torch.ones(16, 13, 3, 3)}, file)
    with pytest.raises(SourceError, match=r"holds no T2I-Adapter: it takes 13 numbers of 2×2"):
        adapter_weights(file, "sd", 2, allow_pickle=False)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SourceError, match="Git LFS"):
        controlnet_weights(file, unet("sd").config, 4, allow_pickle=False)


@pytest.mark.parametrize(
    "name",
    [
        "controlnet_cond_embedding.blocks.1.weight",  # a number, where a convolution should be
        f"down_blocks.0.attentions.0.transformer_blocks.{'9' * 5000}.weight",
    ],
)
def test_what_a_tensor_says_can_be_nonsense(name: str, tmp_path: Path) -> None:
    state = {**controlnet("sd").state_dict(), name: torch.tensor(1.0)}
    with pytest.raises(SourceError, match=r"it\.safetensors holds no ControlNet for this model"):
        read_controlnet(state, tmp_path / "it.safetensors", "sd")


def test_what_a_tensor_of_an_adapter_says_can_be_nonsense(tmp_path: Path) -> None:
    save_file({f"body.{'9' * 5000}.block1.weight": torch.ones(1)}, tmp_path / "it.safetensors")
    with pytest.raises(SourceError, match=r"it\.safetensors holds no T2I-Adapter"):
        adapter_weights(tmp_path / "it.safetensors", "sd", 2, allow_pickle=False)


def test_an_image_of_more_channels_than_a_bundle_allows(tmp_path: Path) -> None:
    controlnet("sd", conditioning_channels=65).save_pretrained(tmp_path / "wide")
    of_unet = UNetFacts(dict(unet("sd").config), "sd", latents=4, scale=2, time_ids=6)
    source = ControlSource.find("controlnet", str(tmp_path / "wide"))
    with pytest.raises(SourceError, match=r"'wide' cannot be used: channels: .* equal to 64"):
        Control(source, of_unet)


def test_a_pickle_must_be_allowed(tmp_path: Path) -> None:
    torch.save({"state_dict": original_controlnet(controlnet("sd", **WIDE))}, tmp_path / "it.pth")
    with pytest.raises(SourceError, match=r"it\.pth is a pickle, .* --allow-pickle"):
        ControlSource.find("controlnet", str(tmp_path / "it.pth"))
    found = ControlSource.find("controlnet", str(tmp_path / "it.pth"), allow_pickle=True)
    weights = controlnet_weights(found.path, unet("sd").config, 4, allow_pickle=True)
    assert_same(weights.network(), controlnet("sd", **WIDE))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{}/Canny SD1.5.safetensors", "canny-sd1-5"),
        ("{}/Canny SD1.5.safetensors:lines_2", "lines_2"),
    ],
)
def test_names(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "Canny SD1.5.safetensors").touch()
    found = ControlSource.find("controlnet", text.format(tmp_path))
    assert (found.name, found.path) == (name, tmp_path / "Canny SD1.5.safetensors")
    assert found.source == "Canny SD1.5.safetensors"


def test_a_name_is_asked_for_once(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "-.safetensors").touch()
    file = str(tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=r"'a' is taken .* with a\.safetensors:NAME"):
        find_controls([file], [file])
    with pytest.raises(ExportError, match=r"int8 weights takes no ControlNets"):
        find_controls([file], [], weights="int8")
    with pytest.raises(ExportError, match="can be called 'a-hint'"):
        find_controls([f"{file}:a", f"{file}:a-hint"], [])
    with pytest.raises(ExportError, match="no name follows from"):
        find_controls([str(tmp_path / "-.safetensors")], [])


def test_a_bundle_holds_so_many_controls(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    many = [f"{tmp_path / 'a.safetensors'}:a{index}" for index in range(MOST_CONTROLS)]
    assert len(find_controls(many[1:], many[:1])) == MOST_CONTROLS
    with pytest.raises(ExportError, match=r"at most 16 ControlNets .* would be 17"):
        find_controls(many, [], taken=["lines"])
