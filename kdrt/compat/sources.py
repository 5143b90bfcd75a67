"""The bundle of a model that ``from_pretrained`` is given, exported on first use.

A bundle made here is named after its source and what went into it. For a folder or a checkpoint
file that is its content, so one saved again with other weights, or only with another scheduler
file, is exported again; for a hub id it is the commit.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdrt._version import __version__
from kdrt.bundle import (
    MANIFEST,
    Bundle,
    Precision,
    SchedulerFacts,
    bundle_path,
    open_bundle,
    sha256,
)
from kdrt.common.atomic_io import new_file
from kdrt.common.home import home
from kdrt.common.paths import user_path
from kdrt.errors import BundleError, InvalidRequestError, OutputError

_PRECISIONS: dict[torch.dtype, Precision] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
_CONTENT = {".json", ".txt", ".safetensors", ".bin", ".model"}


@dataclass(frozen=True)
class Wanted:
    """How to export a source.

    Attributes:
        dtype: of the networks; None is float32, as diffusers has it.
        vae_dtype: of the VAE, where it differs.
        engine: what will run them. For ``torch`` the export is without fused projections, with
            which the networks equal the originals bit by bit.
        revision: branch, tag or commit of a hub id.
        allow_pickle: accept pickled weights.
        config: a diffusers folder that describes a checkpoint file.
        prediction_type: ``epsilon`` or ``v_prediction``, where the source is wrong about it.
        hub: options of the download.
    """

    dtype: torch.dtype | None = None
    vae_dtype: torch.dtype | None = None
    engine: str | None = None
    revision: str | None = None
    allow_pickle: bool = False
    config: Path | None = None
    prediction_type: str | None = None
    hub: tuple[tuple[str, Any], ...] = ()

    @property
    def precision(self) -> Precision:
        """Of the export. Raises InvalidRequestError for a dtype that no network has."""
        return _precision(self.dtype or torch.float32)

    @property
    def vae_precision(self) -> Precision | None:
        """Of the VAE in it; None is what suits the VAE. Raises InvalidRequestError likewise."""
        return None if self.vae_dtype is None else _precision(self.vae_dtype)

    def settings(self) -> list[str]:
        """The settings that an export of the same source depends on."""
        settings = [self.precision, str(self.engine == "torch"), __version__]
        if self.config is not None:
            settings.append(_content(self.config))
        settings += [f"vae {self.vae_precision}"] if self.vae_dtype else []
        return settings + ([self.prediction_type] if self.prediction_type else [])


def _precision(dtype: torch.dtype) -> Precision:
    if dtype not in _PRECISIONS:
        known = ", ".join(str(each) for each in _PRECISIONS)
        raise InvalidRequestError(f"torch_dtype must be one of {known}, not {dtype}")
    return _PRECISIONS[dtype]


def find_bundle(source: str | os.PathLike[str], wanted: Wanted) -> Bundle:
    """The bundle of ``source``; exported now if there is none.

    Args:
        source: a bundle's folder or name, a diffusers folder, a checkpoint file, or a hub id.
        wanted: how to export it.

    Raises:
        InvalidRequestError: the source is a bundle of another dtype.
        BundleError: it is a damaged bundle.
        ExportError: it cannot be exported, or is nothing of the above.
    """
    folder = bundle_folder(source)
    if folder is not None:
        bundle = open_bundle(folder)
        predicts = bundle.manifest.scheduler.prediction_type
        if wanted.prediction_type not in (None, predicts):
            raise InvalidRequestError(
                f"prediction_type={wanted.prediction_type!r}, but the bundle '{source}' was "
                f"exported as {predicts}; leave prediction_type out, or export the model again "
                f"with --prediction-type {wanted.prediction_type}"
            )
        if wanted.dtype is not None and wanted.precision != bundle.manifest.precision:
            raise InvalidRequestError(
                f"torch_dtype={wanted.dtype}, but the bundle '{source}' is "
                f"{bundle.manifest.precision}; leave torch_dtype out, or export the model again "
                f"with --precision {wanted.precision}"
            )
        return bundle
    path = user_path(source)
    if path.exists():
        origin, name, content = str(path), path.stem, _content(path)
        if path.is_dir():
            name = path.resolve().name
        revision = None
    else:
        name = str(source).partition("@")[0]
        origin, revision, content = _from_hub(str(source), wanted)
    key = hashlib.sha256("\n".join([content, *wanted.settings()]).encode()).hexdigest()[:16]
    # A bundle's name cannot begin like a hidden file or an option, as that of a folder can.
    name = name.lstrip("-.~") or "model"
    target = home() / "bundles" / f"{name.replace('/', '--')}-{key}"
    # What is damaged here was derived, and can be derived again.
    with contextlib.suppress(BundleError):
        return Bundle.open(target)
    _export(origin, target, name, revision, wanted)
    return Bundle.open(target)


def downloaded_file(repo: str, file: str, revision: str, options: dict[str, Any]) -> Path:
    """A file of a hub repository, on this machine.

    Raises:
        BundleError: the exporter is not installed.
        ExportError: it cannot be downloaded.
    """
    folder: Path = _exporter("sources").download_files(repo, [file], revision, **options)
    return folder / file


def facts_of(scheduler: object) -> SchedulerFacts:
    """The facts that a diffusers scheduler object states explicitly about the training and the
    grid, as the removed pipelines read it; its defaults do not count.

    Raises:
        InvalidRequestError: it is no scheduler.
        BundleError: the exporter is not installed.
        ExportError: it is of a kind that kdrt does not run.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InvalidRequestError(
            f"scheduler must be a scheduler object of diffusers, not {type(scheduler).__name__}"
        )
    default = config.get("_use_default_values", ())
    explicit = {name: value for name, value in config.items() if name not in default}
    explicit.setdefault("_class_name", type(scheduler).__name__)
    report = _exporter("report").Silent()
    facts: SchedulerFacts = _exporter("scheduler").scheduler_facts(explicit, report)
    return facts


