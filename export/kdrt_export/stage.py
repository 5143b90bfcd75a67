"""The whole export: source → verified ONNX → bundle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from kdrt._version import __version__ as kdrt_version
from kdrt.bundle import (
    Baked,
    BakedLora,
    Bundle,
    Component,
    IpAdapterFacts,
    LatentFacts,
    Manifest,
    OrtGraphs,
    Precision,
    SchedulerFacts,
    TensorInfo,
    TextEncoderFacts,
    Verification,
    home,
    new_bundle,
    write_manifest,
)
from kdrt.ort_graphs import keep_optimized
from kdrt.shortcuts import DEEP_CACHE, SHALLOW_UNET
from kdrt_engines.spec import TensorSpec
from kdrt_export.components import (
    ExportComponent,
    ExportTextEncoder,
    ExportUNet,
    ExportVaeDecoder,
    ExportVaeEncoder,
    latent_size,
    vae_scale,
    vae_tile,
)
from kdrt_export.errors import ExportError, UnsupportedModel
from kdrt_export.ip_adapter import VARIANT as IP_ADAPTER
from kdrt_export.ip_adapter import ExportImageEncoder, IpAdapter
from kdrt_export.lora import LorasToBake
from kdrt_export.preview_decoder import ExportPreviewDecoder, load_preview_decoder
from kdrt_export.preview_factors import Factors, preview_factors
from kdrt_export.programs import program_from_component
from kdrt_export.replacement_vae import replacement_vae, vae_dtype, vae_name
from kdrt_export.report import Report, Silent
from kdrt_export.shallow_unet import ExportShallowUNet
from kdrt_export.sources import Source, download_files, open_source
from kdrt_export.tokenizers import write_text_files
from kdrt_export.trace import OnnxFiles, onnx_from_component
from kdrt_export.verify import make_cases, sizes, verify_files
from kdrt_export.vision import ExportSafetyChecker

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Network = TypeVar("Network", bound=torch.nn.Module)
TARGETS = ("onnxruntime", "torch")
_INT8 = ("unet", "text_encoder")
"""What begins so can have its weights as bytes. The VAE cannot: it is small, and whatever it gets
wrong is in the pixels at once."""
_VAE_TRACED = {"B": 1, "h": 6, "w": 5}
_VAE_VERIFIED = [{"B": 2, "h": 8, "w": 12}, {"B": 1, "h": 9, "w": 7}]
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")


def export(
    source: str,
    output: Path | None = None,
    *,
    name: str | None = None,
    precision: str = "auto",
    vae: str | None = None,
    vae_precision: str = "auto",
    preview_decoder: str | None = None,
    targets: Sequence[str] = ("onnxruntime",),
    random_weights: bool = False,
    seed: int = 0,
    fuse_qkv: bool = True,
    loras: Sequence[tuple[Path, float]] = (),
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
        preview_decoder: a tiny autoencoder that makes the previews; see
            :func:`kdrt_export.preview_decoder.load_preview_decoder`.
        targets: ``onnxruntime`` adds float32 networks as they are optimised for this CPU, which
            load faster; ``torch`` exported PyTorch programs, which run without diffusers.
        random_weights: the architecture alone, with weights drawn from ``seed``.
        fuse_qkv: concatenate attention projections.
        loras: files to merge into the weights, with their scales.
        safety_checker: export the model's safety checker; None does so if it has one.
        variants: what to keep besides: ``unfused-qkv``, or ``fused-qkv`` without ``fuse_qkv``;
            ``deepcache``, a shallow UNet beside the whole one.
        weights: ``float``, or ``int8``: those of UNets and text encoders as bytes, for size; see
            :mod:`kdrt_export.int8_weights`.
        ip_adapter: see :class:`kdrt_export.ip_adapter.IpAdapter`; kept as a variant.
        image_encoder: the folder of its image encoder.
        allow_pickle: accept pickled weights.
        revision: of a hub id.
        config: a diffusers folder that describes a single-file checkpoint.
        prediction_type: ``epsilon`` or ``v_prediction``, where the source does not say it or says
            it wrongly.
        report: told of every stage.

    Raises:
        ExportError: the source cannot be loaded, is not supported, or failed verification.
        OutputError: the bundle cannot be written. In every case the old bundle stays.
    """
    _check_choices(precision, targets)
    check_variants(variants, fuse_qkv)
    check_weights(weights, precision, targets)
    _check_choices(vae_precision, ())
    if precision == "auto":
        precision = "fp16" if torch.cuda.is_available() else "fp32"
    report = report or Silent()
    adapter = None if ip_adapter is None else IpAdapter(ip_adapter, image_encoder)
    baked_loras = LorasToBake(loras, allow_pickle=allow_pickle)
    report.start(f"open {source}")
    opened = open_source(
        source,
        revision=revision,
        allow_pickle=allow_pickle,
        config=config,
        random_weights=random_weights,
        seed=seed,
    )
    name = name or opened.name
    if prediction_type is not None:
        opened.scheduler = {**opened.scheduler, "prediction_type": prediction_type}
    predicts = opened.scheduler.get("prediction_type", "epsilon")
    report.done(f"{opened.kind or opened.family}, {predicts}, {precision}")
    if opened.remark and prediction_type is None:
        report.note(opened.remark)
    folder = output or home() / "bundles" / name.replace("/", "--")
    with new_bundle(folder) as partial:
        job = _Job(opened, partial, PRECISIONS[precision], fuse_qkv, baked_loras, report)
        job.with_safety_checker = safety_checker
        job.vae_precision = PRECISIONS.get(vae_precision)
        if vae is not None:
            job.load_vae = lambda: replacement_vae(
                vae, opened.vae, download_files, allow_pickle=allow_pickle
            )
        job.variants = {variant: {} for variant in variants if variant != DEEP_CACHE}
        job.deep_cache = DEEP_CACHE in variants
        job.ip_adapter = adapter
        if preview_decoder is not None:
            job.tiny = load_preview_decoder(preview_decoder, download_files)
        components = {
            part.name: _export_part(part, partial, targets, report, weights == "int8")
            for part in job.parts()
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
                scheduler=job.scheduler,
                text_encoders=tuple(job.encoders),
                latents=job.latents,
                zeros_for_empty_negative=opened.zeros_for_empty_negative,
                default_guidance_scale=opened.default_guidance_scale,
                baked=Baked(
                    fused_qkv=fuse_qkv,
                    freeu=True,
                    loras=job.baked_loras,
                    vae=vae_name(vae) if vae else None,
                    preview_decoder=preview_decoder,
                    weights=cast(Literal["float", "int8"], weights),
                ),
                variants=job.variants,
                ip_adapter=job.ip_facts,
                tools=_tool_versions(),
            ),
        )
        report.done()
        if "onnxruntime" in targets:
            keep_optimized(Bundle(partial, manifest), components, report)
    return folder


