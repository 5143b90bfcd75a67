"""IP-Adapters' files: how they are named, found and read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from kdrt.bundle import IpAdapterKind
from kdrt.common.paths import user_path
from kdrt_export.errors import SourceError
from kdrt_export.sources.hub import HubPlace, fetch, fetch_file
from kdrt_export.sources.reading import check_fetched, refused
from kdrt_export.sources.weight_files import (
    check_pickle,
    choose_weights,
    is_pickle,
    load_pickle,
    read_tensors,
)

_MARKS: Mapping[str, IpAdapterKind] = {
    "proj.weight": "linear",
    "proj.3.weight": "full",
    "perceiver_resampler.proj_in.weight": "faceid-plus",
    "norm.weight": "faceid",
    "latents": "plus",
}
"""By which tensor of its projection an adapter's kind is known, the first that is there."""

_OPTIONS = "name|images|encoder"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,40}")
_RESERVED = ("down", "mid", "up")
"""Parts of a UNet, which scales are given for."""


@dataclass(frozen=True)
class IpAdapterOption:
    """``SOURCE[:name=NAME,images=N,encoder=FOLDER]``: an adapter, and how it is exported.

    Attributes:
        source: see :class:`IpAdapter`.
        name: of the adapter; None is made of the file's.
        images: how many it takes at once.
        encoder: see :class:`IpAdapter`.
    """

    source: str
    name: str | None = None
    images: int = 1
    encoder: str | None = None

    @classmethod
    def parse(cls, text: str) -> IpAdapterOption:
        """Raises SourceError: an option is given twice, or is not what it may be."""
        source, *rest = re.split(rf":(?=(?:{_OPTIONS})=)", text, maxsplit=1)
        given: dict[str, str] = {}
        for part in re.split(rf",(?=(?:{_OPTIONS})=)", rest[0]) if rest else ():
            key, _, value = part.partition("=")
            if key in given or not value:
                raise SourceError(f"'{text}' must say {key} once, as in FILE:name=style,images=2")
            given[key] = value
        images = given.get("images", "1")
        if not re.fullmatch(r"[1-9]|1[0-6]", images):
            raise SourceError(f"'{text}' must have images from 1 to 16, not {images}")
        name = given.get("name")
        if name is not None and (not _NAME.fullmatch(name) or name in _RESERVED):
            raise SourceError(
                f"'{name}' cannot name an IP-Adapter: use small letters, digits, - and _, 41 at "
                f"most, and none of {', '.join(_RESERVED)}"
            )
        return cls(source, name, int(images), given.get("encoder"))


def kind_of(path: Path, projection: Collection[str]) -> IpAdapterKind:
    """What an adapter reads of an image, by the names of its projection's tensors.

    Raises:
        SourceError: its projection is of no known kind.
    """
    for mark, kind in _MARKS.items():
        if mark in projection:
            return kind
    raise SourceError(
        f"{path.name} is an IP-Adapter whose projection is of no kind that kdrt knows "
        f"({', '.join(_MARKS.values())})"
    )


def default_name(path: Path) -> str:
    """A file's name as that of an adapter."""
    name = re.sub(r"[^a-z0-9_-]+", "-", path.stem.lower()).strip("-_")[:41]
    return name if name and name not in _RESERVED else "ip-adapter"


def find_adapter(source: str, allow_pickle: bool) -> Path:
    """The file of an adapter, with its image encoder beside it if it is on the hub.

    Raises:
        SourceError: there is none, or it is a pickle and those are not allowed.
    """
    path = user_path(source)
    if not path.is_file():
        place = HubPlace.parse(source)
        if place is None or place.file is None:
            raise SourceError(
                f"there is no IP-Adapter file {source}; give a .safetensors file, or "
                "owner/name:path/of/file.safetensors for one on the hub"
            )
        check_pickle(Path(place.file), allow_pickle)
        folders = encoder_folders(PurePosixPath(place.file))
        path = fetch_file(place, lambda names: _first_encoder(names, folders, allow_pickle))
    check_pickle(path, allow_pickle)
    return path


def encoder_folders(file: Any) -> list[Any]:
    """Where the image encoder of an adapter is looked for. In the authors' repository SDXL's
    adapters lie beside one encoder, and those of them named vit-h were trained with the other."""
    beside = file.parent / "image_encoder"
    if "vit-h" in file.name.lower() and file.parent.name == "sdxl_models":
        return [file.parent.parent / "models" / "image_encoder", beside]
    return [beside]


def _first_encoder(
    names: Collection[str], folders: Sequence[PurePosixPath], allow_pickle: bool
) -> list[str]:
    """The files of the first of these folders that holds an image encoder."""
    found = (_encoder_files(names, folder, allow_pickle) for folder in folders)
    return next(filter(None, found), [])


def _encoder_files(names: Collection[str], folder: PurePosixPath, allow_pickle: bool) -> list[str]:
    """What is used of an image encoder, where there is one."""
    prefix = "" if folder == PurePosixPath() else f"{folder.as_posix()}/"
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if "config.json" not in inside:
        return []
    weights = choose_weights(inside, folder.as_posix(), allow_pickle=allow_pickle)
    texts = [n for n in ("config.json", "preprocessor_config.json") if n in inside]
    return [f"{prefix}{name}" for name in (*texts, *weights)]


def find_encoder(source: str, allow_pickle: bool) -> Path:
    """The folder of an image encoder, here or on the hub.

    Raises:
        SourceError: there is none.
    """
    path = user_path(source)
    if path.is_dir():
        return path
    place = HubPlace.parse(source)
    if place is None:
        raise SourceError(f"there is no image encoder in {source}")
    folder = PurePosixPath(place.file or "")

    def choose(names: Collection[str]) -> list[str]:
        files = _encoder_files(names, folder, allow_pickle)
        if not files:
            raise SourceError(f"it has no image encoder in {folder}")
        return files

    return fetch(place, choose) / folder


def read_adapter(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of an adapter, float32, of its parts ``image_proj`` and ``ip_adapter``.

    Raises:
        SourceError: the file is damaged, or none of an IP-Adapter.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in _tensors(path).items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor.float()
    if not all(parts.values()):
        raise SourceError(f"{path.name} is no IP-Adapter")
    return parts


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; a pickle of the authors' has one dictionary in another."""
    if not is_pickle(path):
        return read_tensors(path)
    check_fetched(path)
    with refused(f"{path} is damaged or holds more than weights", "download it again"):
        content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise SourceError(f"{path.name} is no IP-Adapter")
    return {
        f"{part}.{name}": tensor
        for part, named in content.items()
        if isinstance(named, Mapping)
        for name, tensor in named.items()
        if isinstance(tensor, torch.Tensor)
    }
