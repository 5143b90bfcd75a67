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

from kdrt.adapters.lora import encoder_unsaid, some
from kdrt.adapters.lora_file import LoraFile, check_effect, read_lora
from kdrt.adapters.lora_merge import merged, place, takes
from kdrt.adapters.lora_names import slots
from kdrt.bundle import BakedLora
from kdrt.common.validation import finite_or_none
from kdrt.errors import InvalidRequestError
from kdrt_export.errors import SourceError
from kdrt_export.report import Report


@dataclass
class _Baked:
    file: LoraFile
    scale: float
    unmatched: list[str] = field(default_factory=list)
    encoder: str | None = None
    """The text encoder that takes the layers of a file that does not say for which they are."""
    changes: bool = False
    """Whether any of its layers that exist has an effect."""


class LorasToBake:
    """The LoRAs of one export.

    Args:
        loras: files and their scales.
        strict: refuse a LoRA if any part of it has no effect.
        allow_pickle: accept pickled files.

    Raises:
        InvalidRequestError: a file is no LoRA or one that changes nothing, or its scale no finite
            number.
    """

    def __init__(
        self,
        loras: Sequence[tuple[Path, float]],
        *,
        strict: bool = False,
        allow_pickle: bool = False,
    ) -> None:
        for each in loras:
            if not isinstance(each, (tuple, list)) or len(each) != 2:
                raise InvalidRequestError(f"a LoRA to bake is a file and its scale, not {each!r}")
            path, scale = each
            if finite_or_none(scale) is None:
                raise InvalidRequestError(
                    f"the scale of LoRA {path} must be a finite number, not {scale!r}"
                )
        self._loras = [
            _Baked(read_lora(path, allow_pickle=allow_pickle), scale) for path, scale in loras
        ]
        for lora in self._loras:
            check_effect(lora.file)
        self._strict = strict
        self._seen: set[str] = set()

    @torch.no_grad()
    def merge(self, component: str, network: nn.Module) -> None:
        """Add what the LoRAs have for ``component`` to the weights of ``network``, in place.

        Raises:
            InvalidRequestError: a layer has another size than the network's, or a LoRA does not
                say for which of several text encoders it is.
        """
        self._seen.add(component)
        parameters = dict(network.named_parameters())
        shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        places = slots(shapes)
        placed = []
        for lora in self._loras:
            layers = lora.file.layers.get(component, {})
            if lora.file.encoder_unsaid and component != "unet":
                layers = lora.file.layers["text_encoder"]
                if not takes(layers, places, shapes):
                    continue
                if lora.encoder is not None:
                    raise encoder_unsaid(lora.file, "this model")
                lora.encoder = component
            found = place(layers, places)
            lora.changes |= any(not layer.changes_nothing for _, layer in found.layers)
            lora.unmatched += [f"{component}.{layer}" for layer in found.unmatched]
            placed.append((found, lora.scale))
        names = " or ".join(lora.file.path.name for lora in self._loras)
        for name, tensor in merged(placed, parameters.__getitem__, names).items():
            parameters[name].copy_(tensor)

    def baked(self, report: Report) -> tuple[BakedLora, ...]:
        """What the manifest says of them, after every network was merged.

        Raises:
            InvalidRequestError: the layers of a LoRA that the model has change nothing.
            SourceError: a LoRA has nothing in common with the model, or with ``strict`` any part
                that has no effect.
        """
        for lora in self._loras:
            strange = [
                f"{component}.{layer}"
                for component, layers in lora.file.layers.items()
                if component not in self._seen
                or (lora.file.encoder_unsaid and component != "unet" and lora.encoder is None)
                for layer, change in layers.items()
                if not change.optional
            ] + lora.unmatched
            if len(strange) == len(lora.file):
                raise SourceError(
                    f"no layer of {lora.file.path.name} exists in this model: it is made for "
                    "another kind of model"
                )
            name = lora.file.path.name
            if not lora.changes:
                raise InvalidRequestError(
                    f"{name} would change nothing in this model: its layers that exist there "
                    f"change no weight, and others do not exist: {some(strange)}"
                )
            if strange:
                self._without_effect(
                    f"{len(strange)} of {len(lora.file)} layers of {name} do not exist in this "
                    f"model, or are there twice, and have no effect: {some(strange)}",
                    report,
                )
            if lora.file.embeddings:
                words = some(tuple(lora.file.embeddings))
                self._without_effect(
                    f"{name} brings words for prompts, which cannot be baked in: {words}; load it "
                    "at run time to use them",
                    report,
                )
        return tuple(
            BakedLora(file=lora.file.path.name, scale=lora.scale, sha256=lora.file.sha256)
            for lora in self._loras
        )

    def _without_effect(self, what: str, report: Report) -> None:
        if self._strict:
            raise SourceError(f"{what}; leave out strict_loras (--strict-lora) to go on without")
        report.note(what)
