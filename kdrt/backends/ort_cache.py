"""The graphs that ONNX Runtime optimised for this machine, kept in the bundle: loading one then
only maps a file.

    engines/onnxruntime/unet-0123456789abcdef/
        model.onnx      the optimised graph
        weights.bin     its weights, as the kernels of this processor want them
        invariants*     the same for the graph of the invariants

The digits are a digest of all it depends on: the network, the version of ONNX Runtime, and the
processor. A file that does not match, or that this user neither made nor trusts byte for byte (see
:mod:`kdrt.common.home`), is ignored; the bundle's own graph is then loaded and optimised in memory.
Only float32 networks are kept: on a CPU half precision is computed in float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kdrt.backends.machine import missing_resources
from kdrt.backends.machine import processor as _processor
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import Bundle
from kdrt.common.atomic_io import new_folder, other_files
from kdrt.common.home import Digests, check_home, is_trusted, trust
from kdrt.common.progress import Progress

_logger = logging.getLogger("kdrt.engines")

FOLDER = "engines/onnxruntime"
_NETWORK, _INVARIANTS = ("model.onnx", "weights.bin"), ("invariants.onnx", "invariants.bin")
_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
MEMORY_TO_OPTIMIZE = 2.5
"""Bytes that it takes for a byte of weights in float32."""
_DISK_FOR_WEIGHTS = 1.5


@dataclass(frozen=True)
class Optimized:
    """The optimised graphs of a component: the one that most runs use, and its invariants (see
    `kdrt.bundle.OrtGraphs`) if it has any."""

    network: Path
    invariants: Path | None

    @property
    def folder(self) -> Path:
        """The folder of the graphs and their weights."""
        return self.network.parent


def optimized(bundle: Bundle, component: str) -> Optimized | None:
    """The optimised graphs of a component for this machine, or None if there are none that this
    user can trust."""
    folder = bundle.file(_folder(bundle, component))
    sources = _sources(bundle, component)
    if not sources:
        return None
    try:
        made = _description(folder, sources)
    except OSError:
        return None
    if not is_trusted(*made):
        _logger.info("%s is not used: it is damaged, or somebody else made it", folder)
        return None
    return _optimized(folder, sources)


def trust_optimized(bundle: Bundle, component: str) -> Path | None:
    """Trust the optimised graphs of a component, whoever made them.

    Returns:
        Where they are; None if there are none for this machine.

    Raises:
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    folder, sources = bundle.file(_folder(bundle, component)), _sources(bundle, component)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if sources:
            trust(*_description(folder, sources))
            return folder
    return None


def keep_optimized(
    bundle: Bundle, components: Iterable[str], report: Progress, *, force: bool = False
) -> list[Optimized]:
    """Optimise components for this machine, unless they are already; ``force`` does it again.

    Returns:
        The graphs made now.

    Raises:
        EngineError: ONNX Runtime cannot load a network.
        OutputError: the bundle or the list of trusted files cannot be written.
    """
    # Only builds need it, and loading imports this module.
    from kdrt.common.lock import only_builder

    sources = {name: found for name in components if (found := _sources(bundle, name))}
    if not sources:
        return []
    check_home()
    made = []
    with only_builder(bundle.place(FOLDER), report.note):
        for name, files in sources.items():
            if force or optimized(bundle, name) is None:
                made.append(_optimize(bundle, name, files, report))
        _remove_stale(bundle)
    return [each for each in made if each is not None]


def _optimize(
    bundle: Bundle, name: str, sources: dict[tuple[str, str], Path], report: Progress
) -> Optimized | None:
    """Optimise a component; None if this machine has no room for that."""
    from kdrt_engines.onnxruntime.sessions import save_optimized

    report.start(f"{name}: optimise for this CPU")
    missing = missing_resources(sources[_NETWORK], MEMORY_TO_OPTIMIZE, _DISK_FOR_WEIGHTS)
    if missing is not None:
        report.done("left out")
        report.note(f"{name} is not optimised beforehand: {missing}; it will load more slowly")
        return None
    target = bundle.place(_folder(bundle, name))
    with new_folder(target, _foreign) as partial:
        for (model, weights), source in sources.items():
            save_optimized(source, partial / model, weights)
            # A network without large weights has no such file.
            (partial / weights).touch()
        total = sum(file.stat().st_size for file in partial.iterdir())
    trust(*_description(target, sources))
    report.done(f"{total / 1e6:,.1f} MB")
    return _optimized(target, sources)


def _sources(bundle: Bundle, component: str) -> dict[tuple[str, str], Path]:
    """The graphs of a component to optimise, by the names of the resulting files: the one that most
    runs use, and its invariants. Empty if that is not worth it."""
    if bundle.manifest.baked.weights == "int8":
        return {}  # the optimised graph would hold float32 weights, four times the size
    described = bundle.manifest.components[component]
    graphs = described.onnxruntime
    if graphs is None or any(t.dtype in ("float16", "bfloat16") for t in described.inputs):
        return {}
    sources = {_NETWORK: bundle.file(graphs.plain or graphs.whole_on_cpu)}
    if graphs.invariants is not None:
        sources[_INVARIANTS] = bundle.file(graphs.invariants)
    return sources


def _optimized(folder: Path, sources: Mapping[tuple[str, str], Path]) -> Optimized:
    invariants = folder / _INVARIANTS[0] if _INVARIANTS in sources else None
    return Optimized(folder / _NETWORK[0], invariants)


def _description(folder: Path, sources: Mapping[tuple[str, str], Path]) -> list[str]:
    """What identifies the files of a component. Raises OSError where one is missing."""
    digests = Digests(folder)
    names = [name for files in sources for name in files]
    described = [folder.name, *(f"{name} {digests.of(name)}" for name in names)]
    digests.save()
    return described


def _foreign(folder: Path) -> str | None:
    known = {*_NETWORK, *_INVARIANTS, "record.json"}  # earlier versions wrote the last one
    return other_files(folder, known.__contains__)


def _folder(bundle: Bundle, component: str) -> str:
    return f"{FOLDER}/{component}-{_digest(bundle, component)}"


def _digest(bundle: Bundle, component: str) -> str:
    parts = (network_hash(bundle.manifest, component), _runtime_version(), _processor())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@cache
def _runtime_version() -> str:
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return "none"


def _remove_stale(bundle: Bundle) -> None:
    """Remove the graphs of other networks, versions and processors: they are large, and one command
    makes them again."""
    known = {_folder(bundle, name) for name in bundle.manifest.components}
    for folder in bundle.place(FOLDER).iterdir():
        is_old = _NAME.fullmatch(folder.name) and f"{FOLDER}/{folder.name}" not in known
        if is_old and not folder.is_symlink() and folder.is_dir() and _foreign(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
