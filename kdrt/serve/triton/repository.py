"""The folder that Triton loads a model from: ``NAME/config.pbtxt`` and ``NAME/1/``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from kdrt.bundle import Bundle, check_new_bundle
from kdrt.common.atomic_io import UNFINISHED, check_folder, new_folder, other_files
from kdrt.errors import InvalidRequestError
from kdrt.serve.triton.config import MARK, config_text

VERSION = "1"
BUNDLE = "bundle"
"""Where the version's folder holds the bundle."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_WRITTEN = re.compile(rf"{VERSION}/({BUNDLE}/.+|__pycache__/model\.[^/]+\.pyc)")
"""What needs no mark to be known as ours, or as what Python makes of it."""


def write_repository(
    bundle: Bundle,
    folder: Path,
    *,
    name: str | None = None,
    parameters: Mapping[str, str] | None = None,
) -> Path:
    """Write a model of a Triton model repository, with a copy of the bundle and of the engines
    built from it: it can be moved to another machine. It appears whole or not at all; one that was
    written before is replaced, other models of the repository stay.

    Args:
        bundle: the open bundle.
        folder: the repository, which holds a folder a model.
        name: of the model; None is the bundle's.
        parameters: see :func:`kdrt.serve.triton.config.config_text`.

    Returns:
        The folder of the model.

    Raises:
        InvalidRequestError: the name is none for a model, a parameter is wrong, or the folder lies
            in the bundle.
        OutputError: the folder holds what kdrt did not write there, or cannot be written.
        BundleError: the bundle changed while it was copied.
    """
    name = bundle.manifest.name if name is None else name
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"a model of Triton cannot be called {name[:200]!r}: it is letters, digits, '.', '_' "
            "and '-'; choose a name with --name"
        )
    config = config_text(name, parameters or {})
    target = folder / name
    if target.resolve().is_relative_to(bundle.path.resolve()):
        raise InvalidRequestError(
            f"{target} lies in the bundle that is copied into it: choose another folder"
        )
    check_folder(target, _foreign)
    if (target / VERSION / BUNDLE).exists():
        check_new_bundle(target / VERSION / BUNDLE)
    with new_folder(target, _foreign) as partial:
        version = partial / VERSION
        version.mkdir()
        (partial / "config.pbtxt").write_text(config, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
        shutil.copytree(
            bundle.path,
            version / BUNDLE,
            ignore=shutil.ignore_patterns(".lock", f"{UNFINISHED}*"),
        )
        bundle.check_unchanged()
    return target


def _foreign(folder: Path) -> str | None:
    """What in a folder ``kdrt deploy triton`` did not write."""

    def is_ours(relative: str) -> bool:
        if relative in ("config.pbtxt", f"{VERSION}/model.py"):
            with (folder / relative).open("rb") as file:
                return MARK.encode() in file.read(4096)
        return _WRITTEN.fullmatch(relative) is not None

    return other_files(folder, is_ours)
