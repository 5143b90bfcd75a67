"""Models on the Hugging Face hub: how they are named, and the download of the files of one."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from kdrt.common.hub import hub_failure
from kdrt_export.errors import SourceError
from kdrt_export.sources.weight_files import is_checkpoint

Choose: TypeAlias = Callable[[Collection[str]], Collection[str]]
"""From the names of all files in a folder or repository to those that are used; raises
:class:`SourceError` where it lacks something."""

_PLACE = re.compile(
    r"(?P<repo>[a-z0-9][\w.-]*/[a-z0-9][\w.-]*)(@(?P<revision>[^:@]+))?(:(?P<file>[^:]+))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub, or one file in it: ``owner/name[@revision][:path/of/file]``."""

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> HubPlace | None:
        """What ``text`` names on the hub; None if it is no such name.

        Args:
            text: the name.
            revision: branch, tag or commit that was given besides.

        Raises:
            SourceError: two different revisions.
        """
        match = _PLACE.fullmatch(text)
        if match is None or (match["file"] is None and is_checkpoint(match["repo"])):
            return None
        if revision and match["revision"] not in (None, revision):
            raise SourceError(
                f"'{text}' and --revision {revision} name two revisions; give one of them"
            )
        return cls(match["repo"], match["revision"] or revision, match["file"])


def fetch(place: HubPlace, choose: Choose, **options: Any) -> Path:
    """Download what is used of a repository, through the hub's own cache.

    Without a connection, what the cache holds of it serves.

    Args:
        place: the repository.
        choose: picks the files to download by their names.
        options: huggingface_hub's: ``cache_dir``, ``token``, ``local_files_only``.

    Returns:
        The folder with the repository's files, named after its commit.

    Raises:
        SourceError: the hub, the connection or the disk refuses, or ``choose`` does.
    """
    import huggingface_hub

    asked = {"revision": place.revision, **options}
    try:
        if options.get("local_files_only"):
            return _cached(place, choose, asked)
        try:
            info = huggingface_hub.HfApi().model_info(
                place.repo, revision=place.revision, token=options.get("token")
            )
        except Exception as error:
            return _cached(place, choose, asked, error)
        wanted = _chosen(place, choose, [file.rfilename for file in info.siblings or ()])
        patterns = [glob.escape(name) for name in wanted]
        return Path(huggingface_hub.snapshot_download(place.repo, allow_patterns=patterns, **asked))
    except SourceError:
        raise
    except Exception as error:  # the hub, the connection and the disk, each in its own way
        raise SourceError(hub_failure(error, place.repo, place.revision)) from error


def fetch_file(place: HubPlace, beside: Choose | None = None) -> Path:
    """Download one file of a repository; the path it lies at.

    Args:
        place: names the file.
        beside: picks further files, which lie beside it then.

    Raises:
        SourceError: see :func:`fetch`, or there is no such file.
    """
    assert place.file is not None
    file = place.file

    def choose(names: Collection[str]) -> Collection[str]:
        if file not in names:
            near = [name for name in names if is_checkpoint(name)][:5]
            has = f"; it has {', '.join(near)}" if near else ""
            raise SourceError(f"it has no file {file}{has}")
        return [file, *(beside(names) if beside else ())]

    return fetch(place, choose) / file


def _cached(
    place: HubPlace, choose: Choose, asked: dict[str, Any], cause: Exception | None = None
) -> Path:
    """The cache's copy of a repository, which ``cause`` kept from being looked up."""
    import huggingface_hub

    try:
        folder = Path(
            huggingface_hub.snapshot_download(place.repo, **{**asked, "local_files_only": True})
        )
    except Exception as error:
        partial = getattr(error, "snapshot_path", None)  # of a copy without the files never used
        if partial is None:
            if cause is None or type(error).__name__ != "LocalEntryNotFoundError":
                raise
            raise cause from error
        folder = Path(partial)
    try:
        _chosen(place, choose, file_names(folder))
    except SourceError as error:
        why = "" if cause is None else f"; {hub_failure(cause, place.repo, place.revision)}"
        raise SourceError(f"{error} (as far as the local hub cache has it){why}") from error
    return folder


def _chosen(place: HubPlace, choose: Choose, names: Collection[str]) -> Collection[str]:
    try:
        return choose(names)
    except SourceError as error:
        raise SourceError(f"'{place.repo}' on the hub: {error}") from error


def file_names(folder: Path) -> list[str]:
    """Every file of a folder, relative to it, as a repository lists its own."""
    return [f.relative_to(folder).as_posix() for f in sorted(folder.rglob("*")) if f.is_file()]
