"""diffusers' LoRA weights by block of a UNet, as scales by module path."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from kdrt.errors import InvalidRequestError

_SIDES = {"down": "downsamplers", "up": "upsamplers"}


def block_scales(weights: Mapping[str, object], modules: Collection[str]) -> dict[str, object]:
    """What ``set_adapters`` takes for a UNet, ``{"down": 0.5, "mid": 1, "up": {"block_0": [1, 0,
    1]}}``, as one scale by path.

    As in diffusers a weight is that of one transformer of a block, and of the resnet of the same
    number; a sampler goes with the first. What is not named has 1, and so have blocks without
    attention. Of the block in the middle only the transformer is meant.

    Args:
        weights: of ``down``, ``mid`` and ``up``: a number for all; for the sides also one by
            ``block_N``, or a list with one for every transformer.
        modules: the paths of all modules that a LoRA can change.

    Raises:
        InvalidRequestError: a block does not exist or has no attention, or a list has another
            length.
    """
    unknown = weights.keys() - {"mid", *_SIDES}
    if unknown:
        raise _no_such(sorted(map(str, unknown))[0])
    scales: dict[str, object] = {"": 1.0, "mid_block.attentions.0": _one(weights.get("mid"))}
    for side, sampler in _SIDES.items():
        counts = _transformers(side, modules)
        given = weights.get(side)
        if not isinstance(given, Mapping):
            given = {f"block_{index}": given for index in counts}
        for name in given:
            if name not in {f"block_{index}" for index in counts}:
                raise _no_such(f"{side}.{name}")
        for index, count in counts.items():
            block = f"{side}_blocks.{index}"
            numbers = _numbers(given.get(f"block_{index}"), count, f"{side}.block_{index}")
            scales[f"{block}.{sampler}"] = numbers[0]
            for number, scale in enumerate(numbers):
                scales[f"{block}.attentions.{number}"] = scales[f"{block}.resnets.{number}"] = scale
    return {
        path: scale
        for path, scale in scales.items()
        if not path or any(module.startswith(f"{path}.") for module in modules)
    }


def _transformers(side: str, modules: Collection[str]) -> dict[int, int]:
    """How many transformers the blocks of one side have, by number; of those that have any."""
    found: dict[int, int] = {}
    for module in modules:
        if match := re.match(rf"{side}_blocks\.(\d+)\.attentions\.(\d+)\.", module):
            block, number = map(int, match.groups())
            found[block] = max(found.get(block, 0), number + 1)
    return dict(sorted(found.items()))


def _numbers(given: object, count: int, name: str) -> list[object]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        return [1.0 if given is None else given] * count
    if len(given) == 1:
        return list(given) * count
    if len(given) != count:
        raise InvalidRequestError(f"Expected {count} scales for {name}, got {len(given)}.")
    return list(given)


def _one(given: object) -> object:
    return _numbers(given, 1, "mid")[0]


def _no_such(layer: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"Can't set lora scale for layer {layer}. It either doesn't exist in this unet or it has "
        "no attentions."
    )
