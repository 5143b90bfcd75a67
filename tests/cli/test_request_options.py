"""Messages about fields of a request, on the command line."""

from __future__ import annotations

import pytest

from kdrt.cli.request_options import with_flags
from kdrt.request.fields import FIELDS


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("steps must be at least 1", "--steps must be at least 1"),
        ("mask_image says what to repaint", "--mask says what to repaint"),
        ("or leave guidance_interval out", "or leave --guidance-interval out"),
        ("keep_unmasked must be True or False", "--keep-unmasked must be True or False"),
        ("unknown prompt_weighting 'clip_skip x'", "unknown --prompt-weighting 'clip_skip x'"),
        ("an image with steps and noise", "an image with steps and noise"),
        ("give eta_noise_seed_delta", "give eta_noise_seed_delta"),
        ("the bundle's clip_skip is the encoder's", "the bundle's --clip-skip is the encoder's"),
    ],
)
def test_fields_are_called_by_their_options(message: str, told: str) -> None:
    assert with_flags(message, FIELDS) == told


def test_fields_without_an_option_keep_their_name() -> None:
    fields = {name: field for name, field in FIELDS.items() if field.flags != ()}
    assert with_flags("prompt_embeds must be a tensor", fields).startswith("prompt_embeds ")