@dataclass(frozen=True)
class _Part:
    """One component to export: the sizes to trace at, those to verify at, and its dtype."""

    name: str
    component: ExportComponent
    traced: dict[str, int]
    verified: list[dict[str, int]]
    dtype: torch.dtype


class _Job:
    """Walks a source, one network in memory at a time, and gathers the manifest's facts."""

    latents: LatentFacts
    load_vae: Callable[[], AutoencoderKL]
    vae_precision: torch.dtype | None = None
    baked_loras: tuple[BakedLora, ...]
    with_safety_checker: bool | None = None
    preview: Factors
    variants: dict[str, dict[str, str]]
    deep_cache = False
    ip_adapter: IpAdapter | None
    ip_facts: IpAdapterFacts | None = None
    tiny: AutoencoderTiny | None = None

    def __init__(
        self,
        source: Source,
        folder: Path,
        dtype: torch.dtype,
        fuse_qkv: bool,
        loras: LorasToBake,
        report: Report,
    ) -> None:
        self.source, self.folder, self.dtype = source, folder, dtype
        self.fuse_qkv, self.loras, self.report = fuse_qkv, loras, report
        self.load_vae = source.vae
        self.encoders: list[TextEncoderFacts] = []
        self.scheduler = scheduler_facts(source.scheduler, report)

    def parts(self) -> Iterator[_Part]:
        for index in self.source.encoder_indices:
            yield self._text_encoder(index)
        if self.with_safety_checker is not False:
            yield from self._safety_checker()
        self.report.start("vae: load")
        vae = self.load_vae()
        dtype = vae_dtype(vae, self.dtype, self.vae_precision, self.report)
        self.preview = preview_factors(vae)
        self.report.done()
        for variant, network, fuse in self._fusings(vae):
            decoder = ExportVaeDecoder(network, fuse_qkv=fuse)
            encoder = ExportVaeEncoder(network, fuse_qkv=fuse)
            for name, part in (("vae_decoder", decoder), ("vae_encoder", encoder)):
                named = self._named(name, variant)
                yield _Part(named, part, _VAE_TRACED, _VAE_VERIFIED, dtype)
        scale, channels = vae_scale(vae), vae.config.latent_channels
        self.vae_tile = vae_tile(vae)
        del vae, network, decoder, encoder, part  # the UNet is next, and largest
        if self.tiny is not None:
            tiny = ExportPreviewDecoder(self.tiny, channels=channels, scale=scale)
            yield _Part("preview_decoder", tiny, _VAE_TRACED, _VAE_VERIFIED, self.dtype)
        yield from self._unet(scale)

    def _text_encoder(self, index: int) -> _Part:
        name = f"text_encoder{f'_{index + 1}' if index else ''}"
        self.report.start(f"{name}: load")
        model = self.source.text_encoder(index)
        self.loras.merge(name, model)
        facts = write_text_files(
            self.folder, index, self.source.tokenizer(index), model, self.source.family, self.dtype
        )
        self.encoders.append(facts)
        component = ExportTextEncoder(model, normalize=facts.normalized, fuse_qkv=self.fuse_qkv)
        self.report.done()
        return _Part(
            name,
            component,
            {"B": 2, "L": 9},
            [{"B": 1, "L": facts.max_length}, {"B": 3, "L": 12}],
            self.dtype,
        )

    def _safety_checker(self) -> Iterator[_Part]:
        checker = self.source.safety_checker()
        if checker is not None:
            component = ExportSafetyChecker(checker)
            yield _Part("safety_checker", component, {"B": 2}, [{"B": 1}, {"B": 3}], self.dtype)
        elif self.with_safety_checker:
            raise ExportError(
                f"'{self.source.name}' has no safety checker; leave out --safety-checker, or "
                "give kdrt an image_filter of your own"
            )

    def _unet(self, scale: int) -> Iterator[_Part]:
        self.report.start("unet: load")
        unet = self.source.unet()
        self.loras.merge("unet", unet)
        self.baked_loras = self.loras.baked(self.report)
        channels = unet.config.out_channels
        height, width = latent_size(unet)
        self.latents = LatentFacts(
            channels=channels,
            scale=scale,
            default_height=height * scale,
            default_width=width * scale,
            vae_tile=self.vae_tile,
            preview=self.preview,
        )
        if unet.config.in_channels not in (channels, 2 * channels + 1):
            raise UnsupportedModel(
                f"this UNet takes {unet.config.in_channels} channels for latents of {channels}; "
                f"kdrt exports text-to-image models ({channels}) and inpainting models "
                f"({2 * channels + 1})"
            )
        self.report.done()
        length = self.encoders[0].max_length
        verified = [
            {"B": 1, "h": 16, "w": 8, "L": length},
            {"B": 3, "h": 9, "w": 15, "L": 2 * length},
        ]
        traced = {"B": 2, "h": 12, "w": 10, "L": 7}
        time_ids = 5 if self.source.is_refiner else 6
        if self.ip_adapter is not None:
            network = copy.deepcopy(unet)
            yield from self._image_prompt(self.ip_adapter, network)
            tokens = self.ip_facts.tokens if self.ip_facts else None
            component = ExportUNet(
                network, fuse_qkv=self.fuse_qkv, ip_tokens=tokens, time_ids=time_ids
            )
            self.variants[IP_ADAPTER] = {}
            named = self._named("unet", IP_ADAPTER)
            yield _Part(named, component, traced, verified, self.dtype)
        if self.deep_cache:
            shallow = ExportShallowUNet(unet, fuse_qkv=self.fuse_qkv, time_ids=time_ids)
            yield _Part(SHALLOW_UNET, shallow, traced, verified, self.dtype)
        for variant, network, fuse in self._fusings(unet):
            component = ExportUNet(
                network, fuse_qkv=fuse, time_ids=time_ids, deep_feature=self.deep_cache
            )
            yield _Part(self._named("unet", variant), component, traced, verified, self.dtype)

    def _image_prompt(self, adapter: IpAdapter, unet: Any) -> Iterator[_Part]:
        """What comes before the UNet, which gets its attention to images here."""
        projection, encoder = adapter.attach(unet), adapter.encoder()
        self.ip_facts = adapter.facts(projection, encoder)
        verified = [{"B": 1}, {"B": 3}]
        yield _Part("image_projection", projection, {"B": 2}, verified, self.dtype)
        if encoder is not None:
            component = ExportImageEncoder(encoder)
            yield _Part("image_encoder", component, {"B": 2}, verified, self.dtype)

    def _fusings(self, network: Network) -> Iterator[tuple[str | None, Network, bool]]:
        """A network as it is exported, and before that a copy for the other way to project."""
        for variant in [name for name in self.variants if name != IP_ADAPTER]:
            yield variant, copy.deepcopy(network), not self.fuse_qkv
        yield None, network, self.fuse_qkv

    def _named(self, name: str, variant: str | None) -> str:
        """The component's name, after making a note of which one it stands in for."""
        if variant is None:
            return name
        self.variants[variant] = {**self.variants[variant], name: f"{name}-{variant}"}
        return f"{name}-{variant}"


