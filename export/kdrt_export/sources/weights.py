"""The weights of one network: which files hold them, what is in those, and whether it is all
there.

diffusers and transformers fill what a file lacks with random numbers, and a network with those
passes its verification, which compares it with itself. So tensors are read and given out here: a
network gets every one of its own, and a file has none besides, or it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.sources.checkpoint_file import by_name
from kdrt_export.sources.reading import check_fetched, refused

Network = TypeVar("Network", bound=nn.Module)

SAFE = ".safetensors"
PICKLES = (".ckpt", ".pt", ".pth", ".bin")

_FILE = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(\.(?P<before>\w+))?"
    r"(-(?P<shard>\d{5})-of-(?P<shards>\d{5}))?(\.(?P<after>\w+))?"
    r"(?P<suffix>\.safetensors|\.bin)",
    re.IGNORECASE,
)
"""Names that diffusers and transformers give weights: a variant stands before the number of a
shard, or in older files after it."""
_VARIANTS = ("", "fp16", "bf16")
"""In order of preference; of any other a folder must hold one alone."""
_COUNTS = (
    "layers_per_block",
    "num_hidden_layers",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "num_encoder_blocks",
    "num_decoder_blocks",
)
"""Settings that say how many layers are made."""


def is_checkpoint(name: str) -> bool:
    """Whether a file's name ends as those of weights do."""
    return name.lower().endswith((SAFE, *PICKLES))


def is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLES


def check_pickle(path: Path, allow_pickle: bool) -> None:
    """Raises SourceError: a file is a pickle, and those are not allowed."""
    if is_pickle(path) and not allow_pickle:
        raise SourceError(
            f"{path.name} is a pickle, which can run code when opened: get a .safetensors "
            "file, or allow it with --allow-pickle (weights_only)"
        )


@dataclass(frozen=True)
class _Kind:
    """What the files of one set of weights have in common."""

    safe: bool
    stem: str
    variant: str
    shards: int


def choose_weights(names: Iterable[str], where: str, *, allow_pickle: bool) -> tuple[str, ...]:
    """The files to read of a network's folder: one variant of the weights, in all its shards.

    ``.safetensors`` come before pickles, float32 before the half precisions.

    Args:
        names: the files in the folder, without it.
        where: the folder, for messages.
        allow_pickle: take pickles where there is nothing else.

    Raises:
        SourceError: there are none, not all shards of them, or nothing says which.
    """
    sets: dict[_Kind, dict[int, str]] = {}
    for name in names:
        if (match := _FILE.fullmatch(name)) is not None:
            kind = _Kind(
                match["suffix"].lower() == SAFE,
                match["stem"].lower(),
                (match["before"] or match["after"] or "").lower(),
                int(match["shards"] or 1),
            )
            sets.setdefault(kind, {})[int(match["shard"] or 1)] = name
    allowed = [kind for kind in sets if kind.safe or allow_pickle]
    if not allowed:
        if sets:
            raise SourceError(
                f"{where} has no .safetensors weights; pickled weights can run code when "
                "opened: convert them, or allow them with --allow-pickle"
            )
        pickles = " or .bin" if allow_pickle else ""
        raise SourceError(f"{where} has no .safetensors{pickles} weights")
    best = min(allowed, key=_preference)
    others = {kind.variant for kind in allowed if kind.safe == best.safe} - {*_VARIANTS}
    if best.variant not in _VARIANTS and len(others) > 1:
        raise SourceError(
            f"{where} has weights in the variants {', '.join(sorted(others))}, and none of fp32, "
            "fp16 or bf16; keep the one you want alone"
        )
    shards = sets[best]
    missing = set(range(1, best.shards + 1)) - shards.keys()
    if missing:
        raise SourceError(
            f"{where} has {len(shards)} of the {best.shards} files of its weights; number "
            f"{_some([str(number) for number in sorted(missing)])} is missing: get it whole"
        )
    return tuple(shards[number] for number in sorted(shards))


def _preference(kind: _Kind) -> tuple[object, ...]:
    known = kind.variant in _VARIANTS
    variant = _VARIANTS.index(kind.variant) if known else len(_VARIANTS)
    return (not kind.safe, variant, kind.variant, kind.shards, kind.stem)


def read_folder(folder: Path, *, allow_pickle: bool) -> dict[str, torch.Tensor]:
    """Every tensor of a network's folder.

    Raises:
        SourceError: see :func:`choose_weights` and :func:`read_tensors`.
    """
    names = [file.name for file in folder.iterdir() if file.is_file()]
    state: dict[str, torch.Tensor] = {}
    for name in choose_weights(names, str(folder), allow_pickle=allow_pickle):
        state |= read_tensors(folder / name)
    return state


def read_tensors(
    path: Path, wanted: Callable[[str], bool] = lambda _: True
) -> dict[str, torch.Tensor]:
    """The tensors of a ``.safetensors`` file or a pickle (read with ``weights_only``) by name.

    They stay in the file until they are used.

    Raises:
        SourceError: it is damaged, or holds more than tensors.
    """
    check_fetched(path)
    whole = f"{path} is damaged or holds more than weights"
    with refused(whole, "download it again"):
        if not is_pickle(path):
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys() if wanted(name)}  # noqa: SIM118
        state = by_name(load_pickle(path))
        if not isinstance(state, Mapping):
            raise SourceError(f"{path} holds a {type(state).__name__}, not weights by name")
        return {
            name: tensor
            for name, tensor in state.items()
            if isinstance(name, str) and isinstance(tensor, torch.Tensor) and wanted(name)
        }


def load_pickle(path: Path) -> Any:
    """What a pickle holds, read with PyTorch's restricted unpickler. Raises anything."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)  # of before PyTorch 1.6


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
            state = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
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
        f"{said} {_some(names)}"
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


def _some(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


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
