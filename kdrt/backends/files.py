"""Built engines inside a bundle: where they lie, what is known of them, and the checks before one
is handed out.

    engines/tensorrt-rtx/unet-sm86-sm89-0123456789abcdef/
        engine.plan      the engine
        record.json      an EngineRecord: its key, its SHA-256, what the builder made of the network

A folder appears whole or not at all. Its name ends in the digest of the key. Whatever does not
fit is rejected with the reason and the command that builds the engine again; nothing is handed to
TensorRT that is not byte for byte what it wrote, for this network, version and GPU. An engine is
code: only what this user built, or trusts, is loaded (see :mod:`kdrt.common.home`).
"""

from __future__ import annotations

import hashlib
import mmap
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict

from kdrt.backends.profiles import profile_for
from kdrt.bundle import Bundle, Manifest, bundle_path
from kdrt.common.atomic_io import other_files
from kdrt.common.home import home, is_trusted, trust
from kdrt.errors import EngineRejectedError, ShapeError
from kdrt_engines.errors import Reason
from kdrt_engines.keys import EngineKey
from kdrt_engines.profiles import Profile, choose_profile
from kdrt_engines.regular_files import open_regular, read_regular
from kdrt_engines.spec import EngineSpec
from kdrt_engines.tensorrt.flavour import FLAVOURS, Flavour
from kdrt_engines.tensorrt.job import Built
from kdrt_engines.tensorrt.plan_file import read_header
from kdrt_engines.tensorrt.proof import RefitProof

PLAN = "engine.plan"
RECORD = "record.json"

# The most telling reason first: it is the one that a user reads.
_TELLING: tuple[Reason, ...] = (
    "damaged",
    "foreign",
    "stale",
    "wrong version",
    "wrong GPU",
    "untrusted",
)
_RECORD_BYTES = 2**24
_FILES = re.compile(r"engine\.plan|record\.json|kernels-sm\d+\.cache|\.cache\..*")


class EngineRecord(BaseModel):
    """What is known of one engine file. ``names`` are the profiles as they were asked for;
    ``refit`` is what the comparison of a refittable engine gave; ``checksum`` is a SHA-256 over
    all the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    key: EngineKey
    names: tuple[str, ...]
    size: int
    sha256: str
    built: Built
    kdrt: str
    refit: RefitProof | None = None
    checksum: str = ""

    def sealed(self) -> EngineRecord:
        """The record with its checksum."""
        return self.model_copy(update={"checksum": self._digest()})

    def is_intact(self) -> bool:
        return self.checksum == self._digest()

    def _digest(self) -> str:
        # Records of fixed engines are what they were before there were others.
        out = {"checksum"} if self.refit else {"checksum", "refit"}
        return hashlib.sha256(self.model_dump_json(exclude=out).encode()).hexdigest()


@dataclass(frozen=True)
class OpenedEngine:
    """A verified engine: its bytes, the optimization profiles in its order, and the inputs and
    outputs of its network. ``runtime_cache`` is where kernels compiled on one GPU belong."""

    plan: memoryview
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
        raise min(rejected, key=lambda error: _TELLING.index(error.reason))
    command = build_command(handle(bundle), flavour, (capability,), components=(component,))
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
        command = _rebuild(bundle, record, names=(*record.names, name))
        raise ShapeError(f"{error}; run `{command}`") from error


def read_record(bundle: Bundle, folder: Path) -> EngineRecord:
    """The record in an engine's folder.

    Raises:
        EngineRejectedError: it cannot be read, was changed, or belongs to another folder.
    """
    again = (
        f"delete {folder} and run `kdrt build {handle(bundle)}` with the options it was built with"
    )
    try:
        content = read_regular(folder / RECORD, _RECORD_BYTES)
        record = EngineRecord.model_validate_json(content)
    except (OSError, ValueError) as error:
        raise EngineRejectedError(
            f"{folder / RECORD} is missing or unreadable; {again}", "damaged"
        ) from error
    if not record.is_intact():
        raise EngineRejectedError(
            f"{folder / RECORD} was changed after the build; {again}", "damaged"
        )
    if record.key.folder() != folder.name or record.key.backend != folder.parent.name:
        raise EngineRejectedError(
            f"{folder} holds another engine ({record.key.folder()}); {again}", "foreign"
        )
    return record


def check_record(
    bundle: Bundle,
    record: EngineRecord,
    component: str,
    version: str,
    capability: int | None = None,
) -> None:
    """Whether an engine is of this network, this version of TensorRT and, if given, this GPU.

    Raises:
        EngineRejectedError: it is not.
    """
    key = record.key
    what = f"the {key.backend} engine of {key.component}"
    if key.component != component or component not in bundle.manifest.components:
        raise EngineRejectedError(f"{what} is not one of {component}", "foreign")
    if key.network != network_hash(bundle.manifest, component):
        raise EngineRejectedError(
            f"{what} is stale: the network has been exported anew since; "
            f"run `{_rebuild(bundle, record)}`",
            "stale",
        )
    if key.backend_version != version:
        raise EngineRejectedError(
            f"{what} was built with version {key.backend_version}, and {version} is installed: an "
            f"engine runs with the version that built it; run `{_rebuild(bundle, record)}`",
            "wrong version",
        )
    if capability is not None and capability not in key.compute_capabilities:
        targets = ", ".join(f"sm{number}" for number in key.compute_capabilities)
        command = _rebuild(bundle, record, capabilities=(capability,))
        raise EngineRejectedError(
            f"{what} was built for {targets}, and this GPU is sm{capability}; run `{command}`",
            "wrong GPU",
        )
    if not is_trusted(record.checksum):
        raise EngineRejectedError(
            f"{what} was not built by you, and an engine can run any code: run "
            f"`kdrt trust {shlex.quote(handle(bundle))}` if you trust whoever built it, or "
            f"`{_rebuild(bundle, record)}`",
            "untrusted",
        )


def trust_engine(bundle: Bundle, folder: Path) -> None:
    """Use the engine in a folder, whoever built it.

    Raises:
        EngineRejectedError: it is damaged.
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    record = read_record(bundle, folder)
    read_plan(bundle, folder, record).release()
    trust(record.checksum)


