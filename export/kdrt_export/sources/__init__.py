"""Where a model comes from: the demo, a hub id, a diffusers folder, a checkpoint file, or chance.

A :class:`Source` hands out one float32 network at a time, so that an export never holds two.

Its files:

    base              what every source has
    hub               models on the Hugging Face hub
    folder            a diffusers folder
    single_file       a checkpoint file
    checkpoint_file   what such a file is
    control           ControlNets and T2I-Adapters
    ip_adapter        IP-Adapters
    upscaler          networks that enlarge images
    names             the name that a network is given
    layouts           its networks by diffusers' names
    random_weights    an architecture with random weights
    replacement_unet  another UNet (``--unet``)
    replacement_vae   another VAE (``--vae``)
    part              where one network lies
    reading           files that others wrote
    weight_files      which files of weights to read
    weights           the weights of one network, checked
    mapped_pages      pages of mapped files, given back
    tokenizer_files   tokenizers in a folder
    clip_vocabulary   CLIP's tokenizer without a download
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from kdrt.common.paths import user_path
from kdrt_export.errors import SourceError
from kdrt_export.families import KNOWN_MODELS
from kdrt_export.sources.base import Source, TextModel
from kdrt_export.sources.folder import FolderSource, pipeline_files
from kdrt_export.sources.hub import HubPlace, fetch, fetch_file
from kdrt_export.sources.random_weights import RandomSource
from kdrt_export.sources.single_file import SingleFileSource

__all__ = [
    "KNOWN_MODELS",
    "FolderSource",
    "RandomSource",
    "SingleFileSource",
    "Source",
    "TextModel",
    "demo_folder",
    "download",
    "download_files",
    "open_source",
]


def open_source(
    source: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    config: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    without: Collection[str] = (),
) -> Source:
    """Find what ``source`` means.

    Args:
        source: ``demo``, a short name of ``KNOWN_MODELS``, a hub id ``owner/name[@revision]``, a
            file on the hub ``owner/name[@revision]:path``, a diffusers folder, or a single-file
            checkpoint.
        revision: branch, tag or commit of a hub id.
        allow_pickle: accept pickled weights (read with ``weights_only``).
        config: a diffusers folder that describes a single-file checkpoint, if the file alone does
            not say what it is.
        random_weights: use the architecture of a short name or folder, with weights drawn from
            ``seed``.
        seed: seed of the random weights.
        without: parts whose weights are not needed, and so are not downloaded.

    Raises:
        SourceError: ``source`` means nothing, or cannot be read or downloaded.
        UnsupportedModelError: it is no Stable Diffusion 1, 2 or XL text-to-image model.
    """
    if source == "demo" and not random_weights:
        return FolderSource(demo_folder(), name="demo", origin="demo")
    path = user_path(source)
    if random_weights:
        return _random_source(source, path, seed)
    if source and path.is_dir():
        return FolderSource(path, name=path.resolve().name, origin=path.name, pickles=allow_pickle)
    if path.is_file():
        return SingleFileSource(path, allow_pickle=allow_pickle, config=config)
    known = KNOWN_MODELS.get(source)
    place = HubPlace.parse(known.repo if known else source, revision)
    if place is None:
        raise SourceError(
            f"'{source}' is no file, no folder and no known model; give demo, "
            f"{', '.join(KNOWN_MODELS)}, a hub id (owner/name), a diffusers folder or a "
            "checkpoint file"
        )
    opened: Source
    if place.file is not None:
        file = fetch_file(place)
        opened = SingleFileSource(file, allow_pickle=allow_pickle, config=config)
        opened.origin = f"{place.repo}:{place.file}"
        folder = file.parents[place.file.count("/")]
    else:
        folder = download(place.repo, place.revision, allow_pickle=allow_pickle, without=without)
        name = source if known else place.repo
        opened = FolderSource(folder, name=name, origin=place.repo, pickles=allow_pickle)
    opened.revision = folder.name
    opened.guidance_scale = known.guidance_scale if known else None
    return opened


_DEMO_FILES = {"model": "model_index.json", "control": "config.json"}


def demo_folder(part: Literal["model", "control"] = "model") -> Path:
    """The demo model that ships with kdrt, or its ControlNet, as a diffusers folder."""
    folder = Path(str(resources.files("kdrt_export.demo") / part))
    if not (folder / _DEMO_FILES[part]).is_file():
        raise SourceError("this installation of kdrt lacks the demo model's weights; reinstall it")
    return folder


def download(
    repo: str,
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    without: Collection[str] = (),
    **options: Any,
) -> Path:
    """Fetch what an export uses of a hub repository, through the hub's own cache.

    Args:
        repo: the hub id, ``owner/name[@revision]``.
        revision: branch, tag or commit.
        allow_pickle: fetch pickled weights where there are no others.
        without: parts whose weights are not needed.
        options: huggingface_hub's: ``cache_dir``, ``token``, ``local_files_only``, ….

    Raises:
        SourceError: it cannot be fetched, or is no diffusers folder.
    """
    choose = pipeline_files(allow_pickle=allow_pickle, without=without)
    return fetch(_repository(repo, revision), choose, **options)


def download_files(
    repo: str, patterns: Sequence[str], revision: str | None = None, **options: Any
) -> Path:
    """Fetch the files of a hub repository that match ``patterns``; the folder they lie in.

    Args:
        repo: the hub id, ``owner/name[@revision]``.
        patterns: as of a shell.
        revision: branch, tag or commit.
        options: see :func:`download`.

    Raises:
        SourceError: they cannot be fetched.
    """

    def choose(names: Collection[str]) -> Collection[str]:
        return [name for name in names if any(fnmatchcase(name, each) for each in patterns)]

    return fetch(_repository(repo, revision), choose, **options)


def _repository(repo: str, revision: str | None) -> HubPlace:
    place = HubPlace.parse(repo, revision)
    if place is None or place.file is not None:
        raise SourceError(f"'{repo}' is no hub id: those have the form owner/name")
    return place


def _random_source(source: str, path: Path, seed: int) -> Source:
    if source in KNOWN_MODELS:
        return RandomSource(KNOWN_MODELS[source].architecture, name=source, seed=seed)
    folder = demo_folder() if source == "demo" else path
    if not folder.is_dir():
        raise SourceError(
            f"there is no architecture '{source}' to give random weights; there are "
            f"{', '.join(KNOWN_MODELS)}, demo, and those of diffusers folders"
        )
    opened = FolderSource(folder, name=folder.name, origin=folder.name)
    return RandomSource(
        opened.architecture(),
        name=source if source == "demo" else path.name,
        seed=seed,
        tokenizers=opened.tokenizer if any(folder.glob("tokenizer*")) else None,
    )
