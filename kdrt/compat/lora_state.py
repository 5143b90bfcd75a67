"""What diffusers keeps beside the weights: which adapters are active, how strong, which fused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kdrt.adapters.lora_merge import LayerScale, Scale
from kdrt.adapters.lora_names import NETWORKS
from kdrt.errors import InvalidRequestError


@dataclass
class LoraState:
    """The adapters of one drop-in pipeline.

    Attributes:
        scales: the weight of every adapter that is not deleted.
        active: the names of those that ``set_adapters`` or loading made active.
        fused: of every fused adapter, its scale by network.
        enabled: False after ``disable_lora``.
    """

    scales: dict[str, Scale] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    fused: dict[str, dict[str, LayerScale]] = field(default_factory=dict)
    enabled: bool = True

    def wanted_scales(self, loaded: Iterable[str]) -> dict[str, dict[str, LayerScale]]:
        """The scale of each loaded LoRA in each network: where it is fused, the scale it was fused
        at; elsewhere its weight if it is active, and 0 if not."""
        if not self.enabled:
            return {}
        wanted = {}
        for name in loaded:
            own = self.scales.get(name, 0.0) if name in self.active else 0.0
            scales = {network: scale_in(own, network) for network in NETWORKS}
            wanted[name] = scales | self.fused.get(name, {})
        return wanted

    def check_present(self, names: Sequence[str]) -> None:
        """Raise InvalidRequestError unless all of these adapters are loaded."""
        missing = {name for name in names if name not in self.scales}
        if missing:
            raise InvalidRequestError(
                f"Adapter name(s) {missing} not in the list of present adapters: "
                f"{set(self.scales)}."
            )


def check_network(name: object) -> None:
    """Raise InvalidRequestError unless this is a network that LoRAs can change."""
    if name not in NETWORKS:
        raise InvalidRequestError(
            f"{name!r} has no LoRA; networks with one are {', '.join(NETWORKS)}"
        )


def scale_in(scale: Scale, network: str) -> LayerScale:
    """A scale in one network; 1 where a scale by network does not name it."""
    return scale.get(network, 1.0) if isinstance(scale, Mapping) else scale


def times(factor: float, scale: LayerScale) -> LayerScale:
    """A scale multiplied by a factor, block by block where it has blocks."""
    if isinstance(scale, Mapping):
        return {path: factor * number for path, number in scale.items()}
    return factor * scale
