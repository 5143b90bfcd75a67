"""The record beside a built engine, and whether the engine is the one that is needed.

An engine is code: only what this user built, or trusts, is loaded (see :mod:`kdrt.common.home`).
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from kdrt.backends.commands import bundle_argument, rebuild_command
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle
from kdrt.common.home import is_trusted
from kdrt.errors import EngineRejectedError
from kdrt_engines.keys import EngineKey
from kdrt_engines.regular_files import read_regular
from kdrt_engines.tensorrt.job import Built
from kdrt_engines.tensorrt.refit_result import RefitResult

RECORD_FILE = "record.json"

_RECORD_BYTES = 2**24


_FEW_BITS = ("fp8", "int8", "int4 weights")


def in_few_bits(multiplying: Mapping[str, int]) -> str:
    """Of the kernels that multiply (see :class:`kdrt_engines.tensorrt.job.Built`), how many do it
    in few bits: ``84 of 89 products``; empty if none does."""
    told = []
    for what in ("convolution", "product", "attention"):
        counts = {key: n for key, n in multiplying.items() if key.startswith(f"{what} ")}
        few = sum(n for key, n in counts.items() if key.removeprefix(f"{what} ") in _FEW_BITS)
        if few:
            told.append(f"{few} of {sum(counts.values())} {what}s")
    return ", ".join(told)


class EngineRecord(BaseModel):
    """What is known of one engine file.

    Attributes:
        schema_version: of this record.
        key: what the engine depends on.
        names: the optimization profiles as the user named them.
        size: bytes of the engine file.
        sha256: of the engine file.
        built: the figures of the build.
        kdrt: the version of kdrt that built it.
        refit: the result of :func:`~kdrt_engines.tensorrt.refit_check.check_refit`, of a
            refittable engine.
        checksum: a SHA-256 over all the rest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    key: EngineKey
    names: tuple[str, ...]
    size: int
    sha256: str
    built: Built
    kdrt: str
    refit: RefitResult | None = None
    checksum: str = ""

    def sealed(self) -> EngineRecord:
        """The record with its checksum."""
        return self.model_copy(update={"checksum": self._digest()})

    def is_intact(self) -> bool:
        return self.checksum == self._digest()

    def summary(self) -> str:
        """What the builder made of the network, in one line; ``?`` is what its log did not say."""
        built = self.built
        sites = built.attention_sites * len(self.key.profiles)
        fused = "?" if built.fused_attention is None else built.fused_attention
        kernels = "?" if built.kernels is None else sum(built.kernels.values())
        scratch = "?" if built.scratch_memory is None else f"{built.scratch_memory / 1e6:,.1f}"
        few = in_few_bits(built.multiplying or {})
        return (
            f"{fused}/{sites} attentions fused, {kernels} kernels, "
            + (f"{few} in few bits, " if few else "")
            + f"scratch {scratch} MB, engine {self.size / 1e6:,.1f} MB"
        )

    def _digest(self) -> str:
        # Omit what is empty of the fields that came later, so that checksums from before them stay
        # valid.
        left_out: dict[str, Any] = {"checksum": True}
        if self.refit is None:
            left_out["refit"] = True
        if self.built.multiplying is None:
            left_out["built"] = {"multiplying"}
        return hashlib.sha256(self.model_dump_json(exclude=left_out).encode()).hexdigest()


def read_record(bundle: Bundle, folder: Path) -> EngineRecord:
    """The record in an engine's folder.

    Raises:
        EngineRejectedError: it cannot be read, was changed, or belongs to another folder.
    """
    path = folder / RECORD_FILE
    advice = (
        f"delete {folder} and run `kdrt build {bundle_argument(bundle)}` with the options it was "
        "built with"
    )
    try:
        record = EngineRecord.model_validate_json(read_regular(path, _RECORD_BYTES))
    except (OSError, ValueError) as error:
        raise EngineRejectedError(
            f"{path} is missing or unreadable; {advice}", "damaged"
        ) from error
    if not record.is_intact():
        raise EngineRejectedError(f"{path} was changed after the build; {advice}", "damaged")
    if record.key.folder() != folder.name or record.key.backend != folder.parent.name:
        raise EngineRejectedError(
            f"{folder} holds another engine ({record.key.folder()}); {advice}", "foreign"
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
        EngineRejectedError: it is not, or this user neither built nor trusts it.
    """
    key = record.key
    what = f"the {key.backend} engine of {key.component}"
    if key.component != component or component not in bundle.manifest.components:
        raise EngineRejectedError(f"{what} is not one of {component}", "foreign")
    if key.network != network_hash(bundle.manifest, component):
        raise EngineRejectedError(
            f"{what} is stale: the network has been exported anew since; "
            f"run `{rebuild_command(bundle, key, record.names)}`",
            "stale",
        )
    if key.backend_version != version:
        raise EngineRejectedError(
            f"{what} was built with version {key.backend_version}, and {version} is installed: an "
            "engine runs with the version that built it; "
            f"run `{rebuild_command(bundle, key, record.names)}`",
            "wrong version",
        )
    if capability is not None and capability not in key.compute_capabilities:
        targets = ", ".join(f"sm{number}" for number in key.compute_capabilities)
        command = rebuild_command(bundle, key, record.names, capabilities=(capability,))
        raise EngineRejectedError(
            f"{what} was built for {targets}, and this GPU is sm{capability}; run `{command}`",
            "wrong GPU",
        )
    if not is_trusted(record.checksum):
        raise EngineRejectedError(
            f"{what} was not built by you, and an engine can run any code: run "
            f"`kdrt trust {shlex.quote(bundle_argument(bundle))}` if you trust whoever built it, "
            f"or `{rebuild_command(bundle, key, record.names)}`",
            "untrusted",
        )
