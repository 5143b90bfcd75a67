"""The whole export: source → verified ONNX → bundle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, cast

import torch

from kdrt._version import __version__ as kdrt_version
from kdrt.backends.loading import trust_program
from kdrt.backends.ort_cache import keep_optimized
from kdrt.bundle import (
    Baked,
    Bundle,
    Component,
    Dtype,
    Manifest,
    OrtGraphs,
    Precision,
    TensorInfo,
    Verification,
    check_new_bundle,
    folder_name,
    new_bundle,
    write_manifest,
)
from kdrt.bundle.components import DEEP_CACHE
from kdrt.common.home import check_home, home
from kdrt_engines.installed import installed_version
from kdrt_engines.spec import TensorSpec
from kdrt_export.components import ExportComponent
from kdrt_export.components.preview_decoder import load_preview_decoder
from kdrt_export.errors import ExportError
from kdrt_export.ip_adapter import IpAdapter
from kdrt_export.lora import LorasToBake
from kdrt_export.onnx.trace import OnnxFiles, onnx_from_component
from kdrt_export.programs import program_from_component
from kdrt_export.report import Report, Silent
from kdrt_export.scheduler import PREDICTIONS
from kdrt_export.sources import open_source
from kdrt_export.sources.part import short_name
from kdrt_export.sources.reading import refused
from kdrt_export.sources.replacement_unet import UNET, replace_unet
from kdrt_export.sources.replacement_vae import VAE, replacement_vae
from kdrt_export.sources.weights import is_checkpoint
from kdrt_export.verify import make_cases, sizes, verify_files
from kdrt_export.walk import Part, Walk

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TARGETS = ("onnxruntime", "torch")
_INT8 = ("unet", "text_encoder")
"""What begins so can have its weights as bytes. The VAE cannot: it is small, and whatever it gets
wrong is in the pixels at once."""
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")


def export(
    source: str,
    output: Path | None = None,
    *,
    name: str | None = None,
    precision: str = "auto",
    unet: str | None = None,
    vae: str | None = None,
    vae_precision: str = "auto",
    preview_decoder: str | None = None,
    targets: Sequence[str] = ("onnxruntime",),
    random_weights: bool = False,
    seed: int = 0,
    fuse_qkv: bool = True,
    loras: Sequence[tuple[Path, float]] = (),
    strict_loras: bool = False,
    safety_checker: bool | None = None,
    variants: Sequence[str] = (),
    weights: str = "float",
    ip_adapter: str | None = None,
    image_encoder: Path | None = None,
    allow_pickle: bool = False,
    revision: str | None = None,
    config: Path | None = None,
    prediction_type: str | None = None,
    report: Report | None = None,
) -> Path:
    """Export a model and return the bundle's folder.

    Args:
        source: see :func:`kdrt_export.sources.open_source`.
        output: the bundle's folder; by default one named after the model in the bundle home.
        name: the bundle's name; by default the source's.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``auto``: fp16 where a CUDA device is, else
            fp32, since a CPU gains nothing from the half precisions.
        unet: another UNet; see :func:`kdrt_export.sources.replacement_unet.replacement_unet`.
        vae: another VAE; see :func:`kdrt_export.sources.replacement_vae.replacement_vae`.
        vae_precision: of the VAE; see :func:`kdrt_export.sources.replacement_vae.vae_dtype`.
        preview_decoder: a tiny autoencoder that makes the previews; see
            :func:`kdrt_export.components.preview_decoder.load_preview_decoder`.
        targets: ``onnxruntime`` adds float32 networks as they are optimised for this CPU, which
            load faster; ``torch`` exported PyTorch programs, which run without diffusers.
        random_weights: the architecture alone, with weights drawn from ``seed``.
        fuse_qkv: concatenate attention projections.
        loras: files to merge into the weights, with their scales.
        strict_loras: refuse a LoRA if any part of it has no effect.
        safety_checker: export the model's safety checker; None does so if it has one.
        variants: what to keep besides: ``unfused-qkv``, or ``fused-qkv`` without ``fuse_qkv``;
            ``deepcache``, a shallow UNet beside the whole one.
        weights: ``float``, or ``int8``: those of UNets and text encoders as bytes, for size; see
            :mod:`kdrt_export.quantize.int8_weights`.
        ip_adapter: see :class:`kdrt_export.ip_adapter.IpAdapter`; kept as a variant.
        image_encoder: the folder of its image encoder.
        allow_pickle: accept pickled weights.
        revision: of a hub id.
        config: a diffusers folder that describes a single-file checkpoint.
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``, where the source does not
            say it or says it wrongly.
        report: told of every stage.

    Raises:
        ExportError: the source cannot be loaded, is not supported, or failed verification.
        InvalidRequestError: a bundle cannot have this name.
        OutputError: the bundle cannot be written. In every case the old bundle stays.
    """
    _check_choices(precision, targets, prediction_type)
    check_variants(variants, fuse_qkv)
    check_weights(weights, precision, targets)
    _check_choices(vae_precision, ())
    if precision == "auto":
        precision = "fp16" if torch.cuda.is_available() else "fp32"
    report = report or Silent()
    if output is not None or name is not None:  # before anything is downloaded
        check_new_bundle(output or _named(name or ""))
    check_home()
    adapter = (
        None
        if ip_adapter is None
        else IpAdapter(ip_adapter, image_encoder, allow_pickle=allow_pickle)
    )
    baked_loras = LorasToBake(loras, strict=strict_loras, allow_pickle=allow_pickle)
    report.start(f"open {source}")
    # What replaces a part is found first: the model itself may be a download of gigabytes.
    unet_place = None if unet is None else UNET.find(unet, allow_pickle=allow_pickle)
    vae_place = None if vae is None else VAE.find(vae, allow_pickle=allow_pickle)
    tiny = (
        None
        if preview_decoder is None
        else load_preview_decoder(preview_decoder, allow_pickle=allow_pickle)
    )
    opened = open_source(
        source,
        revision=revision,
        allow_pickle=allow_pickle,
        config=config,
        random_weights=random_weights,
        seed=seed,
        without=_unused(unet, vae, safety_checker),
    )
    if unet is not None:
        replace_unet(opened, str(unet_place), allow_pickle=allow_pickle)
        opened.origin = f"{opened.origin} with the UNet {short_name(unet)}"
        file = Path(short_name(unet).rpartition(":")[2])
        opened.name = f"{opened.name}-{file.stem if is_checkpoint(file.name) else file.name}"
    if vae is not None:
        opened.replacements["vae"] = replacement_vae(
            str(vae_place), opened.config("vae"), allow_pickle=allow_pickle
        )
    opened.check(safety_checker=safety_checker is not False)
    name = opened.name if name is None else name
    if prediction_type is not None:
        opened.scheduler = {**opened.scheduler, "prediction_type": prediction_type}
    predicts = opened.scheduler.get("prediction_type", "epsilon")
    report.done(f"{opened.kind or opened.family}, {predicts}, {precision}")
    if opened.remark and prediction_type is None:
        report.note(opened.remark)
    folder = output or _named(name)
    with new_bundle(folder) as partial:
        walk = Walk(
            source=opened,
            folder=partial,
            dtype=PRECISIONS[precision],
            fuse_qkv=fuse_qkv,
            loras=baked_loras,
            report=report,
            vae_dtype=PRECISIONS.get(vae_precision),
            safety_checker=safety_checker,
            fusings=[variant for variant in variants if variant != DEEP_CACHE],
            deep_cache=DEEP_CACHE in variants,
            ip_adapter=adapter,
            tiny=tiny,
        )
        components = {
            part.name: _export_part(part, partial, targets, report, weights == "int8")
            for part in walk.parts()
        }
        report.start("manifest")
        manifest = write_manifest(
            partial,
            Manifest(
                family=opened.family,
                name=name,
                source=opened.origin,
                revision=opened.revision,
                precision=cast(Precision, precision),
                components=components,
                scheduler=walk.scheduler,
                text_encoders=tuple(walk.encoders),
                latents=walk.latents,
                zeros_for_empty_negative=opened.zeros_for_empty_negative,
                default_guidance_scale=opened.default_guidance_scale,
                baked=Baked(
                    fused_qkv=fuse_qkv,
                    freeu=True,
                    loras=walk.baked_loras,
                    vae=short_name(vae) if vae else None,
                    preview_decoder=preview_decoder,
                    weights=cast(Literal["float", "int8"], weights),
                ),
                variants=walk.variants,
                ip_adapter=walk.ip_facts,
                tools=_tool_versions(),
            ),
        )
        report.done()
        bundle = Bundle(partial, manifest)
        for component in components:
            trust_program(bundle, component)
        if "onnxruntime" in targets:
            keep_optimized(bundle, components, report)
    return folder


def _named(name: str) -> Path:
    """The folder of the bundle of a name."""
    return home() / "bundles" / folder_name(name)


def _export_part(
    part: Part, folder: Path, targets: Sequence[str], report: Report, int8: bool = False
) -> Component:
    component = part.component
    int8 = int8 and part.name.startswith(_INT8)
    own_precision = next(name for name, dtype in PRECISIONS.items() if dtype == part.dtype)
    report.start(f"{part.name}: eager reference")
    with refused(f"{part.name} cannot be run as its configuration describes it"):
        cases = make_cases(component, part.verified)
        neutral = bool(component.neutral)
        neutral_cases = make_cases(component, part.verified, neutral=True) if neutral else []
    report.done()

    report.start(f"{part.name}: trace")
    component.rewrite()
    component.cast(part.dtype)
    parameters = sum(p.numel() for p in component.parameters())
    files = onnx_from_component(
        component, part.traced, folder / "onnx" / part.name, int8_weights=int8
    )
    report.done(f"{parameters / 1e6:,.1f} M parameters")
    if "torch" in targets:
        report.start(f"{part.name}: torch program")
        program = folder / "engines" / "torch" / f"{part.name}.pt2"
        program_from_component(component, part.traced, program)
        report.done()

    if own_precision != "bf16":
        component.to("meta")  # the file is verified, beside whose weights a second copy may not fit

    report.start(f"{part.name}: verify")
    figures = verify_files(
        part.name, component, files, cases, neutral_cases, own_precision, int8_weights=int8
    )
    report.done(f"relative error {_worst(figures)}")
    return Component(
        onnx=files.standard.relative_to(folder).as_posix(),
        onnxruntime=_ort_graphs(component, files, folder),
        inputs=tuple(_info(tensor) for tensor in component.spec.inputs),
        outputs=tuple(_info(tensor) for tensor in component.spec.outputs),
        parameters=parameters,
        verification=tuple(figures),
    )


def _worst(figures: Sequence[Verification]) -> str:
    """The largest error at each set of sizes, over all graphs."""
    errors: dict[str, float] = {}
    for figure in figures:
        at = sizes(figure.dims)
        errors[at] = max(errors.get(at, 0.0), figure.relative_error)
    return ", ".join(f"{error:.1e} at {at}" for at, error in errors.items())


def _ort_graphs(component: ExportComponent, files: OnnxFiles, folder: Path) -> OrtGraphs:
    def relative(file: Path | None) -> str | None:
        return None if file is None else file.relative_to(folder).as_posix()

    return OrtGraphs(
        fused=files.fused.relative_to(folder).as_posix(),
        cpu=relative(files.cpu),
        plain=relative(files.plain),
        invariants=relative(files.invariants),
        neutral=dict(component.neutral),
        multiples=dict(component.multiples) if files.plain else {},
    )


def _check_choices(precision: str, targets: Sequence[str], prediction: str | None = None) -> None:
    if prediction not in (None, *PREDICTIONS):
        raise ExportError(f"{prediction!r} is no prediction type; choose {', '.join(PREDICTIONS)}")
    if precision not in ("auto", *PRECISIONS):
        raise ExportError(f"'{precision}' is no precision; choose auto, {', '.join(PRECISIONS)}")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ExportError(f"'{unknown[0]}' is no target; choose {' or '.join(TARGETS)}")


def check_weights(weights: str, precision: str, targets: Sequence[str]) -> None:
    """Raises ExportError: weights cannot be stored like that, or not for this."""
    if weights not in ("float", "int8"):
        raise ExportError(f"weights cannot be stored as '{weights}'; choose float or int8")
    if weights == "int8" and "torch" in targets:
        raise ExportError(
            "int8 weights are for the ONNX files, and a torch program holds its own; leave out "
            "--target torch or --weights int8"
        )
    if weights == "int8" and precision == "bf16":
        raise ExportError(
            "int8 weights in bf16 could not be verified, since ONNX Runtime has no bfloat16 on a "
            "CPU; choose --precision fp32 or fp16"
        )


def check_variants(variants: Sequence[str], fuse_qkv: bool) -> None:
    """Raises ExportError: a variant is unknown, or is what the bundle holds anyway."""
    possible = "unfused-qkv" if fuse_qkv else "fused-qkv"
    for variant in variants:
        if variant not in (possible, DEEP_CACHE):
            raise ExportError(
                f"'{variant}' is no variant of an export {'with' if fuse_qkv else 'without'} fused "
                f"projections; choose {possible} or {DEEP_CACHE}"
            )


def _unused(unet: str | None, vae: str | None, safety_checker: bool | None) -> Collection[str]:
    """The parts of a source whose weights are not read."""
    parts = {"unet": unet is not None, "vae": vae is not None}
    parts["safety_checker"] = safety_checker is False
    return [name for name, unused in parts.items() if unused]


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=cast(Dtype, tensor.dtype), shape=tensor.shape)


def _tool_versions() -> dict[str, str]:
    return {"kdrt": kdrt_version} | {
        tool: found for tool in _TOOLS if (found := installed_version(tool))
    }
