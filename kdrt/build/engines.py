"""Building the TensorRT engines of a bundle."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import psutil

from kdrt._version import __version__
from kdrt.adapters.lora import NETWORKS
from kdrt.backends.files import (
    PLAN,
    RECORD,
    EngineRecord,
    check_record,
    engine_folders,
    evidence,
    foreign_files,
    network_hash,
    read_plan,
    read_record,
)
from kdrt.backends.profiles import DEFAULT, component_profiles
from kdrt.build.refit import changeable_weights, check_refittable, prove_plan
from kdrt.bundle import Bundle, Manifest
from kdrt.common.atomic_io import new_folder
from kdrt.common.home import check_home, trust
from kdrt.common.lock import only_builder
from kdrt.errors import EngineError, EngineRejectedError
from kdrt_engines.keys import REFIT, EngineKey
from kdrt_engines.profiles import Profile
from kdrt_engines.tensorrt.build import build_plan
from kdrt_engines.tensorrt.flavour import (
    TENSORRT,
    TENSORRT_RTX,
    Flavour,
    split_targets,
)
from kdrt_engines.tensorrt.job import BuildJob, Built, Shapes
from kdrt_engines.tensorrt.plan_file import read_header

_MEMORY_FOR_WEIGHTS = 3.5
"""Peak memory of a build, in sizes of the weights: 2.7 to 3.5 were measured."""

_SECONDS_PER_GRAPH_BYTE = 33e-6
_SECONDS_PER_WEIGHT_BYTE = 18e-9
"""What builds took on one core of the machine they were measured on; the estimate corrects itself
by the builds it has seen."""

_COMPILING = "Determining refit engines"
"""What TensorRT calls the phase in which nearly all of the time goes by."""


class Report(Protocol):
    """What a build tells of itself."""

    def start(self, stage: str) -> None: ...
    def running(self, detail: str, memory: int) -> None: ...
    def done(self, detail: str = "") -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...


def build_engines(
    bundle: Bundle,
    flavour: Flavour,
    capabilities: Sequence[int],
    *,
    profiles: Sequence[str] = DEFAULT,
    components: Sequence[str] = (),
    refittable: bool = False,
    force: bool = False,
    report: Report,
) -> list[EngineRecord]:
    """Build what is missing, one engine for each component and group of GPUs.

    Args:
        bundle: an opened bundle; engines go into its ``engines`` folder.
        flavour: see :func:`kdrt.build.targets.resolve_targets`.
        capabilities: compute capabilities; Turing becomes a plan of its own.
        profiles: names, see :mod:`kdrt.backends.profiles`.
        components: all of the bundle's if empty.
        refittable: let LoRAs change the weights of those networks that they know. Such an engine
            is compared with ONNX Runtime before it is kept, see :mod:`kdrt.build.refit`.
        force: build again what is there and good.
        report: told of every stage.

    Returns:
        The record of each engine, whether built now or before.

    Raises:
        EngineError: unknown components or profiles, a network that the GPU cannot run, or a build
            that failed. Engines that were complete stay.
        EngineUnavailableError: the flavour is not installed, or a refittable engine is asked for on
            a machine without a GPU.
        OutputError: the bundle cannot be written, or what is built not be noted.
    """
    wanted = wanted_components(bundle.manifest, components)
    if refittable:
        check_refittable(bundle, wanted, capabilities)
    keys = [
        _key(
            bundle.manifest,
            flavour,
            component,
            group,
            profiles,
            refittable=refittable and component in NETWORKS,
        )
        for group in split_targets(capabilities)
        for component in wanted
    ]
    for key in keys:
        _refuse_turing(key)
    check_home()
    folder = bundle.place(f"engines/{flavour.name}")
    with only_builder(folder, report.note):
        _clear_away(bundle, flavour)
        clock = _Clock()
        records = []
        for key in keys:
            record = None if force else _already_built(bundle, folder / key.folder(), key)
            if record is None:
                record = _build_one(bundle, folder, key, profiles, clock, report)
            else:
                report.note(f"{_title(key)} is built already; --force builds it again")
            records.append(record)
    return records


def fusion_warning(manifest: Manifest, record: EngineRecord) -> str | None:
    """What to say of a UNet whose attention did not become fused kernels; else None."""
    built, key = record.built, record.key
    if key.component != "unet" or not built.attention_sites:
        return None
    if built.fused_attention is None:
        return "the builder's log did not say whether the UNet's attention was fused"
    sites = built.attention_sites * len(key.profiles)
    if built.fused_attention >= sites:
        return None
    advice = (
        f": only half precision fuses; export it with `{manifest.export_command} "
        "--precision fp16` and build again"
        if key.dtype == "float32"
        else ""
    )
    return (
        f"only {built.fused_attention} of {sites} attentions of the UNet became fused kernels; "
        f"this engine will be slow and need much memory{advice}"
    )


def wanted_components(manifest: Manifest, components: Sequence[str]) -> list[str]:
    """The components named, each once, or all. Raises EngineError: one is not in the bundle."""
    unknown = [name for name in components if name not in manifest.components]
    if unknown:
        raise EngineError(
            f"the bundle has no component '{unknown[0]}'; it has {', '.join(manifest.components)}"
        )
    return list(dict.fromkeys(components)) or list(manifest.components)


def _key(
    manifest: Manifest,
    flavour: Flavour,
    component: str,
    capabilities: tuple[int, ...],
    names: Sequence[str],
    *,
    refittable: bool,
) -> EngineKey:
    # A float32 network in a float16 bundle is there for its range, not for its digits.
    flags = {"TF32": manifest.precision != "fp32"} | dict.fromkeys(flavour.flags, True)
    return EngineKey(
        component=component,
        network=network_hash(manifest, component),
        backend=flavour.name,
        backend_version=flavour.version(),
        compute_capabilities=capabilities,
        profiles=component_profiles(manifest, component, names),
        dtype=manifest.components[component].inputs[0].dtype,
        flags=flags | {REFIT: True} if refittable else flags,
    )


def _refuse_turing(key: EngineKey) -> None:
    if 75 not in key.compute_capabilities:
        return
    reason = {
        "float32": "it is float32, and TensorRT-RTX has no float32 matrix products there",
        "bfloat16": "it is bfloat16, which these GPUs do not have",
    }.get(key.dtype)
    if reason is not None:
        raise EngineError(
            f"{key.component} cannot be built for sm75 (Turing): {reason}; leave sm75 out, or "
            "choose other networks with --component"
        )


def _build_one(
    bundle: Bundle,
    folder: Path,
    key: EngineKey,
    names: Sequence[str],
    clock: _Clock,
    report: Report,
) -> EngineRecord:
    component = bundle.manifest.components[key.component]
    onnx = bundle.file(component.onnx)
    graph, weights = onnx.stat().st_size, _size(onnx.parent) - onnx.stat().st_size
    _mind_memory(key, weights, report)
    report.start(_title(key))
    target = bundle.place(f"engines/{folder.name}/{key.folder()}")
    with new_folder(target, foreign_files) as partial:
        job = BuildJob(
            module=_module(key),
            onnx=str(onnx),
            output=str(partial / PLAN),
            compute_capabilities=key.compute_capabilities,
            profiles=tuple(_shapes(bundle, key.component, profile) for profile in key.profiles),
            flags={name: wanted for name, wanted in key.flags.items() if name != REFIT},
            refittable=changeable_weights(bundle, key.component) if key.refittable else (),
        )
        clock.start(graph, weights)
        built = build_plan(job, lambda phase, memory: report.running(clock.left(phase), memory))
        clock.stop(built.seconds)
        record = _record(partial / PLAN, key, names, built)
        if key.refittable:
            report.running("comparing with ONNX Runtime", 0)
            proof = prove_plan(bundle, key, partial / PLAN)
            record = record.model_copy(update={"refit": proof}).sealed()
        (partial / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    trust(record.checksum)
    report.running("", built.peak_memory)
    report.done(evidence(record))
    warning = fusion_warning(bundle.manifest, record)
    if warning is not None:
        report.warn(warning)
    if record.refit is not None and record.refit.fixed:
        report.warn(
            f"TensorRT fixed {record.refit.fixed} weights of {key.component} that a LoRA can "
            "change; LoRAs that do will be refused"
        )
    return record


def _module(key: EngineKey) -> str:
    return (TENSORRT_RTX if key.backend == TENSORRT_RTX.name else TENSORRT).module


def _shapes(bundle: Bundle, component: str, profile: Profile) -> Shapes:
    sizes = [profile.sizes(which) for which in ("min", "opt", "max")]
    found = {}
    for tensor in bundle.manifest.components[component].spec().inputs:
        if tensor.symbols():
            least, best, most = (tensor.resolve(dims) for dims in sizes)
            found[tensor.name] = (least, best, most)
    return found


def _record(plan: Path, key: EngineKey, names: Sequence[str], built: Built) -> EngineRecord:
    """Raises EngineError where the file is not what was asked for."""
    with plan.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        header = read_header(memoryview(file.read(64)))
    size = plan.stat().st_size
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


def _already_built(bundle: Bundle, folder: Path, key: EngineKey) -> EngineRecord | None:
    if not folder.is_dir():
        return None
    try:
        record = read_record(bundle, folder)
        check_record(bundle, record, key.component, key.backend_version)
        read_plan(bundle, folder, record).release()
    except EngineRejectedError:
        return None
    return record


def _clear_away(bundle: Bundle, flavour: Flavour) -> None:
    """Remove engines of networks that are no more."""
    for engine in engine_folders(bundle, flavour):
        with contextlib.suppress(EngineRejectedError):
            key = read_record(bundle, engine).key
            known = bundle.manifest.components
            is_old = key.component not in known or key.network != network_hash(
                bundle.manifest, key.component
            )
            if is_old and foreign_files(engine) is None:
                shutil.rmtree(engine, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _title(key: EngineKey) -> str:
    kind = ", refittable" if key.refittable else ""
    return (
        f"{key.component}: {', '.join(f'sm{number}' for number in key.compute_capabilities)}{kind}"
    )


def _mind_memory(key: EngineKey, weights: int, report: Report) -> None:
    needed, free = _MEMORY_FOR_WEIGHTS * weights, psutil.virtual_memory().available
    if needed > free:
        report.warn(
            f"building {key.component} takes about {needed / 1e9:.0f} GB of memory, and "
            f"{free / 1e9:.0f} GB are free"
        )


class _Clock:
    """How long a build will still take: a guess from the size of the network, corrected by the
    builds before it."""

    def __init__(self) -> None:
        self._pace = 1.0
        self._expected = 0.0
        self._started = 0.0

    def start(self, graph: int, weights: int) -> None:
        self._expected = _SECONDS_PER_GRAPH_BYTE * graph + _SECONDS_PER_WEIGHT_BYTE * weights
        self._started = time.perf_counter()

    def stop(self, seconds: float) -> None:
        self._pace = seconds / self._expected

    def left(self, phase: str) -> str:
        """``phase`` with what is left of the time expected, once that says anything."""
        left = self._pace * self._expected - (time.perf_counter() - self._started)
        phase = "compiling" if phase == _COMPILING else phase.lower()
        return f"{phase}, about {left:.0f} s left" if left >= 1 else phase
