"""Building the TensorRT engines of a bundle: what is missing, one after the other."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrt._version import __version__
from kdrt.backends.engine_files import (
    ENGINE_FILE,
    engine_folders,
    foreign_files,
    read_engine,
)
from kdrt.backends.network_hash import network_hash
from kdrt.backends.profiles import DEFAULT
from kdrt.backends.records import (
    RECORD_FILE,
    EngineRecord,
    check_record,
    read_record,
)
from kdrt.build.cost import BuildClock, NetworkSize, memory_warning
from kdrt.build.fusion import fusion_warning
from kdrt.build.keys import engine_keys, title
from kdrt.build.quantized import check_gpus
from kdrt.build.refit import changeable_weights, check_built_engine, check_refittable
from kdrt.bundle import Bundle, Manifest
from kdrt.common.atomic_io import new_folder
from kdrt.common.home import check_home, trust
from kdrt.common.lock import only_builder
from kdrt.common.progress import BuildProgress
from kdrt.errors import EngineError, EngineRejectedError
from kdrt_engines.keys import REFIT, EngineKey
from kdrt_engines.profiles import Profile
from kdrt_engines.tensorrt.build import Follow, build_engine
from kdrt_engines.tensorrt.engine_file import read_header
from kdrt_engines.tensorrt.flavour import FLAVOURS, TENSORRT_RTX, Flavour
from kdrt_engines.tensorrt.job import BuildJob, Built, Shapes
from kdrt_engines.tensorrt.refit_result import RefitResult


@dataclass(frozen=True)
class Tools:
    """The functions that need TensorRT or a GPU.

    Attributes:
        build: builds one engine file; see :func:`kdrt_engines.tensorrt.build.build_engine`.
        check: compares a refittable engine with ONNX Runtime; see
            :func:`kdrt.build.refit.check_built_engine`.
    """

    build: Callable[[BuildJob, Follow], Built] = build_engine
    check: Callable[[Bundle, EngineKey, Path], RefitResult] = check_built_engine


TOOLS = Tools()


def build_engines(
    bundle: Bundle,
    flavour: Flavour,
    capabilities: Sequence[int],
    *,
    profiles: Sequence[str] = DEFAULT,
    components: Sequence[str] = (),
    refittable: bool = False,
    force: bool = False,
    strict: bool = False,
    report: BuildProgress,
    tools: Tools | None = None,
) -> list[EngineRecord]:
    """Build the engines that are missing, one for each component and group of GPUs.

    Args:
        bundle: an opened bundle; engines are written to its ``engines`` folder.
        flavour: see :func:`kdrt.build.targets.resolve_targets`.
        capabilities: compute capabilities; Turing gets separate engines.
        profiles: names, see :mod:`kdrt.backends.profiles`.
        components: the components to build; empty for all of them.
        refittable: let LoRAs change the weights, in the networks that LoRAs can change. Such an
            engine is compared with ONNX Runtime before it is kept, see :mod:`kdrt.build.refit`.
        force: rebuild engines that exist and are valid.
        strict: refuse an engine in which the UNet's attention was not fused, instead of warning.
        report: receives the progress.
        tools: None for TensorRT itself.

    Returns:
        The record of each engine, whether it was built now or before.

    Raises:
        EngineError: a component or a profile is unknown, the GPU cannot run a network, a build
            failed, or ``strict`` refuses one. Engines that were complete stay.
        EngineUnavailableError: the flavour is not installed, or a refittable engine is requested on
            a machine without a GPU.
        OutputError: the bundle or the list of trusted files cannot be written.
    """
    wanted = wanted_components(bundle.manifest, components)
    check_gpus(bundle, wanted, capabilities)
    if refittable:
        check_refittable(bundle, wanted, capabilities)
    keys = engine_keys(
        bundle.manifest, flavour, wanted, capabilities, profiles, refittable=refittable
    )
    check_home()
    folder = bundle.place(f"engines/{flavour.name}")
    with only_builder(folder, report.note):
        _remove_stale(bundle, flavour)
        builder = _Builder(bundle, folder, profiles, report, tools or TOOLS, strict=strict)
        return [builder.get(key, force=force) for key in keys]


def _refuse_unfused(manifest: Manifest, record: EngineRecord) -> None:
    warning = fusion_warning(manifest, record)
    if warning is not None:
        raise EngineError(f"{warning}; strict builds keep no such engine (--strict)")


def wanted_components(manifest: Manifest, components: Sequence[str]) -> list[str]:
    """The named components, each once; all of them if none is named.

    Raises:
        EngineError: a component is not in the bundle.
    """
    unknown = [name for name in components if name not in manifest.components]
    if unknown:
        raise EngineError(
            f"the bundle has no component '{unknown[0]}'; it has {', '.join(manifest.components)}"
        )
    return list(dict.fromkeys(components)) or list(manifest.components)


class _Builder:
    """Builds engines into a folder of a bundle, one by one."""

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        names: Sequence[str],
        report: BuildProgress,
        tools: Tools,
        *,
        strict: bool,
    ) -> None:
        self._bundle, self._folder, self._names = bundle, folder, names
        self._report, self._tools, self._strict = report, tools, strict
        self._clock = BuildClock()

    def get(self, key: EngineKey, *, force: bool) -> EngineRecord:
        """The engine of a key, built unless it is there; ``force`` builds it anyway."""
        found = None if force else self._existing(key)
        if found is None:
            return self._build(key)
        self._refuse_unfused(found)
        self._report.note(f"{title(key)} is built already; --force builds it again")
        return found

    def _refuse_unfused(self, record: EngineRecord) -> None:
        warning = fusion_warning(self._bundle.manifest, record) if self._strict else None
        if warning is not None:
            raise EngineError(f"{warning}; strict builds keep no such engine (--strict)")

    def _existing(self, key: EngineKey) -> EngineRecord | None:
        folder = self._folder / key.folder()
        if not folder.is_dir():
            return None
        try:
            record = read_record(self._bundle, folder)
            check_record(self._bundle, record, key.component, key.backend_version)
            read_engine(self._bundle, folder, record).release()
        except EngineRejectedError:
            return None
        return record

    def _build(self, key: EngineKey) -> EngineRecord:
        size = NetworkSize.of(self._bundle, key.component)
        warning = memory_warning(key.component, size)
        if warning is not None:
            self._report.warn(warning)
        self._report.start(title(key))
        target = self._bundle.place(f"engines/{self._folder.name}/{key.folder()}")
        with new_folder(target, foreign_files) as partial:
            built = self._run(key, partial / ENGINE_FILE, size)
            record = _record(partial / ENGINE_FILE, key, self._names, built)
            self._refuse_unfused(record)
            if key.refittable:
                self._report.running("comparing with ONNX Runtime", 0)
                result = self._tools.check(self._bundle, key, partial / ENGINE_FILE)
                record = record.model_copy(update={"refit": result}).sealed()
            text = record.model_dump_json(indent=2) + "\n"
            (partial / RECORD_FILE).write_text(text, encoding="utf-8")
        trust(record.checksum)
        self._report.running("", built.peak_memory)
        self._report.done(record.summary())
        for warning in _warnings(self._bundle.manifest, record):
            self._report.warn(warning)
        return record

    def _run(self, key: EngineKey, output: Path, size: NetworkSize) -> Built:
        component = key.component
        job = BuildJob(
            module=FLAVOURS[key.backend].module,
            onnx=str(self._bundle.file(self._bundle.manifest.components[component].onnx)),
            output=str(output),
            compute_capabilities=key.compute_capabilities,
            profiles=tuple(_shapes(self._bundle, component, each) for each in key.profiles),
            # Which kind of refit TensorRT can be asked for, the worker finds out.
            flags={name: wanted for name, wanted in key.flags.items() if name != REFIT},
            refittable=changeable_weights(self._bundle, component) if key.refittable else (),
        )
        clock, report = self._clock, self._report
        clock.start(size)
        built = self._tools.build(
            job, lambda phase, memory: report.running(clock.left(phase), memory)
        )
        clock.stop(built.seconds)
        return built


def _shapes(bundle: Bundle, component: str, profile: Profile) -> Shapes:
    sizes = [profile.sizes(which) for which in ("min", "opt", "max")]
    found = {}
    for tensor in bundle.manifest.components[component].spec().inputs:
        if tensor.symbols():
            least, best, most = (tensor.resolve(dims) for dims in sizes)
            found[tensor.name] = (least, best, most)
    return found


def _record(path: Path, key: EngineKey, names: Sequence[str], built: Built) -> EngineRecord:
    """The record of a new engine file. Raises EngineError: it is not what was asked for."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        header = read_header(memoryview(file.read(64)))
    size = path.stat().st_size
    expected = (size, key.backend_version, key.compute_capabilities)
    if key.backend == TENSORRT_RTX.name and (
        header is None or (header.length, header.version, header.compute_capabilities) != expected
    ):
        raise EngineError(
            f"TensorRT-RTX wrote an engine with the header {header}, and {expected} was asked for; "
            "this version of kdrt cannot check the engines of this version of TensorRT-RTX"
        )
    return EngineRecord(
        key=key, names=tuple(names), size=size, sha256=digest, built=built, kdrt=__version__
    ).sealed()


def _warnings(manifest: Manifest, record: EngineRecord) -> list[str]:
    found = [fusion_warning(manifest, record)]
    if record.refit is not None and record.refit.fixed:
        found.append(
            f"TensorRT fixed {record.refit.fixed} weights of {record.key.component} that a LoRA "
            "can change; LoRAs that do will be refused"
        )
    return [warning for warning in found if warning is not None]


def _remove_stale(bundle: Bundle, flavour: Flavour) -> None:
    """Remove engines of networks that the bundle no longer has."""
    for folder in engine_folders(bundle, flavour):
        with contextlib.suppress(EngineRejectedError):
            key = read_record(bundle, folder).key
            known = bundle.manifest.components
            is_stale = key.component not in known or key.network != network_hash(
                bundle.manifest, key.component
            )
            if is_stale and foreign_files(folder) is None:
                shutil.rmtree(folder, ignore_errors=True)
