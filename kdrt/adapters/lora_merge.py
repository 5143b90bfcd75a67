"""From LoRAs and scales to the weights of a network.

``W' = W + Σ Δᵢ(W, scaleᵢ)``, summed in float32 and rounded once, to the dtype of W. A plain LoRA is
``Δ = scale · α/r · up @ down``; what else there is says :mod:`kdrt.adapters.lora_layer`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdrt.adapters.lora_layer import Layer
from kdrt.adapters.lora_names import Slot, canonical
from kdrt.errors import InvalidRequestError

LayerScale = float | Mapping[str, float]
"""How strong a LoRA is in one network: a number, or one by the path of a module or of a block of
them (``down_blocks.1``). The longest path that fits counts, ``""`` fits all, and the rest has 1."""

Scale = float | Mapping[str, LayerScale]
"""How strong a LoRA is: a number, or one by network, with 1 for those that are not named."""


@dataclass(frozen=True)
class Placed:
    """The layers of one LoRA that a network has, each at its place; and the names of the rest, and
    of those that others of the same place replace."""

    layers: tuple[tuple[Slot, Layer], ...]
    unmatched: tuple[str, ...]


def place(layers: Mapping[str, Layer], slots: Mapping[str, Slot]) -> Placed:
    """Find the layers of a LoRA in a network. Of two spellings of one place the later counts."""
    places = {module: slots.get(canonical(module)) for module in layers}
    last = {slot: module for module, slot in places.items() if slot is not None}
    return Placed(
        tuple((slot, layers[module]) for slot, module in last.items()),
        tuple(
            module
            for module, slot in places.items()
            if (slot is None and not layers[module].optional)
            or (slot is not None and last[slot] != module)
        ),
    )


def slot_shape(slot: Slot, weight: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the part that a slot has in a weight of this shape."""
    return (slot.last - slot.first, *weight[1:])


def takes(
    layers: Mapping[str, Layer], slots: Mapping[str, Slot], shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether all of a LoRA's layers exist in a network, in their sizes.

    Args:
        layers: of the LoRA.
        slots: of the network.
        shapes: of its weights, by name.
    """
    placed = place(layers, slots)
    return not placed.unmatched and all(
        layer.fits(slot_shape(slot, shapes[slot.weight])) for slot, layer in placed.layers
    )


def scale_at(scale: LayerScale, module: str) -> float:
    """How strong a LoRA is in one module, by its path with dots."""
    if not isinstance(scale, Mapping):
        return scale
    parts = module.split(".")
    paths = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    return next((scale[path] for path in paths if path in scale), 1.0)


def merged(
    loras: Sequence[tuple[Placed, LayerScale]],
    read: Callable[[str], Tensor],
    name: str = "the LoRA",
) -> dict[str, Tensor]:
    """The weights that LoRAs change, by name.

    Args:
        loras: each with its scale. Layers at 0 change nothing.
        read: gives the base weight of a name. It is not changed.
        name: of the LoRA, for messages.

    Raises:
        InvalidRequestError: a layer has another size than the network's, or a weight leaves the
            range of its dtype.
    """
    changes: dict[str, list[tuple[Slot, Layer, float]]] = defaultdict(list)
    for placed, scale in loras:
        for slot, layer in placed.layers:
            if strength := scale_at(scale, slot.module):
                changes[slot.weight].append((slot, layer, strength))
    return {weight: _changed(read(weight), found, name) for weight, found in changes.items()}


def check_size(layer: Layer, shape: Sequence[int], weight: str, name: str) -> None:
    """Raises InvalidRequestError: a layer has another size than its rows of a weight."""
    if not layer.fits(shape):
        raise InvalidRequestError(
            f"{name} is made for another model: at {weight} it has {layer.size_text}, the model "
            f"{' x '.join(map(str, shape))}"
        )


def _changed(base: Tensor, changes: Sequence[tuple[Slot, Layer, float]], name: str) -> Tensor:
    """One weight, with what is done to rows of it. Every layer sees the base weight."""
    weight = changes[0][0].weight
    untouched = base.detach().float().cpu()
    total = untouched.clone()
    for slot, layer, strength in changes:
        rows = untouched[slot.first : slot.last]
        check_size(layer, rows.shape, weight, name)
        total[slot.first : slot.last] += layer.change(rows, strength)
    return _rounded(total, base.dtype, f"{name} at {weight}").to(base.device)


def _rounded(total: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    least, most = (float(bound) for bound in total.aminmax())
    limit = torch.finfo(dtype).max
    if not -limit <= least <= most <= limit:  # nor with NaN
        raise InvalidRequestError(
            f"{name} makes numbers beyond {str(dtype).removeprefix('torch.')}: use a smaller scale"
        )
    return total.to(dtype)
