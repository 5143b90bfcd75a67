"""One network of its own, in place of a model's or beside it: where it lies."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from kdrt.common.paths import user_path
from kdrt_export.errors import SourceError
from kdrt_export.sources.hub import Choose, HubPlace, fetch, fetch_file
from kdrt_export.sources.reading import read_json
from kdrt_export.sources.weight_files import (
    check_pickle,
    choose_weights,
    is_checkpoint,
    read_folder,
)
from kdrt_export.sources.weights import Weights

Network = TypeVar("Network", bound=nn.Module)

SCHEDULER = "scheduler/scheduler_config.json"
"""Where a pipeline says how its UNet was trained."""


@dataclass(frozen=True)
class PartPlace:
    """How one kind of network is named.

    Attributes:
        what: it is, for messages.
        folder: of it in a pipeline.
        example: of one on the hub.
    """

    what: str
    folder: str
    example: str

    def find(self, source: str, *, allow_pickle: bool) -> Path:
        """The folder or file that ``source`` names: on disk, or downloaded from the hub.

        Raises:
            SourceError: it names nothing, a pickle without permission, or cannot be downloaded.
        """
        path = user_path(source)
        if path.is_dir() and source:
            return path
        if not path.is_file():
            place = HubPlace.parse(source)
            if place is None:
                raise SourceError(
                    f"'{source}' is no {self.what}: give a diffusers folder, a checkpoint file or "
                    f"a hub id (owner/name, owner/name:file), such as {self.example}"
                )
            if place.file is None:
                return fetch(place, self._files(allow_pickle))
            check_pickle(Path(place.file), allow_pickle)
            path = fetch_file(place)
        if not is_checkpoint(path.name):
            raise SourceError(f"{path.name} is no {self.what}; a .safetensors file is needed")
        check_pickle(path, allow_pickle)
        return path

    def from_folder(
        self, kind: type[Network], path: Path, *, allow_pickle: bool
    ) -> Weights[Network]:
        """The weights in a folder, or of the folder of a pipeline.

        Raises:
            SourceError: it is not there, or damaged.
        """
        folder = path if (path / "config.json").is_file() else path / self.folder
        if not (folder / "config.json").is_file():
            raise SourceError(
                f"{path} holds no {self.what}: it has neither config.json nor a folder "
                f"'{self.folder}' with one"
            )
        config = read_json(folder / "config.json", f"{folder} holds no {self.what}")
        tensors = read_folder(folder, allow_pickle=allow_pickle)
        return Weights(kind, config, tensors, str(folder))

    def _files(self, allow_pickle: bool) -> Choose:
        def choose(names: Collection[str]) -> Collection[str]:
            for prefix in ("", f"{self.folder}/"):
                if f"{prefix}config.json" in names:
                    beside = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
                    weights = choose_weights(beside, "it", allow_pickle=allow_pickle)
                    files = [f"{prefix}{name}" for name in ("config.json", *weights)]
                    told = self.folder == "unet" and prefix and SCHEDULER in names
                    return [*files, SCHEDULER] if told else files
            files = [name for name in names if is_checkpoint(name)]
            hint = f"; for a file of it say owner/name:{files[0]}" if files else ""
            raise SourceError(
                f"it holds no {self.what}: neither config.json nor {self.folder}/config.json{hint}"
            )

        return choose


def short_name(source: str) -> str:
    """What a bundle says of a network's source: a hub id as it is, of a path the last part."""
    path = user_path(source)
    return path.resolve().name if path.exists() else source
