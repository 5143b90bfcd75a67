"""Which engine was fastest on this machine for each component, kept in the bundle.

    engines/tuned/0123456789abcdef.json     what `kdrt tune` measured

The digits are a digest of the machine: the versions of the engines, the processor with its cores,
and the GPUs. A file that does not match, or that this user neither made nor trusts, is ignored, and
so is what it says of a network that is another now: what is added to a bundle changes nothing for
the rest.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kdrt.backends.machine import processor
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle
from kdrt.common.atomic_io import new_file
from kdrt.common.home import check_home, is_trusted, trust
from kdrt_engines.cuda_devices import cuda_devices
from kdrt_engines.installed import installed_version
from kdrt_engines.processors import cores
from kdrt_engines.profiles import sizes
from kdrt_engines.regular_files import read_regular

_logger = logging.getLogger("kdrt.engines")

FOLDER = "engines/tuned"
_FILE_BYTES = 2**20
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")


class Timing(BaseModel):
    """How long a run of a component takes with one engine, in seconds: the median of some runs, and
    an interval that holds the true median with a probability of at least 95 percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    median: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    def __str__(self) -> str:
        """``openvino 4.12 ms (4.05 to 4.30)``."""
        middle, low, high = (f"{1000 * s:.3g}" for s in (self.median, self.low, self.high))
        return f"{self.engine} {middle} ms ({low} to {high})"


class TunedComponent(BaseModel):
    """What was measured of one component.

    Attributes:
        engine: the one to use.
        automatic: the one that would be used without this.
        dims: the size of each symbol.
        rounds: runs of each engine.
        timings: of each engine that was compared.
        left_out: why others were not, by engine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    automatic: str
    dims: dict[str, int]
    rounds: int
    timings: tuple[Timing, ...]
    left_out: dict[str, str]

    @model_validator(mode="after")
    def _was_measured(self) -> Self:
        if self.engine not in {timing.engine for timing in self.timings}:
            raise ValueError(f"{self.engine} has no timing")
        return self

    def why(self) -> str:
        """Which engine was chosen and what that is based on, in one line."""
        found = {timing.engine: timing for timing in self.timings}
        others = [str(t) for t in self.timings if t.engine != self.engine]
        if not others:
            reason = "the only one that could be compared"
        elif self.engine == self.automatic:
            reason = f"and none is faster beyond doubt: {', '.join(others)}"
        else:
            reason = f"faster than {', '.join(others)}"
        return (
            f"{found[self.engine]}, {reason}; medians of {self.rounds} runs at {sizes(self.dims)}"
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    components: dict[str, TunedComponent]
    networks: dict[str, str]
    """The hash of each of them; see :func:`kdrt.backends.network_hash.network_hash`."""


def tuned_components(bundle: Bundle) -> dict[str, TunedComponent]:
    """What `kdrt tune` found on this machine, by component; empty where it has not run, or what it
    ran with has changed since."""
    path = _path()
    try:
        content = read_regular(bundle.file(path), _FILE_BYTES)
        found = _File.model_validate_json(content)
    except (OSError, ValueError):
        return {}
    if not is_trusted(*_description(path, content)):
        _logger.info("%s is not used: somebody else made it", bundle.file(path))
        return {}
    manifest = bundle.manifest
    return {
        name: each
        for name, each in found.components.items()
        if name in manifest.components and found.networks.get(name) == network_hash(manifest, name)
    }


def keep_tuned(bundle: Bundle, found: dict[str, TunedComponent]) -> Path:
    """Keep what was measured, beside what is known of other components, and say where.

    Raises:
        OutputError: the bundle or the list of trusted files cannot be written.
    """
    check_home()
    components = tuned_components(bundle) | found
    networks = {name: network_hash(bundle.manifest, name) for name in components}
    merged = _File(components=components, networks=networks)
    path = _path()
    target = bundle.place(path)
    text = merged.model_dump_json(indent=2) + "\n"
    with new_file(target) as partial:
        partial.write_text(text, encoding="utf-8")
    trust(*_description(path, text.encode()))
    return target


def trust_tuned(bundle: Bundle) -> Path | None:
    """Trust what was measured on a machine like this one, whoever measured it.

    Returns:
        Where it is; None if there is nothing.

    Raises:
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    path = _path()
    file = bundle.file(path)
    try:
        content = read_regular(file, _FILE_BYTES)
    except (OSError, ValueError):
        return None
    trust(*_description(path, content))
    return file


def _description(path: str, content: bytes) -> tuple[str, ...]:
    return "tuned", path, hashlib.sha256(content).hexdigest()


def _path() -> str:
    parts = [
        *(f"{name} {installed_version(name)}" for name in _PACKAGES),
        processor(),
        f"{cores()} cores",
        *(f"{each.name} {each.memory}" for each in cuda_devices()),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return f"{FOLDER}/{digest}.json"