def foreign_files(folder: Path) -> str | None:
    """That the folder of an engine holds what kdrt did not write; see
    :func:`kdrt.common.atomic_io.new_folder`."""
    return other_files(folder, lambda name: bool(_FILES.fullmatch(name)))


def read_plan(bundle: Bundle, folder: Path, record: EngineRecord) -> memoryview:
    """The bytes of an engine, mapped from its file.

    Raises:
        EngineRejectedError: they are not what was built.
    """
    path = folder / PLAN
    again = f"run `{_rebuild(bundle, record)}`"
    try:
        with open_regular(path) as file:
            plan = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise EngineRejectedError(f"{path} is missing or empty; {again}", "truncated") from error
    if plan.nbytes < record.size:
        raise EngineRejectedError(
            f"{path} is truncated: {plan.nbytes} of {record.size} bytes; {again}", "truncated"
        )
    header = read_header(plan)
    if plan.nbytes != record.size:
        whole = header is not None and header.length == plan.nbytes
        raise EngineRejectedError(
            f"{path} is {'another engine' if whole else 'damaged'}: {plan.nbytes} bytes, and "
            f"{record.size} were built; {again}",
            "foreign" if whole else "damaged",
        )
    if FLAVOURS[record.key.backend].magic is not None and (
        header is None
        or header.length != plan.nbytes
        or header.version != record.key.backend_version
        or header.compute_capabilities != record.key.compute_capabilities
    ):
        raise EngineRejectedError(f"{path} is damaged: its header is wrong; {again}", "damaged")
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise EngineRejectedError(f"{path} is damaged: its SHA-256 is wrong; {again}", "damaged")
    return plan


def evidence(record: EngineRecord) -> str:
    """What the builder made of the network, in one line; ``?`` is what its log did not say."""
    built = record.built
    sites = built.attention_sites * len(record.key.profiles)
    fused = "?" if built.fused_attention is None else built.fused_attention
    kernels = "?" if built.kernels is None else sum(built.kernels.values())
    scratch = "?" if built.scratch_memory is None else f"{built.scratch_memory / 1e6:,.1f}"
    return (
        f"{fused}/{sites} attentions fused, {kernels} kernels, scratch {scratch} MB, "
        f"plan {record.size / 1e6:,.1f} MB"
    )


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


def network_hash(manifest: Manifest, component: str) -> str:
    """A SHA-256 over the graph and the weights of a component."""
    folder = PurePosixPath(manifest.components[component].onnx).parent
    parts = [
        f"{PurePosixPath(name).relative_to(folder)}={digest}"
        for name, digest in sorted(manifest.files.items())
        if PurePosixPath(name).is_relative_to(folder)
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_command(
    bundle: str,
    flavour: Flavour,
    capabilities: Sequence[int],
    *,
    names: Sequence[str] = (),
    components: Sequence[str] = (),
    refittable: bool = False,
) -> str:
    """The command that builds these engines, ready to be typed. ``bundle``: see :func:`handle`."""
    words = ["kdrt", "build", bundle, "--engine", flavour.name]
    if refittable:
        words += ["--refittable", "--here"]
    elif flavour.builds_anywhere:
        words += ["--gpu", ",".join(f"sm{number}" for number in capabilities)]
    else:
        words += ["--here"]
    for name in names:
        words += ["--profile", name]
    for component in components:
        words += ["--component", component]
    return shlex.join(words)


def handle(bundle: Bundle) -> str:
    """What to call the bundle on a command line: its name if that finds it, else its folder."""
    name = bundle.manifest.name
    return name if bundle_path(name) == bundle.path else str(bundle.path)


def _rebuild(
    bundle: Bundle,
    record: EngineRecord,
    *,
    capabilities: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> str:
    key = record.key
    return build_command(
        handle(bundle),
        FLAVOURS[key.backend],
        capabilities or key.compute_capabilities,
        names=names or record.names,
        components=(key.component,),
        refittable=key.refittable,
    )


def _opened(bundle: Bundle, folder: Path, record: EngineRecord, capability: int) -> OpenedEngine:
    return OpenedEngine(
        plan=read_plan(bundle, folder, record),
        record=record,
        spec=bundle.manifest.components[record.key.component].spec(),
        profiles=record.key.profiles,
        # Kernels are code, and so never come with a bundle.
        runtime_cache=home() / "kernels" / f"{record.sha256}-sm{capability}.cache",
    )
