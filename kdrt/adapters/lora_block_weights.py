"""The numbers of ``lbw=``, with which web UIs say how strong a LoRA is in each block.

A list begins with the text encoders; the blocks of the UNet follow in the order and by the names of
the original checkpoints. Its length says which blocks they are: those with attention, or all, of SD
(17 and 26 numbers) or of SDXL (12 and 20). The extension is hako-mikan's
``sd-webui-lora-block-weight``.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdrt.adapters.lora_merge import Scale
from kdrt.errors import InvalidRequestError

_LAYERS = 2
"""Of each block, in all of these models; after them, it changes the size."""


def _down(*numbers: int) -> tuple[tuple[str, ...], ...]:
    return tuple(_input_block(number) for number in numbers)


def _up(*numbers: int) -> tuple[tuple[str, ...], ...]:
    return tuple(_output_block(number) for number in numbers)


def _input_block(number: int) -> tuple[str, ...]:
    if number == 0:
        return ("conv_in",)
    block, layer = divmod(number - 1, _LAYERS + 1)
    path = f"down_blocks.{block}"
    if layer == _LAYERS:
        return (f"{path}.downsamplers.0",)
    return f"{path}.resnets.{layer}", f"{path}.attentions.{layer}"


def _output_block(number: int) -> tuple[str, ...]:
    block, layer = divmod(number, _LAYERS + 1)
    path = f"up_blocks.{block}"
    paths = f"{path}.resnets.{layer}", f"{path}.attentions.{layer}"
    return (*paths, f"{path}.upsamplers.0") if layer == _LAYERS else paths


_MIDDLE = (("mid_block",),)
_SD = (*_down(*range(12)), *_MIDDLE, *_up(*range(12)))
_SDXL = (*_down(*range(9)), *_MIDDLE, *_up(*range(9)))
_LISTS = {
    17: (_SD, (*_down(1, 2, 4, 5, 7, 8), *_MIDDLE, *_up(*range(3, 12)))),
    26: (_SD, _SD),
    12: (_SDXL, (*_down(4, 5, 7, 8), *_MIDDLE, *_up(*range(6)))),
    20: (_SDXL, _SDXL),
}
"""By the length of a list, all blocks of the UNet, and those that it names."""


def block_weights(weights: Sequence[float], unet: float = 1.0, text_encoder: float = 1.0) -> Scale:
    """The scale of a LoRA with a weight for each block. Blocks that the list does not name are off.

    Args:
        weights: 12, 17, 20 or 26 numbers.
        unet: how strong it is in the UNet beside them.
        text_encoder: how strong it is in the text encoders.

    Raises:
        InvalidRequestError: another count of numbers.
    """
    if len(weights) not in _LISTS:
        raise InvalidRequestError(
            f"lbw= has {len(weights)} numbers; it takes 17 or 26 for SD models, 12 or 20 for SDXL"
        )
    base, *own = weights
    every, named = _LISTS[len(weights)]
    blocks = {path: 0.0 for paths in every for path in paths}
    for paths, weight in zip(named, own, strict=True):
        blocks |= dict.fromkeys(paths, unet * weight)
    text = text_encoder * base
    return {"unet": {"": unet, **blocks}, "text_encoder": text, "text_encoder_2": text}
