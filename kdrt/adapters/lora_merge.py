"""From LoRAs and scales to the weights of a network.

``W' = W + Σ scaleᵢ · αᵢ/rᵢ · upᵢ @ downᵢ``, summed in float32 and rounded once, to the dtype of W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kdrt.adapters.lora_file import LoraLayer
from kdrt.adapters.lora_names import Slot, canonical
from kdrt.errors import InvalidRequest


@dataclass(frozen=True)
class Placed:
    """The layers of one LoRA that a network has, each at its place; and the names of the rest."""

    layers: tuple[tuple[Slot, LoraLayer], ...]
    unmatched: tuple[str, ...]


def place(layers: Mapping[str, LoraLayer], slots: Mapping[str, Slot]) -> Placed:
    """Find the layers of a LoRA in a network."""
    places = {module: slots.get(canonical(module)) for module in layers}
    return Placed(
        tuple((slot, layers[module]) for module, slot in places.items() if slot is not None),
        tuple(module for module, slot in places.items() if slot is None),
    )


def merged(
    loras: Sequence[tuple[Placed, float]], read: Callable[[str], Tensor], name: str = "the LoRA"
) -> dict[str, Tensor]:
    """The weights that LoRAs change, by name.

    Args:
        loras: each with its scale, any finite number. Those at 0 change nothing.
        read: gives the base weight of a name. It is not changed.
        name: of the LoRA, for messages.

    Raises:
        InvalidRequest: a layer has another size than the network's.
    """
    sums: dict[str, Tensor] = {}
    dtypes = {}
    for placed, scale in loras:
        for slot, layer in placed.layers if scale else ():
            if slot.weight not in sums:
                base = read(slot.weight)
                dtypes[slot.weight] = base.dtype
                sums[slot.weight] = base.float().clone()
            rows = sums[slot.weight][slot.first : slot.last]
            delta = layer.delta()
            if delta.numel() != rows.numel() or len(delta) != len(rows):
                raise InvalidRequest(
                    f"{name} is made for another model: at {slot.weight} it has "
                    f"{_size(delta)}, the model {_size(rows)}"
                )
            rows.add_(delta.reshape(rows.shape).to(rows.device), alpha=scale)
    return {weight: total.to(dtypes[weight]) for weight, total in sums.items()}


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
