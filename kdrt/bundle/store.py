"""Finding and opening bundles.

    manifest.json     what the bundle is, described by :class:`Manifest`
    onnx/             one folder a component: ``weights.bin``, and the graphs that read it:
                      ``model.onnx`` for everybody, ``onnxruntime*.onnx`` for ONNX Runtime
    configs/          the configurations of the model's networks
    tokenizer*/       ``tokenizer.json`` and ``token_embedding.safetensors`` of a text encoder
    engines/          everything derived for one machine; may be deleted at any time

A bundle may come from a stranger. Opening one bounds all that the manifest says, checks every file
it names against its SHA-256, and finds whether the networks are those described; see SECURITY.md.
What was checked is noted on the user's side (:mod:`kdrt.common.home`), which spares unchanged files
the second time.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)

from kdrt.bundle.checks import check_bundle, damaged, unique
from kdrt.bundle.manifest import SCHEMA_VERSION, Manifest, of_today
from kdrt.common.atomic_io import clear_leftovers
from kdrt.common.home import home
from kdrt.common.validation import excerpt, printable
from kdrt.errors import BundleError, InvalidRequestError, OutputError
from kdrt_engines.regular_files import read_regular

MANIFEST = "manifest.json"
_MANIFEST_BYTES = 16 * 2**20
_NAME_BYTES = 200


class Bundle:
    """An opened bundle: its folder and its validated manifest.

    Attributes:
        path: the folder, as an absolute path.
        manifest: the validated manifest.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path.absolute()
        self.manifest = manifest
        self._opened: _Identity = None

    def file(self, relative: str) -> Path:
        """The path of a file of the bundle.

        Raises:
            BundleError: see :meth:`check_unchanged`.
        """
        self.check_unchanged()
        return self.path / relative

    def place(self, relative: str) -> Path:
        """The path at which to write a file or folder inside the bundle.

        Raises:
            OutputError: a link leads out of the bundle.
        """
        place = self.path / relative
        if os.path.realpath(place) != str(self.path.resolve() / relative):
            raise OutputError(
                f"{place} is a link or behind one; kdrt writes what it makes of a bundle only into "
                "the bundle itself: delete the link"
            )
        return place

    def check_unchanged(self) -> None:
        """Check that the folder still holds what was opened, so that files read now belong to those
        read before.

        Raises:
            BundleError: the folder has changed.
        """
        if self._opened is not None and self._opened != _identity(self.path, self.manifest):
            raise BundleError(
                f"{self.path} has changed since it was opened: it was exported again, moved, "
                "written to or deleted; load it again"
            )

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Read and validate the bundle in a folder.

        Raises:
            BundleError: there is no bundle, it is damaged, or its schema is unknown.
        """
        manifest = read_manifest(path)
        opened = _identity(path, manifest)
        check_bundle(path, manifest)
        bundle = cls(path, manifest)
        bundle._opened = opened
        return bundle


_Identity = tuple[tuple[int, ...], ...] | None


def _identity(path: Path, manifest: Manifest) -> _Identity:
    """What tells a bundle from what is there later; None where something is missing."""
    try:
        stats = [(path / name).stat() for name in (MANIFEST, *manifest.files)]
    except OSError:
        return None
    return tuple((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def config_file(network: str) -> str:
    """The path inside a bundle of the configuration of one of the model's networks. It is kept for
    information: no image depends on it."""
    return f"configs/{network}.json"


def bundle_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder that a name or path stands for: an existing folder, otherwise the bundle of that
    name in :func:`home`. Anything that can be neither is returned unchanged.

    Raises:
        InvalidRequestError: the name is empty.
    """
    if not os.fspath(name_or_path):  # as a path it would be the current folder
        raise InvalidRequestError("the name of a bundle is empty; give its name or its folder")
    path = Path(name_or_path)
    # No such user, a null byte, a name too long or of another encoding: there is no such folder.
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        path = path.expanduser()
        if path.is_dir():
            return path.absolute()
        return home().absolute() / "bundles" / folder_name(os.fspath(name_or_path))
    return path


def folder_name(name: str) -> str:
    """The name of the folder for a bundle of this name.

    Raises:
        InvalidRequestError: a bundle cannot have this name.
    """
    folder = name.replace("/", "--")
    if (
        {"", ".", ".."} & {*name.split("/")}
        or name[0] in "-.~"
        or "\\" in name
        or not name.isprintable()
        or len(folder.encode(errors="replace")) > _NAME_BYTES
    ):
        raise InvalidRequestError(
            f"a bundle cannot be called {name[:_NAME_BYTES]!r}: a name is letters, digits and "
            f"marks, at most {_NAME_BYTES} bytes, and begins with none of '-', '.' and '~'; choose "
            "one with --name"
        )
    return folder


def open_bundle(name_or_path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle by folder or by name, as ``kdrt.load`` does.

    Raises:
        BundleError: see :meth:`Bundle.open`.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise BundleError(f"a bundle's path or name must be a string, not {excerpt(name_or_path)}")
    path = bundle_path(name_or_path)
    clear_leftovers(path.parent)  # a killed export may have moved the bundle away
    if not _is_folder(path):
        raise missing_bundle(name_or_path)
    return Bundle.open(path)


def missing_bundle(name_or_path: str | os.PathLike[str]) -> BundleError:
    """That there is no such bundle, with those there are."""
    known = ", ".join(bundle_names()) or "none yet"
    return BundleError(
        f"there is no bundle '{_shown(name_or_path)}' (bundles in {home() / 'bundles'}: "
        f"{known}); make it with `kdrt export {_shown(name_or_path)}`"
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _shown(name_or_path: str | os.PathLike[str]) -> object:
    return printable(os.fspath(name_or_path)[:_NAME_BYTES])


def bundle_names() -> list[str]:
    """The names of the bundles in :func:`home`."""
    folder = home() / "bundles"
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if (p / MANIFEST).is_file() and p.name[0] != ".")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in which no key is given twice.

    Raises:
        BundleError: there is none.
    """
    try:
        content = read_regular(file, _MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(
            f"{file.parent} is not a bundle: it has no readable {file.name} ({error.strerror})"
        ) from error
    try:
        found = json.loads(content.decode(), object_pairs_hook=unique, parse_constant=_no_number)
    except RecursionError:
        raise damaged(file, "it is nested too deeply") from None
    except ValueError as error:
        raise damaged(file, str(error)) from error
    if not isinstance(found, dict):
        raise damaged(file, "it holds no JSON object")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the bundle in a folder. None of its other files is checked.

    Raises:
        BundleError: the manifest is missing or damaged, or its schema is unknown.
    """
    file = path / MANIFEST
    found = read_json(file)
    version = found.get("schema_version")
    if type(version) is int and version != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {version}, this kdrt reads {SCHEMA_VERSION}; "
            "export the model again with this version"
        )
    try:
        # As JSON, in which a tuple is an array; strictly, so that "1" is no number.
        return Manifest.model_validate_json(json.dumps(of_today(found)), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise damaged(file, f"{place}: {first['msg']}") from error
