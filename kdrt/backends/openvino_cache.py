"""The networks that OpenVINO compiled for this machine, kept in the bundle.

    engines/openvino/unet-0123456789abcdef/
        network.blob    compiled for one set of sizes
        record.json     which, by what engine, and what its precision loses

The digits are a digest of all it depends on: the network, its sizes, the precision, the version of
OpenVINO, and the processor or other device. What does not match, or what this user neither made nor
trusts byte for byte (see :mod:`kdrt.common.home`), is ignored; the network is then compiled in
memory.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kdrt.backends.machine import missing_resources, processor
from kdrt.backends.records import network_hash
from kdrt.bundle import Bundle
from kdrt.common.atomic_io import new_folder, other_files
from kdrt.common.home import Digests, check_home, is_trusted, trust
from kdrt.common.progress import Progress
from kdrt_engines.installed import installed_version
from kdrt_engines.openvino.config import OpenVinoConfig, check_installed, config_of
from kdrt_engines.profiles import sizes
from kdrt_engines.regular_files import read_regular

_logger = logging.getLogger("kdrt.engines")

FOLDER = "engines/openvino"
_NETWORK, _RECORD = "network.blob", "record.json"
_NAME = re.compile(r"[^.].*-[0-9a-f]{16}")
_RECORD_BYTES = 2**16
_MEMORY_FOR_WEIGHTS = 4.0
"""The weights as the kernels want them, that once more as the file to write, and for a precision
that loses something a network in float32 besides."""
_DISK_FOR_WEIGHTS = 1.5

Sizes = Mapping[str, int]


class KeptRecord(BaseModel):
    """What is known of a network that was kept.

    Attributes:
        component: its name in the manifest.
        engine: the name that it was compiled for, with its precision.
        dims: the size of each symbol.
        relative_error: how far it is from the same network in float32, on random inputs:
            ``‖out − float32‖ / ‖float32‖`` of the worst output. None where that is what it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    component: str
    engine: str
    dims: dict[str, int]
    relative_error: float | None

    def summary(self) -> str:
        """All but the component, in one line."""
        error = self.relative_error
        loss = "" if error is None else f", relative error {error:.1e} against float32"
        return f"{self.engine}, {sizes(self.dims)}{loss}"


@dataclass(frozen=True)
class Kept:
    """A network that was kept, and its record."""

    folder: Path
    record: KeptRecord


def kept_network(
    bundle: Bundle, component: str, config: OpenVinoConfig, dims: Sizes
) -> Path | None:
    """The file of a component compiled for these sizes on this machine, or None if there is none
    that this user can trust."""
    folder = bundle.file(_folder(bundle, component, config, dims))
    try:
        made = _description(folder)
    except OSError:
        return None
    if not is_trusted(*made):
        _logger.info("%s is not used: it is damaged, or somebody else made it", folder)
        return None
    return folder / _NETWORK


def kept_networks(bundle: Bundle) -> list[Kept]:
    """Every network that was kept and that this machine uses."""
    return [
        each
        for each in _recorded(bundle)
        if _is_current(bundle, each)
        and kept_network(
            bundle, each.record.component, config_of(each.record.engine), each.record.dims
        )
    ]


def trust_kept(bundle: Bundle) -> list[Path]:
    """Trust the networks for this machine, whoever made them, and say where they are.

    Raises:
        OutputError: :func:`kdrt.common.home.trust` raises it.
    """
    found = [each.folder for each in _recorded(bundle) if _is_current(bundle, each)]
    for folder in found:
        trust(*_description(folder))
    return found


def keep_networks(
    bundle: Bundle,
    engine: str,
    wanted: Iterable[tuple[str, Sizes]],
    report: Progress,
    *,
    force: bool = False,
) -> list[Kept]:
    """Compile components for this machine and keep them, unless they are; ``force`` does it again.

    Args:
        bundle: an opened bundle.
        engine: a name of OpenVINO's, with a precision or without.
        wanted: components, each with the sizes to compile it for.
        report: receives the progress.
        force: make again what is there and good.

    Returns:
        The networks made now.

    Raises:
        EngineUnavailableError: OpenVINO is not installed, does not have the device, or the device
            the precision.
        EngineError: OpenVINO cannot compile a network.
        OutputError: the bundle or the list of trusted files cannot be written.
    """
    config = config_of(engine)
    check_installed()
    # Only builds need them, and loading imports this module.
    from kdrt.common.lock import only_builder
    from kdrt_engines.openvino.engine import check_device

    check_device(config)
    check_home()
    made = []
    with only_builder(bundle.place(FOLDER), report.note):
        for component, dims in wanted:
            if force or kept_network(bundle, component, config, dims) is None:
                made.append(_keep(bundle, engine, component, dims, report))
        _remove_stale(bundle)
    return [each for each in made if each is not None]