def _export_part(
    part: _Part, folder: Path, targets: Sequence[str], report: Report, int8: bool = False
) -> Component:
    component = part.component
    int8 = int8 and part.name.startswith(_INT8)
    own_precision = next(name for name, dtype in PRECISIONS.items() if dtype == part.dtype)
    report.start(f"{part.name}: eager reference")
    cases = make_cases(component, part.verified)
    neutral_cases = make_cases(component, part.verified, neutral=True) if component.neutral else []
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


def scheduler_facts(config: dict[str, Any], report: Report) -> SchedulerFacts:
    """Resolve a scheduler file as the removed pipelines did: what it does not say is the default
    of diffusers' LMSDiscreteScheduler, whatever scheduler it names.

    Raises:
        UnsupportedModel: the model predicts neither noise nor velocity.
    """
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise UnsupportedModel(
            f"this model predicts '{prediction}'; kdrt exports epsilon and v_prediction models"
        )
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    if zero_snr and prediction == "epsilon":
        zero_snr = False
        report.note(
            "rescale_betas_zero_snr is ignored, as the removed pipelines did: a model that "
            "predicts noise (epsilon) cannot begin at noise alone; if this one predicts velocity, "
            "set prediction_type to v_prediction in scheduler_config.json"
        )
    if zero_snr:
        report.note(
            "rescale_betas_zero_snr: sigma begins at 4096; schedules of training timesteps, such "
            "as trailing or sgm_uniform, suit that"
        )
    return SchedulerFacts(
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        beta_schedule=config.get("beta_schedule", "linear"),
        trained_betas=config.get("trained_betas"),
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        prediction_type=prediction,
        timestep_spacing=config.get("timestep_spacing", "linspace"),
        steps_offset=config.get("steps_offset", 0),
        use_karras_sigmas=bool(config.get("use_karras_sigmas")),
        use_exponential_sigmas=bool(config.get("use_exponential_sigmas")),
        use_beta_sigmas=bool(config.get("use_beta_sigmas")),
        rescale_betas_zero_snr=zero_snr,
        explicit=tuple(sorted(key for key in config if not key.startswith("_"))),
    )


def _check_choices(precision: str, targets: Sequence[str]) -> None:
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


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def _tool_versions() -> dict[str, str]:
    return {"kdrt": kdrt_version} | {tool: version(tool) for tool in _TOOLS}
