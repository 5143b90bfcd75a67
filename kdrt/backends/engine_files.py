"""Built engines inside a bundle: where they are, and the checks before one is loaded.

    engines/tensorrt-rtx/unet-sm86-sm89-0123456789abcdef/
        engine.plan      the engine
        record.json      an EngineRecord: its key, its SHA-256, what the builder made of the network

A folder appears whole or not at all. Its name ends in the digest of the key. Whatever does not
fit is rejected with the reason and the command that builds the engine again; nothing is handed to
TensorRT that is not byte for byte what it wrote, for this network, version and GPU.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from dataclasses import dataclass
from pathlib import Path

from kdrt.backends.commands import (
    build_command,
    bundle_argument,
    rebuild_command,
)
from kdrt.backends.profiles import profile_for
from kdrt.backends.records import RECORD_FILE, EngineRecord, check_record, read_record
from kdrt.bundle import Bundle
from kdrt.common.atomic_io import other_files
from kdrt.common.home import home, trust
from kdrt.errors import EngineRejectedError, ShapeError
from kdrt_engines.errors import Reason
from kdrt_engines.profiles import Profile, choose_profile
from kdrt_engines.regular_files import open_regular
from kdrt_engines.spec import EngineSpec
from kdrt_engines.tensorrt.engine_file import read_header
from kdrt_engines.tensorrt.flavour import FLAVOURS, Flavour

ENGINE_FILE = "engine.plan"

# Of several rejected engines the user reads one reason: the first of these.
_REASONS_BY_URGENCY: tuple[Reason, ...] = (
    "damaged",
    "foreign",
    "stale",
    "wrong version",
    "wrong GPU",
    "untrusted",
)
_FILES = re.compile(
    rf"{re.escape(ENGINE_FILE)}|{re.escape(RECORD_FILE)}|kernels-sm\d+\.cache|\.cache\..*"
)


@dataclass(frozen=True)
class OpenedEngine:
    """A verified engine.

    Attributes:
        content: the bytes of its file.
        record: what is known of it.
        spec: the inputs and outputs of its network.
        profiles: its optimization profiles, in its order.
        runtime_cache: where kernels compiled on this GPU belong.
    """

    content: memoryview
    record: EngineRecord
    spec: EngineSpec
    profiles: tuple[Profile, ...]
    runtime_cache: Path


def open_engine(bundle: Bundle, flavour: Flavour, component: str, capability: int) -> OpenedEngine:
    """The engine of a component for a GPU, checked to the last byte.

    Of several that fit, a refittable one is taken, since whoever built it wants LoRAs; among
    equals the one whose profiles allow most.

    Args:
        bundle: an opened bundle.
        flavour: the installed flavour of TensorRT.
        component: a name in the manifest.
        capability: the compute capability of the GPU, 89 for 8.9.

    Raises:
        EngineRejectedError: there is none, or it must not be used; says why, and what to run.
        EngineUnavailableError: the flavour is not installed.
    """
    version = flavour.version()
    fitting: list[tuple[tuple[bool, int], Path, EngineRecord]] = []
    rejected: list[EngineRejectedError] = []
    for folder in engine_folders(bundle, flavour, component):
        try:
            record = read_record(bundle, folder)
            check_record(bundle, record, component, version, capability)
        except EngineRejectedError as error:
            rejected.append(error)
        else:
            loose = sum(profile.looseness for profile in record.key.profiles)
            fitting.append(((record.key.refittable, loose), folder, record))
    if fitting:
        _, folder, record = max(fitting, key=lambda found: found[0])
        return _opened(bundle, folder, record, capability)
    if rejected:
        raise min(rejected, key=lambda error: _REASONS_BY_URGENCY.index(error.reason))
    command = build_command(
        bundle_argument(bundle), flavour, (capability,), components=(component,)
    )
    raise EngineRejectedError(
        f"the bundle has no {flavour.name} engine of {component}; run `{command}`", "missing"
    )


def profile_of(bundle: Bundle, record: EngineRecord, dims: dict[str, int]) -> Profile:
    """The engine's tightest profile for these sizes.

    Raises:
        ShapeError: none takes them; the message names the command that builds one that does,
            if there can be one.
    """
    try:
        return choose_profile(record.key.profiles, dims)
    except ShapeError as error:
        name = profile_for(bundle.manifest, record.key.component, dims)
        if name is None:
            raise ShapeError(f"{error}; no engine of {record.key.component} can") from error
        command = rebuild_command(bundle, record.key, (*record.names, name))
        raise ShapeError(f"{error}; run `{command}`") from error


def trust_engine(bundle: Bundle, folder: Path) -> None:
    """Use the engine in a folder, whoever built it.

    Raises:
        EngineRejectedError: it is damaged.
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    record = read_record(bundle, folder)
    read_engine(bundle, folder, record).release()
    trust(record.checksum)


def foreign_files(folder: Path) -> str | None:
    """Says so if the folder of an engine holds what kdrt did not write; see
    :func:`kdrt.common.atomic_io.new_folder`."""
    return other_files(folder, lambda name: bool(_FILES.fullmatch(name)))


def read_engine(bundle: Bundle, folder: Path, record: EngineRecord) -> memoryview:
    """The bytes of an engine, mapped from its file.

    Raises:
        EngineRejectedError: they are not what was built.
    """
    path = folder / ENGINE_FILE
    advice = f"run `{rebuild_command(bundle, record.key, record.names)}`"
    try:
        with open_regular(path) as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise EngineRejectedError(f"{path} is missing or empty; {advice}", "truncated") from error
    if content.nbytes < record.size:
        raise EngineRejectedError(
            f"{path} is truncated: {content.nbytes} of {record.size} bytes; {advice}", "truncated"
        )
    header = read_header(content)
    if content.nbytes != record.size:
        whole = header is not None and header.length == content.nbytes
        raise EngineRejectedError(
            f"{path} is {'another engine' if whole else 'damaged'}: {content.nbytes} bytes, and "
            f"{record.size} were built; {advice}",
            "foreign" if whole else "damaged",
        )
    if FLAVOURS[record.key.backend].magic is not None and (
        header is None
        or header.length != content.nbytes
        or header.version != record.key.backend_version
        or header.compute_capabilities != record.key.compute_capabilities
    ):
        raise EngineRejectedError(f"{path} is damaged: its header is wrong; {advice}", "damaged")
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise EngineRejectedError(f"{path} is damaged: its SHA-256 is wrong; {advice}", "damaged")
    return content


def engine_folders(bundle: Bundle, flavour: Flavour, component: str = "") -> list[Path]:
    """The folder of every engine of a flavour, or of one component of it."""
    parent = bundle.file(f"engines/{flavour.name}")
    start = f"{component}-" if component else ""
    if parent.parent.is_symlink() or parent.is_symlink() or not parent.is_dir():
        return []
    return sorted(
        folder
        for folder in parent.iterdir()
        if folder.name.startswith(start) and folder.name[0] != "."
        if folder.is_dir() and not folder.is_symlink()
    )


def _opened(bundle: Bundle, folder: Path, record: EngineRecord, capability: int) -> OpenedEngine:
    return OpenedEngine(
        content=read_engine(bundle, folder, record),
        record=record,
        spec=bundle.manifest.components[record.key.component].spec(),
        profiles=record.key.profiles,
        # Kernels are code, and so never come with a bundle.
        runtime_cache=home() / "kernels" / f"{record.sha256}-sm{capability}.cache",
    )
