"""The whole of it: bundle → calibration → scan → quantised networks → measured loss → bundle."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import kdrt
from kdrt.backends.network_hash import network_hash
from kdrt.bundle import (
    Bundle,
    Manifest,
    QuantizationFacts,
    QuantizationLoss,
    check_new_bundle,
    folder_name,
    link,
    new_bundle,
    open_bundle,
    read_manifest,
    write_manifest,
)
from kdrt.common.home import check_home, home
from kdrt.denoise.bound_unet import is_inpainting
from kdrt.errors import BundleError, InvalidRequestError
from kdrt_engines.registry import find_engines
from kdrt_export.errors import ExportError
from kdrt_export.onnx.trace import weight_files
from kdrt_export.quantize.calibration import (
    PROMPTS,
    Evaluation,
    calibration_samples,
    default_prompts,
    other_prompts,
)
from kdrt_export.quantize.drawing import FOLDER, check_can_draw, draw, write_table
from kdrt_export.quantize.formats import Format, find_format
from kdrt_export.quantize.layers import (
    activations_of,
    is_fused,
    quantizable_layers,
    without_float32,
)
from kdrt_export.quantize.loss import IMAGES, Measure, check_loss
from kdrt_export.quantize.networks import WEIGHTS_FILE, Quantized, unets_of
from kdrt_export.quantize.ranges import measure_ranges
from kdrt_export.quantize.sensitivity import MAX_ERROR, SAMPLES, Sensitivity, choose, scan
from kdrt_export.report import Report, Silent

_ENGINES = ("onnxruntime", "onnxruntime-cuda")
"""Those that need nothing built, and compute what a graph says."""

_FIRST, _LONG = 3, 5
"""After so many layers it is estimated how long a scan takes, and said if that is more minutes."""


def quantize(
    bundle: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
    format: str,
    calibration: int | Sequence[str] = PROMPTS,
    max_error: float = MAX_ERROR,
    by_blocks: bool = False,
    images: int = IMAGES,
    height: int | None = None,
    width: int | None = None,
    engine: str | None = None,
    report: Report | None = None,
) -> Path:
    """Make a new bundle whose UNets compute in fewer bits.

    Args:
        bundle: its folder or name, float32 or float16. It stays as it is.
        output: the folder of the new bundle; by default one of its name in the bundle home.
        name: of the new bundle; by default ``BUNDLE-FORMAT``.
        format: one of :data:`kdrt_export.quantize.formats.FORMATS`.
        calibration: prompts, or how many of kdrt's own. An image is made of each, and the
            activations are measured all over its steps.
        max_error: relative error of one evaluation; the layers with the largest errors stay as
            they are until all others together are below it.
        by_blocks: scan and choose whole blocks rather than layers: a tenth of the time, for large
            models on a CPU.
        images: how many, with other seeds, are made before and after and compared.
        height, width: of all images in pixels; None is the model's own.
        engine: makes the images: ``onnxruntime`` or ``onnxruntime-cuda``; None is the latter where
            it is.
        report: told of every stage.

    Returns:
        The new bundle's folder.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        InvalidRequestError: an argument is out of range, or no layer can be quantised.
        ExportError: the bundle cannot be quantised, or a package is missing.
        VerificationError: it loses too much; see :func:`kdrt_export.quantize.loss.check_loss`.
        OutputError: the new bundle cannot be written. Then nothing is left behind.
    """
    into = find_format(format.lower())
    _check_number("max_error (--max-error)", max_error, 1e-4, 0.5)
    _check_number("images", images, 1, 100)
    if isinstance(calibration, str):
        raise InvalidRequestError(
            "calibration is a number or a list of prompts, not one text; of a file read the lines"
        )
    engine = _engine(engine)
    check_can_draw()
    report = report or Silent()
    report.start(f"open {bundle}")
    opened = open_bundle(bundle)
    _check_bundle(opened.manifest)
    folder = None if output is None else Path(output)
    if name is None:
        name = f"{opened.manifest.name}-{into.name}" if folder is None else folder.name
    if folder is None:
        folder = home() / "bundles" / folder_name(name)
    if name == opened.manifest.name:
        raise InvalidRequestError(
            f"a bundle is not quantised in place; give the new one another name than '{name}'"
        )
    prompts = (
        default_prompts(opened, calibration) if isinstance(calibration, int) else [*calibration]
    )
    if not prompts:
        raise InvalidRequestError("the calibration has no prompt; give at least one")
    check_new_bundle(folder)
    if folder.exists() and folder.samefile(opened.path):
        raise InvalidRequestError(
            "a bundle is not quantised in place; give the new one a folder of its own"
        )
    _check_same_origin(folder, opened)
    check_home()
    pipe = _loaded(opened, engine)
    report.done(f"{opened.manifest.name}, {opened.manifest.precision}, to {into.name}")
    report.start("calibrate")
    samples = calibration_samples(pipe, prompts, height=height, width=width)
    report.done(f"{len(prompts)} images, {len(samples)} evaluations")
    report.start("make images before")
    measure = Measure(other_prompts(opened, calibration, images), height, width)
    before = measure.reference(pipe)
    report.done(f"{images} images")
    del pipe
    quantized, rows = _chosen(opened, into, samples, max_error, report, by_blocks=by_blocks)
    with new_bundle(folder) as partial:
        report.start("write networks")
        unets = unets_of(opened.manifest)
        manifest = opened.manifest.model_copy(
            update={
                "name": name,
                "components": opened.manifest.components | quantized.write(opened, partial),
            }
        )
        known = _link_rest(opened, manifest, partial)
        write_manifest(partial, manifest, known=known)
        written = sum(file.stat().st_size for file in partial.rglob(WEIGHTS_FILE))
        report.done(f"{written / 1e6:,.1f} MB")
        report.start("measure the loss")
        loss = measure.loss(_loaded(Bundle(partial, manifest), engine), before)
        check_loss(loss, max_error)
        report.done(_told(loss))
        (partial / FOLDER).mkdir()
        write_table(rows, partial / FOLDER)
        title = f"{opened.manifest.name}: {into.name}, one layer at a time"
        draw(rows, title, max_error, partial / FOLDER)
        facts = QuantizationFacts(
            format=into.name,
            made_from=opened.manifest.name,
            network=network_hash(opened.manifest, "unet"),
            components=tuple(unets),
            layers=sum(row.is_quantized for row in rows),
            left=tuple(row.name for row in rows if not row.is_quantized),
            max_error=max_error,
            prompts=len(prompts),
            evaluations=len(samples),
            loss=loss,
        )
        write_manifest(
            partial,
            manifest.model_copy(update={"quantization": facts}),
            known=known,
        )
        opened.check_unchanged()
    return folder


def _engine(name: str | None) -> str:
    """The engine that makes the images: both before and after, so it must run any graph at once.

    Raises:
        InvalidRequestError: it is another one.
        EngineUnavailableError: it is not here.
    """
    if name is None:
        here = {status.name for status in find_engines() if status.usable}
        return next((each for each in reversed(_ENGINES) if each in here), _ENGINES[0])
    if name not in _ENGINES:
        raise InvalidRequestError(
            f"images before and after are made with the same engine, which is one of "
            f"{', '.join(_ENGINES)}; '{name}' is none of them"
        )
    return name


def _loaded(bundle: Bundle, engine: str) -> kdrt.Pipeline:
    """The pipeline of a bundle, whose images nothing blacks out."""
    pipe = kdrt.load(bundle, engine=engine)
    pipe.safety_checker = None
    return pipe


def _check_same_origin(folder: Path, bundle: Bundle) -> None:
    """Whether what is at the place of the new bundle was made from the same UNet, and may be
    replaced.

    Raises:
        InvalidRequestError: it was not.
    """
    try:
        facts = read_manifest(folder).quantization
    except BundleError:  # there is none, or a damaged one
        return
    if facts is None or facts.network != network_hash(bundle.manifest, "unet"):
        raise InvalidRequestError(
            f"there is a bundle in {folder} already, which was made from another one; give the new "
            "one another place with --name or -o"
        )


def _chosen(
    bundle: Bundle,
    into: Format,
    samples: Sequence[Evaluation],
    max_error: float,
    report: Report,
    *,
    by_blocks: bool,
) -> tuple[Quantized, list[Sensitivity]]:
    """Which layers to quantise, and the scan that says so."""
    facts = bundle.manifest.components["unet"]
    path = bundle.file(facts.onnx)
    model = ir.load(path)
    layers = without_float32(quantizable_layers(model.graph, into), facts.float32)
    if not layers:
        raise ExportError(f"the UNet of '{bundle.manifest.name}' has no layer for {into.name}")
    report.start("measure activations")
    proto = onnx.load(path, load_external_data=False)
    names, inputs = activations_of(layers), [sample.inputs for sample in samples]
    measured = measure_ranges(proto, path.parent, names, inputs)
    ranges = measured.greatest
    fused = [layer for layer in layers if is_fused(layer, measured.shapes)]
    few = f"; {len(layers) - len(fused)} attentions have too few keys" if fused != layers else ""
    report.done(f"{len(ranges)} that {len(layers)} layers read{few}")
    layers = fused
    report.start("scan")
    by_noise = sorted(samples, key=lambda sample: sample.sigma)
    some = [by_noise[place] for place in np.linspace(0, len(samples) - 1, SAMPLES, dtype=int)]
    inputs = [sample.inputs for sample in some]
    told = _estimated(report)
    errors = scan(model, path, layers, ranges, into, inputs, told, by_blocks=by_blocks)
    rows = choose(layers, errors, max_error)
    left = sum(not row.is_quantized for row in rows)
    report.done(f"{len(rows) - left} layers to {into.name}, {left} left")
    return Quantized(into, [row.layer for row in rows if row.is_quantized], ranges), rows


def _estimated(report: Report) -> Callable[[int, int], None]:
    """Says once how long a scan takes, if that is long."""
    started = time.monotonic()

    def progress(done: int, of: int) -> None:
        minutes = (time.monotonic() - started) / done * (of - done) / 60
        if done == _FIRST and minutes > _LONG:
            report.note(
                f"the scan takes about {minutes:.0f} minutes more; with --by-blocks a tenth, and "
                "smaller images with --at make it faster"
            )

    return progress


def _check_bundle(manifest: Manifest) -> None:
    """Whether a bundle can be quantised. Raises ExportError."""
    why = None
    if manifest.quantization is not None:
        raise ExportError(
            f"'{manifest.name}' is {manifest.quantization.format} already; quantise "
            f"'{manifest.quantization.made_from}', which it was made from"
        )
    if manifest.baked.weights == "int8":
        why = "has int8 weights"
    elif manifest.precision == "bf16":
        why = "is bf16, which ONNX Runtime does not run on a CPU"
    elif is_inpainting(manifest.components["unet"].spec()):
        why = "is an inpainting model, for which kdrt has no calibration yet"
    elif manifest.family == "sdxl" and len(manifest.text_encoders) == 1:
        why = "is a refiner, for which kdrt has no calibration yet"
    if why is not None:
        raise ExportError(
            f"'{manifest.name}' {why}; quantise a bundle in float32 or float16 that makes images "
            f"from text, such as of `{manifest.export_command} --precision fp16`"
        )


def _check_number(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InvalidRequestError(f"{name} must be between {least:g} and {most:g}, not {value:g}")


def _link_rest(bundle: Bundle, manifest: Manifest, folder: Path) -> dict[str, str]:
    """Put the files of a bundle into the folder of a new one, but for those of the networks that
    are new there and what was built from the bundle. Returns their digests."""
    new = manifest.components
    kept = {graph for component in new.values() for graph in component.graphs}
    gone = set[str]()
    for name, component in bundle.manifest.components.items():
        if component != new[name]:
            gone.update(component.graphs)
    left_out = _weights(bundle, gone) - _weights(bundle, kept - gone)
    files = {
        name: digest
        for name, digest in bundle.manifest.files.items()
        if name not in gone and bundle.file(name) not in left_out
    }
    for name in files:
        link(bundle.file(name), folder / name)
    return files


def _weights(bundle: Bundle, graphs: Collection[str]) -> set[Path]:
    """The files with the weights of these graphs."""
    paths = [bundle.file(graph) for graph in graphs]
    found = [weight_files(onnx.load(path, load_external_data=False), path.parent) for path in paths]
    return set[Path]().union(*found)


def _told(loss: QuantizationLoss) -> str:
    """A loss as a line for people."""
    psnr = "equal images" if loss.psnr is None else f"{loss.psnr:.1f} dB"
    told = f"error of an evaluation {loss.error:.1e}, images {psnr}, SSIM {loss.ssim:.3f}"
    if loss.fidelity is not None and loss.fidelity_before is not None:
        told += f", prompt fidelity {loss.fidelity:.1%} (before: {loss.fidelity_before:.1%})"
    return told
