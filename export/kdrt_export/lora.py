"""LoRAs baked into a model: merged into the networks as they are loaded.

Before anything else is done to them: fused projections no longer look like those a LoRA names,
and verification compares the export with the merged network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from kdrt.adapters.lora_file import LoraFile, read_lora
from kdrt.adapters.lora_merge import merged, place
from kdrt.adapters.lora_names import slots
from kdrt.bundle import BakedLora
from kdrt_export.errors import SourceError
from kdrt_export.report import Report


@dataclass
class _Baked:
    file: LoraFile
    scale: float
    unmatched: list[str] = field(default_factory=list)


class LorasToBake:
    """The LoRAs of one export.

    Args:
        loras: files and their scales.
        allow_pickle: accept pickled files.

    Raises:
        InvalidRequest: a file is no LoRA.
    """

    def __init__(self, loras: Sequence[tuple[Path, float]], *, allow_pickle: bool = False) -> None:
        self._loras = [
            _Baked(read_lora(path, allow_pickle=allow_pickle), scale) for path, scale in loras
        ]
        self._seen: set[str] = set()

    @torch.no_grad()
    def merge(self, component: str, network: nn.Module) -> None:
        """Add what the LoRAs have for ``component`` to the weights of ``network``, in place.

        Raises:
            InvalidRequest: a layer has another size than the network's.
        """
        self._seen.add(component)
        parameters = dict(network.named_parameters())
        places = slots({name: tuple(tensor.shape) for name, tensor in parameters.items()})
        placed = []
        for lora in self._loras:
            found = place(lora.file.layers.get(component, {}), places)
            lora.unmatched += [f"{component}.{layer}" for layer in found.unmatched]
            placed.append((found, lora.scale))
        names = " or ".join(lora.file.path.name for lora in self._loras)
        for name, tensor in merged(placed, parameters.__getitem__, names).items():
            parameters[name].copy_(tensor)

    def baked(self, report: Report) -> tuple[BakedLora, ...]:
        """What the manifest says of them, after every network was merged.

        Raises:
            SourceError: a LoRA has nothing in common with the model.
        """
        for lora in self._loras:
            strange = [
                f"{component}.{layer}"
                for component, layers in lora.file.layers.items()
                if component not in self._seen
                for layer in layers
            ] + lora.unmatched
            if len(strange) == len(lora.file):
                raise SourceError(
                    f"no layer of {lora.file.path.name} exists in this model: it is made for "
                    "another kind of model"
                )
            if strange:
                report.note(
                    f"{len(strange)} of {len(lora.file)} layers of {lora.file.path.name} do not "
                    f"exist in this model, such as {strange[0]}"
                )
        return tuple(
            BakedLora(file=lora.file.path.name, scale=lora.scale, sha256=lora.file.sha256)
            for lora in self._loras
        )
