"""What ``kdrt generate`` is to make: the options given, on top of an image's own settings."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from kdrt.cli.prompts_file import given_prompts
from kdrt.errors import InvalidRequestError
from kdrt.request.fields import Request
from kdrt.request.recorded import RecordedRequest, read_request

_LORA_KEYS = ("Lora hashes", "Lora weights")


def requested(
    request: Request, typed: list[str], file: Path | None, like: Path | None, *, loras: bool
) -> RecordedRequest:
    """The request of a command, in which ``prompt`` is a list.

    Args:
        request: the options that were given.
        typed: the prompts that were given as arguments.
        file: of prompts, or None.
        like: an image whose settings are taken where no other are given, or None.
        loras: whether LoRAs were given, in place of those of the image.

    Raises:
        InvalidRequestError: there is no prompt, or prompts are given in two ways; or the image
            does not say how it was made.
    """
    request = with_prompts(request, typed, file, required=like is None)
    if like is None:
        return RecordedRequest(request, {}, None)
    recorded = read_request(like).changed(request).usable()
    fields = recorded.fields
    if isinstance(fields["prompt"], str):
        fields = cast(Request, {**fields, "prompt": [fields["prompt"]]})
    dropped = _LORA_KEYS if loras else ()
    left_out = {key: text for key, text in recorded.left_out.items() if key not in dropped}
    return RecordedRequest(fields, left_out, recorded.model)


def with_prompts(
    request: Request, typed: list[str], file: Path | None = None, *, required: bool = True
) -> Request:
    """The request with its prompts, from wherever they were given.

    Raises:
        InvalidRequestError: there are none, or they are given in two ways.
    """
    named = request.get("prompt")
    if named is not None and (typed or file is not None):
        raise InvalidRequestError("--prompt is another way to give a prompt: use only one")
    if named is not None or not (typed or file is not None or required):
        return request
    return {**request, "prompt": given_prompts(typed, file)}


def other_model(recorded: RecordedRequest, name: str) -> str | None:
    """What to say where the image was made with another model; None if it was not."""
    if recorded.model in (None, name):
        return None
    return f"that image was made with the model '{recorded.model}', and this is '{name}'"