def bundle_folder(source: str | os.PathLike[str]) -> Path | None:
    """The folder of the bundle that ``source`` means; None if it means none."""
    try:
        folder = bundle_path(source)
    except BundleError:  # no name of a bundle: a path, or a hub id
        return None
    return folder if (folder / MANIFEST).is_file() else None


def _export(origin: str, target: Path, name: str, revision: str | None, wanted: Wanted) -> None:
    from kdrt.common.terminal_report import TerminalReport

    stage = _exporter("stage")
    is_torch = wanted.engine == "torch"
    with TerminalReport() as report:
        stage.export(
            origin,
            target,
            name=name,
            precision=wanted.precision,
            vae_precision=wanted.vae_precision or "auto",
            targets=("onnxruntime", "torch") if is_torch else ("onnxruntime",),
            fuse_qkv=not is_torch,
            allow_pickle=wanted.allow_pickle,
            revision=revision,
            config=wanted.config,
            prediction_type=wanted.prediction_type,
            report=report,
        )


def _from_hub(repo: str, wanted: Wanted) -> tuple[str, str | None, str]:
    """What to export for a hub id, the revision, and the commit that identifies it."""
    sources = _exporter("sources")
    if repo == "demo":
        return repo, None, _content(sources.demo_folder())
    known = sources.KNOWN_MODELS.get(repo)
    name = repo.partition("@")[0]
    if known is None and name.count("/") != 1:
        raise BundleError(
            f"'{repo}' is no bundle, no folder and no hub id (owner/name); bundles are in "
            f"{home() / 'bundles'}"
        )
    folder: Path = sources.download(
        known.repo if known else repo,
        wanted.revision,
        allow_pickle=wanted.allow_pickle,
        **dict(wanted.hub),
    )
    # The exporter would look for it in the hub's own cache.
    return (str(folder) if wanted.hub else name), folder.name, f"{name}@{folder.name}"


def _exporter(module: str) -> Any:
    """A module of the exporter, imported only now: it brings diffusers with it."""
    try:
        return importlib.import_module(f"kdrt_export.{module}")
    except ImportError as error:
        raise BundleError(
            f"exporting a model needs {error.name}: pip install 'kdrt[export]', or export it "
            "elsewhere with `kdrt export` and give the bundle"
        ) from error


def _content(path: Path) -> str:
    """SHA-256 of a file, or of all that an export reads in a folder.

    Weights are gigabytes: what was hashed once is remembered by size and time of change.
    """
    record = home() / "digests.json"
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(record.read_text(encoding="utf-8"))
    before = dict(known)
    total = hashlib.sha256()
    for file in _files(path):
        stat = file.stat()
        place = str(file.resolve())
        seen = [stat.st_size, stat.st_mtime_ns]
        if known.get(place, [None])[:-1] != seen:
            known[place] = [*seen, sha256(file)]
        relative = file.relative_to(path).as_posix() if path.is_dir() else file.suffix
        total.update(f"{relative}\0{known[place][-1]}\n".encode())
    if known != before:
        # A read-only home is hashed into every time.
        with contextlib.suppress(OutputError), new_file(record) as partial:
            partial.write_text(json.dumps(known), encoding="utf-8")
    return total.hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and file.suffix in _CONTENT and not hidden:
            yield file
