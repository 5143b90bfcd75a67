"""``save_lora_weights``: a LoRA that was trained elsewhere, written in diffusers' format."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from kdrt.adapters.lora_names import NETWORKS
from kdrt.common.atomic_io import new_file
from kdrt.common.paths import user_path
from kdrt.compat.lora_source import WEIGHT_NAME
from kdrt.errors import InvalidRequestError, OutputError

Weights = Mapping[str, Tensor | nn.Module]


class LoraSavingMixin:
    """A class method only: it needs no pipeline."""

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Weights | None = None,
        text_encoder_lora_layers: Weights | None = None,
        text_encoder_2_lora_layers: Weights | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[[dict[str, Tensor], str], object] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a LoRA that you trained, in diffusers' format.

        Raises:
            InvalidRequestError: there are no layers, or a pickle is asked for.
            OutputError: the file cannot be written.
        """
        layers = (unet_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers)
        metadata = (
            unet_lora_adapter_metadata,
            text_encoder_lora_adapter_metadata,
            text_encoder_2_lora_adapter_metadata,
        )
        if not any(layers):
            raise InvalidRequestError("You must pass at least one of the LoRA layers to save.")
        if not safe_serialization:
            raise InvalidRequestError(
                "kdrt saves LoRAs as safetensors only; leave safe_serialization on"
            )
        if not is_main_process:
            return
        tensors = {
            f"{network}.{name}": tensor
            for network, weights in zip(NETWORKS, layers, strict=True)
            for name, tensor in _tensors(weights or {}, network).items()
        }
        if weight_name is not None and not isinstance(weight_name, str):
            raise InvalidRequestError(f"weight_name must be a string, not {weight_name!r}")
        header = _header(dict(zip(NETWORKS, metadata, strict=True)))
        path = user_path(save_directory) / (weight_name or WEIGHT_NAME)
        if save_function is None:
            with new_file(path) as partial:
                save_file(tensors, partial, header)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        save_function(tensors, str(path))


def _tensors(weights: object, network: str) -> dict[str, Tensor]:
    """The tensors of a network's layers, or of a module that holds them."""
    found = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise InvalidRequestError(f"{network}_lora_layers must be tensors by their names")
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _header(given: Mapping[str, Mapping[str, Any] | None]) -> dict[str, str]:
    """The metadata of the file: the adapters' configuration by network, as diffusers writes it."""
    for network, values in given.items():
        if not isinstance(values, Mapping | None):
            raise InvalidRequestError(
                f"{network}_lora_adapter_metadata must be a dictionary, not {values!r}"
            )
    metadata = {
        f"{network}.{key}": sorted(value) if isinstance(value, set) else value
        for network, values in given.items()
        for key, value in (values or {}).items()
    }
    header = {"format": "pt"}
    if metadata:
        try:
            header["lora_adapter_metadata"] = json.dumps(metadata, indent=2, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"these adapter metadata are no JSON: {error}") from error
    return header
