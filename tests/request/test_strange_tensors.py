"""Tensors that are none of ordinary numbers, wherever a request takes a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.errors import InvalidRequestError
from tests.support.tiny_model import TinyModel

SIZE: dict[str, Any] = {"height": 16, "width": 16, "steps": 2}
STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor([*t]),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "image", "mask_image"])
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_sentence_names_the_argument(sd: TinyModel, name: str, kind: str) -> None:
    tensors: dict[str, Any] = {
        "latents": torch.zeros(1, 4, 8, 8),
        "prompt_embeds": torch.zeros(1, 16, 6),
        "image": torch.zeros(1, 3, 16, 16),
        "mask_image": torch.zeros(1, 1, 16, 16),
    }
    given: dict[str, Any] = {} if name == "prompt_embeds" else {"prompt": "red"}
    given |= {"image": tensors["image"]} if name == "mask_image" else {}
    with pytest.raises(InvalidRequestError, match=f"{name} must be a dense tensor"):
        sd.pipeline(**given | {name: STRANGE[kind](tensors[name])}, **SIZE)


def test_numbers_of_eight_bits_are_no_embeddings(sd: TinyModel) -> None:
    embeds = torch.zeros(1, 16, 6).to(torch.float8_e4m3fn)
    with pytest.raises(InvalidRequestError, match="floating-point tensor of shape"):
        sd.pipeline(prompt_embeds=embeds, **SIZE)


@pytest.mark.parametrize("channels", [3, 4])
def test_no_image_at_all(sd: TinyModel, channels: int) -> None:
    with pytest.raises(
        InvalidRequestError, match=r"at least one|0 images|of shape \[B, 4, h, w\], not .* \[0, 4"
    ):
        sd.pipeline("red", image=torch.zeros(0, channels, 16, 16), **SIZE)
