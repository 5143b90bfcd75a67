"""The weights of one network, checked against its configuration before they are used.

diffusers and transformers fill what a file lacks with random numbers, and a network with those
passes its verification, which compares it with itself. So tensors are read and given out here: a
network gets every one of its own, and a file has none besides, or it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from diffusers import ModelMixin
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.sources.mapped_pages import give_back
from kdrt_export.sources.reading import refused
from kdrt_export.sources.weight_files import first_names

Network = TypeVar("Network", bound=nn.Module)


_COUNTS = (
    "layers_per_block",
    "num_hidden_layers",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "num_encoder_blocks",
    "num_decoder_blocks",
)
"""Settings that say how many layers are made."""


def build(
    kind: type[Network], config: Mapping[str, Any] | PretrainedConfig, where: str, most: int
) -> Network:
    """A network as its configuration describes it, on the meta device.

    Args:
        kind: its class, of diffusers or transformers.
        config: its configuration.
        where: what the configuration describes, for messages.
        most: layers it may have: the tensors there are for it.

    Raises:
        SourceError: the configuration describes no network of this class.
        UnsupportedModelError: it is of another class.
    """
    named = config.get("_class_name") if isinstance(config, Mapping) else None
    if named not in (None, kind.__name__):
        raise UnsupportedModelError(
            f"{where} is a {named}, by its config.json; kdrt exports {kind.__name__} here"
        )
    settings = config if isinstance(config, Mapping) else config.to_dict()
    for setting in _COUNTS:
        if any(number > most for number in _numbers(settings.get(setting))):
            raise SourceError(
                f"{where} has {setting} {settings[setting]}, more layers than its weights have "
                f"tensors ({most}); config.json is of another model, or damaged"
            )
    with (
        refused(
            f"{where} has a configuration that describes no {kind.__name__}",
            "config.json is of another model, or damaged",
        ),
        torch.device("meta"),
    ):
        if isinstance(config, Mapping):
            # This key would undo settings that are changed in the configuration of a network.
            stated = {k: v for k, v in config.items() if k != "_use_default_values"}
            return kind.from_config(stated)  # type: ignore[attr-defined]
        return kind(config)


@dataclass(frozen=True)
class Weights(Generic[Network]):
    """A network that is yet to be made, and what it is made of.

    Attributes:
        kind: its class, of diffusers or transformers.
        config: its configuration.
        tensors: its tensors by name, as any version of that library names them.
        where: what they were read from, for messages.
        hint: why it may not be whole, and what to do then.
    """

    kind: type[Network]
    config: Mapping[str, Any] | PretrainedConfig
    tensors: Mapping[str, torch.Tensor]
    where: str
    hint: str = "it is incomplete, or of another architecture than its config.json says"

    def check(self) -> None:
        """Raises SourceError: a tensor is missing, is none of the network's, or has another
        shape. Reads no tensor."""
        self._fitted()

    def network(self) -> Network:
        """The network: float32, in evaluation mode, without gradients.

        Raises:
            SourceError: see :meth:`check`.
        """
        model, tensors = self._fitted()
        with refused(f"{self.where} cannot be loaded"):
            state = {name: _float32(tensor) for name, tensor in tensors.items()}
            model.load_state_dict(state, assign=True)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta and name == "position_ids":  # CLIP's, which is in no file
                    count = torch.arange(buffer.shape[-1])[None]
                    module.register_buffer(name, count, persistent=False)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_meta:
                raise SourceError(f"{self.where} has no values for {name}")
            if not tensor.isfinite().all():
                raise SourceError(
                    f"{self.where} has numbers in {name} that are not finite (NaN or infinity); "
                    "it is damaged, as merges in float16 can be: get another copy"
                )
        return model.eval().requires_grad_(False)

    def _fitted(self) -> tuple[Network, dict[str, torch.Tensor]]:
        model = build(self.kind, self.config, self.where, len(self.tensors))
        tensors = _renamed(model, dict(self.tensors))
        whole = f"{self.where} holds no whole {self.kind.__name__}"
        compare(model.state_dict(), tensors, whole, self.hint)
        return model, tensors


def _float32(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in float32; of one that has to be converted, the file's pages are given back."""
    converted = tensor.to(torch.float32)
    if converted is not tensor:
        give_back(tensor)
    return converted


def compare(
    expected: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], what: str, hint: str
) -> None:
    """Raises SourceError: tensors are missing, unexpected, of another shape or quantised.

    Args:
        expected: of the network.
        given: by the file.
        what: how the sentence begins.
        hint: how it ends.
    """
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    common = [name for name in expected if name in given]
    shapes = [
        f"{name} ({_shape(given[name])} instead of {_shape(expected[name])})"
        for name in common
        if given[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} ({str(given[name].dtype).removeprefix('torch.')})"
        for name in common
        if expected[name].is_floating_point() and not given[name].is_floating_point()
    ]
    faults = [
        f"{said} {first_names(names)}"
        for said, names in (
            ("it lacks", missing),
            ("holds besides", unexpected),
            ("has other shapes:", shapes),
            ("has quantised weights:", kinds),
        )
        if names
    ]
    if faults:
        raise SourceError(f"{what}: {', and '.join(faults)}; {hint}")


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, (int, float)) else []


def _renamed(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by the names the installed library has for them."""
    if isinstance(model, ModelMixin):
        model._fix_state_dict_keys_on_load(state)  # attention of before diffusers 0.17
        return state
    assert isinstance(model, PreTrainedModel)
    return _renamed_clip(model, state)


def _renamed_clip(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The same for CLIP, half of which files may hold besides the half that is used.

    Versions of transformers differ in whether ``text_model.`` or ``vision_model.`` stands before a
    name, and how often.
    """
    half, other = ("text", "vision") if "Text" in type(model).__name__ else ("vision", "text")
    expected = {_plain(name, half): name for name in model.state_dict()}
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        plain = _plain(name, half)
        own = expected.get(plain, name)
        if own not in model.state_dict() and (
            plain.endswith("position_ids")
            or plain == "logit_scale"
            or plain.startswith((f"{other}_model.", f"{other}_projection.", f"{half}_projection."))
            or plain.startswith("visual_projection.")
        ):
            continue
        renamed[name if own in renamed else own] = tensor
    return renamed


def _plain(name: str, half: str) -> str:
    return ".".join(part for part in name.split(".") if part != f"{half}_model")
