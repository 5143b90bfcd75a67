"""Files of weights: which of a folder to read, and the tensors in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from kdrt_export.errors import SourceError
from kdrt_export.sources.checkpoint_file import by_name
from kdrt_export.sources.reading import check_fetched, refused

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
            f"{first_names([str(number) for number in sorted(missing)])} is missing: get it whole"
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


def first_names(names: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