def _keep(
    bundle: Bundle, engine: str, component: str, dims: Sizes, report: Progress
) -> Kept | None:
    """Compile a component; None if this machine has no room for that."""
    report.start(f"{component}: compile for {sizes(dims)}")
    source = bundle.file(bundle.manifest.components[component].onnx)
    missing = missing_resources(source, _MEMORY_FOR_WEIGHTS, _DISK_FOR_WEIGHTS)
    if missing is not None:
        report.done("left out")
        report.note(f"{component} is not compiled beforehand: {missing}; it will load more slowly")
        return None
    config = config_of(engine)
    target = bundle.place(_folder(bundle, component, config, dims))
    with new_folder(target, _foreign) as partial:
        error = _write(bundle, component, config, dims, partial / _NETWORK)
        record = KeptRecord(
            component=component, engine=engine, dims=dict(dims), relative_error=error
        )
        (partial / _RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        total = (partial / _NETWORK).stat().st_size
    trust(*_description(target))
    report.done(f"{total / 1e6:,.1f} MB{'' if error is None else f', relative error {error:.1e}'}")
    return Kept(target, record)


def _write(
    bundle: Bundle, component: str, config: OpenVinoConfig, dims: Sizes, target: Path
) -> float | None:
    """Write a compiled network; how far it is from float32, unless that is what it is."""
    from kdrt_engines.comparison import greatest_error, random_inputs, results
    from kdrt_engines.openvino.engine import OpenVinoEngine

    described = bundle.manifest.components[component]
    path, spec = bundle.file(described.onnx), described.spec()
    exact = OpenVinoConfig(config.device, "f32", config.threads)
    if config == exact:
        OpenVinoEngine(path, spec, config).export(target, **dims)
        return None
    inputs = random_inputs(spec, dims)
    # One after the other: each holds the weights once more.
    expected = results(OpenVinoEngine(path, spec, exact).bind(**dims), inputs)
    engine = OpenVinoEngine(path, spec, config)
    engine.export(target, **dims)
    kept = OpenVinoEngine(path, spec, config, kept=lambda _: target)
    return greatest_error(results(kept.bind(**dims), inputs), expected)


def _recorded(bundle: Bundle) -> Iterator[Kept]:
    """What is in the folder and has a record that can be read, for this machine or others."""
    folder = bundle.file(FOLDER)
    try:
        found = sorted(folder.iterdir())
    except OSError:
        return
    for each in found:
        if _NAME.fullmatch(each.name) and not each.is_symlink():
            try:
                record = KeptRecord.model_validate_json(read_regular(each / _RECORD, _RECORD_BYTES))
                config_of(record.engine)
            except (OSError, ValueError):
                continue
            yield Kept(each, record)


def _is_current(bundle: Bundle, kept: Kept) -> bool:
    """Whether that is for this network, machine and version."""
    record = kept.record
    if record.component not in bundle.manifest.components:
        return False
    config = config_of(record.engine)
    return kept.folder == bundle.file(_folder(bundle, record.component, config, record.dims))


def _description(folder: Path) -> list[str]:
    """What identifies the files of a network. Raises OSError where one is missing."""
    digests = Digests(folder)
    described = [folder.name, *(f"{name} {digests.of(name)}" for name in (_NETWORK, _RECORD))]
    digests.save()
    return described


def _foreign(folder: Path) -> str | None:
    return other_files(folder, {_NETWORK, _RECORD}.__contains__)


def _folder(bundle: Bundle, component: str, config: OpenVinoConfig, dims: Sizes) -> str:
    parts = (
        network_hash(bundle.manifest, component),
        f"openvino {installed_version('openvino')}",
        _hardware(config.device),
        config.precision,
        sizes(dict(sorted(dims.items()))),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return f"{FOLDER}/{component}-{digest}"


def _hardware(device: str) -> str:
    if device == "CPU":
        return processor()
    if installed_version("openvino") is None:
        return device
    from kdrt_engines.openvino.engine import device_name

    return device_name(device) or device


def _remove_stale(bundle: Bundle) -> None:
    """Remove what was compiled of other networks, or by other versions and machines: it is large,
    and one command makes it again."""
    for each in _recorded(bundle):
        if not _is_current(bundle, each) and _foreign(each.folder) is None:
            shutil.rmtree(each.folder, ignore_errors=True)
