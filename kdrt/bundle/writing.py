"""Writing bundles, and removing them.

Bundles appear by a rename, so a killed export leaves the old bundle or none; and they go by one.
What kdrt did not write is neither replaced nor removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdrt.bundle.manifest import Manifest
from kdrt.bundle.store import MANIFEST, Bundle, bundle_path, read_json
from kdrt.common.atomic_io import check_folder, new_folder, other_files
from kdrt.common.removal import remove_folder
from kdrt.common.validation import excerpt
from kdrt.errors import BundleError, OutputError

_logger = logging.getLogger("kdrt")

_DERIVED = re.compile(
    r"engines/(checked\.json"
    r"|[a-z-]+/\.lock"
    r"|torch/[^/]+\.pt2"
    r"|onnxruntime/[^/]+/(model\.onnx|weights\.bin|invariants\.(onnx|bin)|record\.json)"
    r"|onnxruntime-tensorrt/.+"
    r"|tuned/[0-9a-f]{16}\.json"
    r"|openvino/[^/]+/(network\.blob|record\.json)"
    r"|inductor/[^/]+/(network\.pt2|record\.json)"
    r"|tensorrt(-rtx)?/[^/]+/(engine\.plan|record\.json|kernels-sm\d+\.cache|\.cache\.[^/]+)"
    r"|[a-z-]+/\.unfinished-.+)"
)
"""What kdrt writes below ``engines/``, or did once."""


def check_new_bundle(path: Path) -> Path:
    """Check that a new bundle can be written at ``path``, before the work of making one.

    Returns:
        The folder that the bundle will be in.

    Raises:
        OutputError: see :func:`kdrt.common.atomic_io.check_folder`.
    """
    return check_folder(path, _foreign)


@contextlib.contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes the bundle ``path`` if the block ends without an exception,
    and is removed otherwise. The block must write ``manifest.json``.

    Raises:
        OutputError: ``path`` holds something else, or :func:`kdrt.common.atomic_io.new_folder`
            raises it.
    """
    with new_folder(path, _foreign) as partial:
        yield partial


@contextlib.contextmanager
def changed_bundle(bundle: Bundle) -> Iterator[Path]:
    """A temporary folder with everything in a bundle except its manifest. It replaces the bundle if
    the block ends without an exception, and is removed otherwise.

    Where the file system allows it, the files are hard links to those of the bundle: write new
    files, and change none of the others. Engines built from the bundle are included. This waits for
    builds that are running.

    Raises:
        OutputError: see :func:`new_bundle`.
    """
    # Only changes need it, and loading imports this module.
    from kdrt.common.lock import only_builder

    with contextlib.ExitStack() as locks:
        for engines in sorted(bundle.path.glob("engines/*")):
            if engines.is_dir():
                locks.enter_context(only_builder(engines, _logger.warning))
        with new_bundle(bundle.path) as partial:
            for file in sorted(bundle.path.rglob("*")):
                relative = file.relative_to(bundle.path)
                if file.is_file() and relative != Path(MANIFEST) and file.name != ".lock":
                    link(file, partial / relative)
            yield partial
            bundle.check_unchanged()  # hours may have gone by


def link(file: Path, place: Path) -> None:
    """Hard-link a file to ``place``, or copy it if the file system does not allow that. The folders
    of ``place`` are made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, place)
    except OSError:  # a file system without hard links, or another one
        shutil.copy2(file, place)


def check_removable(name_or_path: str | os.PathLike[str]) -> Path:
    """Check that kdrt wrote everything in the folder of a bundle. Damaged bundles and those of
    another version count as bundles too.

    Returns:
        The folder.

    Raises:
        BundleError: there is no such bundle.
        InvalidRequestError: the name is empty.
        OutputError: the folder is a link, or holds files that kdrt did not write.
    """
    path = bundle_path(name_or_path)
    if not (path / MANIFEST).is_file():
        raise BundleError(
            f"there is no bundle {excerpt(os.fspath(name_or_path))}; `kdrt list` shows those "
            "there are"
        )
    if path.is_symlink():
        raise OutputError(
            f"{path} is a link to {path.resolve()}; remove that bundle by its folder, or delete "
            "the link yourself"
        )
    stranger = _foreign(path)
    if stranger is not None:
        raise OutputError(f"cannot remove {path}: it {stranger}; delete the folder yourself")
    return path


def remove_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """Remove a bundle with everything built from it, completely or not at all.

    Returns:
        The folder that was removed.

    Raises:
        BundleError, OutputError: see :func:`check_removable`.
        OutputError: :func:`kdrt.common.removal.remove_folder` raises it.
    """
    path = check_removable(name_or_path)
    remove_folder(path)
    return path


def _foreign(folder: Path) -> str | None:
    """That a folder is no bundle, or holds more than one; None if all in it can be replaced."""
    if not any(folder.iterdir()):
        return None
    try:
        manifest = read_json(folder / MANIFEST)
    except BundleError:
        return "exists and is not a bundle"
    # Not the whole schema: a bundle that is damaged, or of another version, is exported again.
    needed = {name for name, field in Manifest.model_fields.items() if field.is_required()}
    files = manifest.get("files")
    if (
        not manifest.keys() >= needed
        or not isinstance(files, dict)
        or not all(re.fullmatch(r"[0-9a-f]{64}", str(digest)) for digest in files.values())
    ):
        return "exists and is not a bundle"
    return other_files(
        folder, lambda path: path == MANIFEST or path in files or bool(_DERIVED.fullmatch(path))
    )


def write_manifest(
    folder: Path, manifest: Manifest, known: Mapping[str, str] | None = None
) -> Manifest:
    """Add the SHA-256 of every file in ``folder`` and write ``manifest.json``.

    Args:
        folder: the bundle.
        manifest: all other facts.
        known: SHA-256 by path inside the bundle, for files that need not be read again.

    Returns:
        The manifest as it was written.
    """
    known = known or {}
    files = {
        (name := file.relative_to(folder).as_posix()): known.get(name) or sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name != MANIFEST
        and file.relative_to(folder).parts[0] != "engines"
    }
    manifest = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
