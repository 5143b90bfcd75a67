"""Adapters of every kind that peft saves do to a network what they do in peft."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    get_peft_model,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from kdrt.adapters.lora_file import LoraFile, read_lora
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_names import slots
from kdrt.errors import InvalidRequestError


class Network(nn.Module):
    """A linear layer and two convolutions, side by side on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 9)
        self.point = nn.Conv2d(12, 9, 1)
        self.kernel = nn.Conv2d(12, 9, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[batch, 27, h, w]`` of ``[batch, 12, h, w]``."""
        linear = self.linear(inputs.movedim(1, -1)).movedim(-1, 1)
        return torch.cat([linear, self.point(inputs), self.kernel(inputs)], 1)


LAYERS = ["linear", "point", "kernel"]
CONFIGS: dict[str, Any] = {
    "LoRA": LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS),
    "rs-LoRA": LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=LAYERS),
    "LoRA with alphas": LoraConfig(
        r=3, lora_alpha=5, alpha_pattern={"kernel": 2}, target_modules=LAYERS
    ),
    "LoRA with biases": LoraConfig(r=3, lora_alpha=5, lora_bias=True, target_modules=LAYERS),
    "DoRA": LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=LAYERS),
    "LoHa": LoHaConfig(r=3, alpha=5, target_modules=LAYERS),
    "LoHa, Tucker": LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, target_modules=LAYERS),
    "LoKr": LoKrConfig(r=1, alpha=5, target_modules=LAYERS),
    "LoKr, whole": LoKrConfig(r=9, alpha=5, target_modules=LAYERS),
    "LoKr, both in two": LoKrConfig(r=1, alpha=5, decompose_both=True, target_modules=LAYERS),
    "LoKr, Tucker": LoKrConfig(r=1, alpha=5, use_effective_conv2d=True, target_modules=LAYERS),
    "OFT": OFTConfig(r=0, oft_block_size=4, target_modules=LAYERS),
    "OFT of three terms": OFTConfig(
        r=0, oft_block_size=4, num_cayley_neumann_terms=3, target_modules=LAYERS
    ),
    "OFT by Cayley": OFTConfig(
        r=0, oft_block_size=3, use_cayley_neumann=False, target_modules=LAYERS
    ),
    "OFT, one block for all": OFTConfig(
        r=0, oft_block_size=4, block_share=True, target_modules=LAYERS
    ),
    "(IA)³ of outputs": IA3Config(target_modules=["linear"], feedforward_modules=[]),
    "(IA)³ of inputs": IA3Config(target_modules=["linear"], feedforward_modules=["linear"]),
}


def saved(config: Any, network: nn.Module, folder: Path) -> tuple[Any, Path]:
    """``network`` with a random adapter, and the file that peft saves of it."""
    model: Any = get_peft_model(network, copy.deepcopy(config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.2)
    model.save_pretrained(folder)
    return model, folder / "adapter_model.safetensors"


def with_lora(network: nn.Module, file: LoraFile) -> nn.Module:
    parameters = dict(network.named_parameters())
    placed = place(file.layers["unet"], slots({n: tuple(p.shape) for n, p in parameters.items()}))
    assert not placed.unmatched
    ours = copy.deepcopy(network)
    for name, weight in merged([(placed, 1.0)], parameters.__getitem__).items():
        ours.get_parameter(name).data.copy_(weight)
    return ours


@pytest.mark.filterwarnings("ignore")  # peft's, on files that it would read otherwise
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_network_does_what_it_does_in_peft(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Network()
    model, path = saved(CONFIGS[kind], copy.deepcopy(network), tmp_path)
    ours = with_lora(network, read_lora(path))
    inputs = torch.randn(2, 12, 4, 5)
    with torch.no_grad():
        # Merged: peft's own OFT of a convolution does not do the same before.
        base, wanted, got = network(inputs), model.merge_and_unload()(inputs), ours(inputs)
    assert (wanted - base).norm() > 1e-2 * wanted.norm()
    assert (got - wanted).norm() < 1e-6 * wanted.norm()


def test_what_peft_may_save_and_kdrt_does_not_read(tmp_path: Path) -> None:
    config = OFTConfig(r=0, oft_block_size=4, coft=True, target_modules=LAYERS)
    _, path = saved(config, Network(), tmp_path)
    with pytest.raises(InvalidRequestError, match="OFT with a constraint"):
        read_lora(path)
    (tmp_path / "adapter_config.json").write_text("[")
    with pytest.raises(InvalidRequestError, match=r"adapter_config\.json is damaged"):
        read_lora(path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha": "much"}))
    with pytest.raises(
        InvalidRequestError, match="alpha in its metadata must be a finite number, not 'much'"
    ):
        read_lora(path)
    config = IA3Config(target_modules=["point"], feedforward_modules=[])
    with pytest.raises(InvalidRequestError, match="of convolutions do not say which"):
        read_lora(saved(config, Network(), tmp_path)[1])


def test_a_bias_that_the_model_does_not_have_is_no_loss(tmp_path: Path) -> None:
    """peft multiplies outputs; a layer without a bias has no more to multiply."""
    save_file({"unet.layer.ia3_l": torch.rand(6, 1)}, tmp_path / "x.safetensors")
    file = read_lora(tmp_path / "x.safetensors")
    assert len(file) == 1
    assert not place(file.layers["unet"], slots({"layer.weight": (6, 5)})).unmatched
