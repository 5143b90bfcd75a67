"""A LoRA of the command line: a file, and how strong it is."""

from __future__ import annotations

import re
from pathlib import Path

from kdrt.adapters.lora_block_weights import block_weights
from kdrt.adapters.lora_merge import LayerScale, Scale
from kdrt.adapters.lora_names import NETWORKS
from kdrt.errors import InvalidRequestError

_SCHEDULE = re.compile(
    r":[^:/\\]*@[\d.]+$"  # 1@0.3
    r"|:(?:[^:/\\]*,)?(?:start|end|from|to|step|stop|when)=[^/\\]*$"
    r"|(?::[+-]?[\d.]+){2,}$"  # 0:1
)
"""What other programs take for a scale that changes from step to step."""
_ALLOWED = "give a number, as FILE:0.8, and others by name after it, as FILE:0.8,mid_block=0.5"


def lora_option(text: str) -> tuple[Path, Scale]:
    """The file and the scale of ``FILE[:SCALE]``. A scale is a number, by default 1, or parts with
    commas between them: ``0.8,text_encoder=0,mid_block=0.5``. There a number alone is that of all
    networks, a network's name has its own, and other names are blocks of the UNet, or with a
    network's name before them, of that. ``lbw=`` comes last, with the numbers of
    `kdrt.adapters.lora_block_weights`.

    Raises:
        InvalidRequestError: the scale changes from step to step, or a part is given twice; or what
            comes after an existing file is no scale.
    """
    path, colon, scale = text.rpartition(":")
    scale, lbw, numbers = scale.partition("lbw=")
    weights = _parts(numbers) if lbw else []
    parts = _parts(scale.removesuffix("," if lbw else "")) if scale or not lbw else []
    if not (colon and path) or weights is None or any(name for name, _ in weights):
        parts = None
    if _SCHEDULE.search(text) and not Path(text).exists():
        raise InvalidRequestError(
            f"--lora {text!r} asks for a scale that changes from step to step, or for two; the "
            "weights are the same at every step: give one scale, as FILE:0.8"
        )
    if parts is not None:
        return Path(path), _scale(text, parts, [weight for _, weight in weights or ()])
    if not Path(text).exists() and (file := _file_before_colon(text)):
        raise InvalidRequestError(
            f"--lora {text!r}: {text.removeprefix(file)[1:]!r} is no scale; {_ALLOWED}"
        )
    return Path(text), 1.0


def _file_before_colon(text: str) -> str | None:
    """The shortest part of a text before a colon that is an existing file."""
    ends = [match.start() for match in re.finditer(":", text)]
    return next((text[:end] for end in ends if Path(text[:end]).is_file()), None)


def _parts(text: str) -> list[tuple[str, float]] | None:
    """Names and numbers; None if the text is no scale but part of a path."""
    parts = []
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            parts.append((name.strip(), float(number)))
        except ValueError:
            return None
    return parts


def _scale(text: str, parts: list[tuple[str, float]], weights: list[float]) -> Scale:
    given = dict(parts)
    if len(given) < len(parts):
        raise InvalidRequestError(f"--lora {text!r} gives one scale twice; {_ALLOWED}")
    usual = given.pop("", 1.0)
    if weights:
        networks = {name: given.pop(name, usual) for name in ("unet", "text_encoder")}
        if given:
            raise InvalidRequestError(
                f"--lora {text!r} gives lbw= and {next(iter(given))} too; lbw= is for all blocks: "
                "give one or the other"
            )
        return block_weights(weights, **networks)
    if not given:
        return usual
    scales: dict[str, LayerScale] = {network: given.pop(network, usual) for network in NETWORKS}
    for name, number in given.items():
        network, _, block = name.partition(".")
        if network not in NETWORKS or not block:
            network, block = "unet", name
        before = scales[network]
        blocks = dict(before) if not isinstance(before, float) else {"": before}
        scales[network] = blocks | {block: number}
    return scales
