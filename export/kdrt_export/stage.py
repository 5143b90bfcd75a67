"""The whole export: source → verified ONNX → bundle."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, cast

import torch

from kdrt._version import __version__ as kdrt_version
from kdrt.backends.ort_cache import keep_optimized
from kdrt.backends.torch_programs import trust_program
from kdrt.bundle import (
    Baked,
    Bundle,
    Component,
    Manifest,
    Precision,
    check_new_bundle,
    folder_name,
    new_bundle,
    write_manifest,
)
from kdrt.bundle.components import DEEP_CACHE, PAG
from kdrt.common.home import check_home, home
from kdrt_engines.installed import installed_version
from kdrt_export.component_export import export_component
from kdrt_export.components.preview_decoder import load_preview_decoder
from kdrt_export.control import (
    Control,
    add_controls,
    find_controls,
    unet_of_source,
    with_own_weights,
)
from kdrt_export.ip_adapter import open_adapters
from kdrt_export.keep_fp32 import KeepFp32, kept_in_float32
from kdrt_export.lora import LorasToBake
from kdrt_export.options import (
    PRECISIONS,
    check_choices,
    check_variants,
    check_weights,
    perturbed_layers,
)
from kdrt_export.report import Report, Silent
from kdrt_export.sources import open_source
from kdrt_export.sources.part import short_name
from kdrt_export.sources.replacement_unet import UNET, replace_unet
from kdrt_export.sources.replacement_vae import VAE, replacement_vae
from kdrt_export.sources.weight_files import is_checkpoint
from kdrt_export.upscaler import add_upscalers, open_upscalers
from kdrt_export.walk import Walk

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
    pag_layers: Sequence[str] = (),
    weights: str = "float",
    ip_adapter: str | Sequence[str] = (),
    image_encoder: str | Path | None = None,
    controlnets: Sequence[str] = (),
    t2i_adapters: Sequence[str] = (),
    upscalers: Sequence[str] = (),
    keep_fp32: Sequence[str] = (),
    allow_pickle: bool = False,
    revision: str | None = None,
    config: Path | None = None,
    prediction_type: str | None = None,
    report: Report | None = None,
) -> Path:
    """Export a model and return the bundle's folder.

    Args:
        source: see :func:`kdrt_export.sources.open_source`.
        output: the bundle's folder; None for one named after the model, among the named bundles.
        name: the bundle's name; None for the name of the source.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``auto``: fp16 if there is a CUDA device,
            otherwise fp32, because a CPU gains nothing from half precision.
        unet: another UNet; see :func:`kdrt_export.sources.replacement_unet.replacement_unet`.
        vae: another VAE; see :func:`kdrt_export.sources.replacement_vae.replacement_vae`.
        vae_precision: precision of the VAE; see
            :func:`kdrt_export.sources.replacement_vae.vae_dtype`.
        preview_decoder: a tiny autoencoder that makes the previews; see
            :func:`kdrt_export.components.preview_decoder.load_preview_decoder`.
        targets: ``onnxruntime`` adds the float32 networks as optimised for this CPU, which load
            faster; ``torch`` adds exported PyTorch programs, which run without diffusers.
        random_weights: export only the architecture, with weights drawn from ``seed``.
        seed: seed of the random weights.
        fuse_qkv: concatenate the attention projections.
        loras: files to merge into the weights, with their scales.
        strict_loras: refuse a LoRA if any part of it has no effect.
        safety_checker: export the model's safety checker; None does so if the model has one.
        variants: further forms of the networks to keep: ``unfused-qkv``, or ``fused-qkv`` without
            ``fuse_qkv``; ``deepcache``, a shallow UNet beside the whole one; ``pag``, a UNet for
            perturbed-attention guidance.
        pag_layers: for ``pag``, the self-attentions to perturb; by default those of the middle
            block. See :func:`kdrt_export.components.perturbed_unet.self_attentions`.
        weights: ``float``, or ``int8``, which stores the weights of UNets and text encoders as
            bytes to save space; see :mod:`kdrt_export.quantize.int8_weights`.
        ip_adapter: one or several IP-Adapters, in the form that
            :class:`kdrt_export.sources.ip_adapter.IpAdapterOption` describes; kept as a variant.
        image_encoder: the folder of their image encoder, or ``owner/name:folder`` on the hub.
        controlnets: ControlNets, as ``SOURCE`` or ``SOURCE:NAME``; if there are any, a variant of
            the UNet takes their residuals. See :mod:`kdrt_export.control`.
        t2i_adapters: T2I-Adapters, likewise.
        upscalers: networks that enlarge images between two passes, as ``FILE`` or ``FILE:NAME``;
            see :mod:`kdrt_export.upscaler`.
        keep_fp32: modules of float16 networks to keep in float32: patterns, each as
            ``[COMPONENT:]GLOB``, or ``auto``; see :mod:`kdrt_export.float32_search`.
        allow_pickle: accept pickled weights.
        revision: branch, tag or commit of a hub id.
        config: a diffusers folder that describes a single-file checkpoint.
        prediction_type: ``epsilon``, ``v_prediction`` or ``sample``, if the source does not say so
            or says it wrongly.
        report: is told about every stage.

    Raises:
        ExportError: the source cannot be loaded, is not supported, or failed verification.
        InvalidRequestError: a bundle cannot have this name.
        OutputError: the bundle cannot be written. In every case the old bundle stays.
    """
    check_choices(precision, targets, prediction_type)
    check_variants(variants, fuse_qkv)
    perturbed = perturbed_layers(variants, pag_layers)
    check_weights(weights, precision, targets)
    check_choices(vae_precision, ())
    if precision == "auto":
        precision = "fp16" if torch.cuda.is_available() else "fp32"
    keep = kept_in_float32(keep_fp32, precision, vae_precision, targets)
    report = report or Silent()
    if output is not None or name is not None:  # before anything is downloaded
        check_new_bundle(output or _named(name or ""))
    check_home()
    adapters = open_adapters(
        [ip_adapter] if isinstance(ip_adapter, str) else ip_adapter,
        image_encoder,
        allow_pickle=allow_pickle,
    )
    baked_loras = LorasToBake(loras, strict=strict_loras, allow_pickle=allow_pickle)
    report.start(f"open {source}")
    control_sources = find_controls(
        controlnets, t2i_adapters, weights=weights, allow_pickle=allow_pickle
    )
    enlarging = open_upscalers(upscalers, allow_pickle=allow_pickle)
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
    # Before the hour that the model may take.
    controls = [
        Control(each, unet_of_source(opened), allow_pickle=allow_pickle) for each in control_sources
    ]
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
            fusings=[variant for variant in variants if variant not in (DEEP_CACHE, PAG)],
            deep_cache=DEEP_CACHE in variants,
            pag_layers=perturbed,
            ip_adapters=adapters,
            tiny=tiny,
        )
        components: dict[str, Component] = {}
        for part in walk.parts():
            kept = keep if part.beside is None else KeepFp32.again(components[part.beside])
            components[part.name] = export_component(
                part, partial, targets, report, weights == "int8", kept
            )
        keep.check_all_matched()
        manifest = Manifest(
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
            ip_adapters=walk.ip_facts,
            ip_attentions=walk.ip_attentions,
            pag_layers=walk.perturbed,
            tools=_tool_versions(),
        )
        if controls:
            manifest = add_controls(partial, manifest, controls, targets, report)
        manifest = add_upscalers(partial, manifest, enlarging, targets, report)
        report.start("manifest")
        manifest = write_manifest(partial, manifest)
        report.done()
        bundle = Bundle(partial, manifest)
        for component in manifest.components:
            trust_program(bundle, component)
        if "onnxruntime" in targets:
            keep_optimized(bundle, with_own_weights(manifest, manifest.components), report)
    return folder


def _named(name: str) -> Path:
    """The folder of the bundle of a name."""
    return home() / "bundles" / folder_name(name)


def _unused(unet: str | None, vae: str | None, safety_checker: bool | None) -> Collection[str]:
    """The parts of a source whose weights are not read."""
    parts = {"unet": unet is not None, "vae": vae is not None}
    parts["safety_checker"] = safety_checker is False
    return [name for name, unused in parts.items() if unused]


def _tool_versions() -> dict[str, str]:
    return {"kdrt": kdrt_version} | {
        tool: found for tool in _TOOLS if (found := installed_version(tool))
    }
