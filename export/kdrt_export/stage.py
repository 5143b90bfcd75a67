"""The whole export: source → verified ONNX → bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL

from kdrt._version import __version__ as kdrt_version
from kdrt.bundle import (
    Baked,
    Component,
    LatentFacts,
    Manifest,
    Precision,
    SchedulerFacts,
    TensorInfo,
    TextEncoderFacts,
    home,
    new_bundle,
    write_manifest,
)
from kdrt_engines.spec import TensorSpec
from kdrt_export.components import (
    ExportComponent,
    ExportTextEncoder,
    ExportUNet,
    ExportVaeDecoder,
    ExportVaeEncoder,
    vae_scale,
)
from kdrt_export.errors import ExportError, UnsupportedModel
from kdrt_export.programs import program_from_component
from kdrt_export.report import Report, Silent
from kdrt_export.sources import Source, open_source
from kdrt_export.tokenizers import write_text_files
from kdrt_export.trace import onnx_from_component
from kdrt_export.verify import make_cases, sizes, verification_engine, verify

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TARGETS = ("onnxruntime", "torch")
_VAE_TRACED = {"B": 1, "h": 6, "w": 5}
_VAE_VERIFIED = [{"B": 2, "h": 8, "w": 12}, {"B": 1, "h": 9, "w": 7}]
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxruntime")


def export(
    source: str,
    output: Path | None = None,
    *,
    name: str | None = None,
    precision: str = "auto",
    targets: Sequence[str] = ("onnxruntime",),
    random_weights: bool = False,
    seed: int = 0,
    fuse_qkv: bool = True,
    allow_pickle: bool = False,
    revision: str | None = None,
    config: Path | None = None,
    report: Report | None = None,
) -> Path:
    """Export a model and return the bundle's folder.

    Args:
        source: see :func:`kdrt_export.sources.open_source`.
        output: the bundle's folder; by default one named after the model in the bundle home.
        name: the bundle's name; by default the source's.
        precision: ``fp32``, ``fp16``, ``bf16``, or ``auto``: fp16 where a CUDA device is, else
            fp32, since a CPU gains nothing from the half precisions.
        targets: ``onnxruntime`` needs nothing beyond the ONNX files; ``torch`` adds exported
            PyTorch programs, which run without diffusers.
        random_weights: the architecture alone, with weights drawn from ``seed``.
        fuse_qkv: concatenate attention projections.
        allow_pickle: accept pickled weights.
        revision: of a hub id.
        config: a diffusers folder that describes a single-file checkpoint.
        report: told of every stage.

    Raises:
        ExportError: the source cannot be loaded, is not supported, or failed verification.
        OutputError: the bundle cannot be written. In every case the old bundle stays.
    """
    _check_choices(precision, targets)
    if precision == "auto":
        precision = "fp16" if torch.cuda.is_available() else "fp32"
    report = report or Silent()
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
    report.done(f"{opened.family}, {precision}")
    folder = output or home() / "bundles" / name.replace("/", "--")
    with new_bundle(folder) as partial:
        job = _Job(opened, partial, PRECISIONS[precision], fuse_qkv, report)
        components = {
            part.name: _export_part(part, partial, precision, targets, report)
            for part in job.parts()
        }
        report.start("manifest")
        write_manifest(
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
                baked=Baked(fused_qkv=fuse_qkv, freeu=True),
                tools=_tool_versions(),
            ),
        )
        report.done()
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

    def __init__(
        self, source: Source, folder: Path, dtype: torch.dtype, fuse_qkv: bool, report: Report
    ) -> None:
        self.source, self.folder, self.dtype = source, folder, dtype
        self.fuse_qkv, self.report = fuse_qkv, report
        self.encoders: list[TextEncoderFacts] = []
        self.scheduler = scheduler_facts(source.scheduler, report)

    def parts(self) -> Iterator[_Part]:
        for index in range(self.source.text_encoders):
            yield self._text_encoder(index)
        self.report.start("vae: load")
        vae = self.source.vae()
        dtype = self._vae_dtype(vae)
        self.report.done()
        decoder = ExportVaeDecoder(vae, fuse_qkv=self.fuse_qkv)
        encoder = ExportVaeEncoder(vae, fuse_qkv=self.fuse_qkv)
        yield _Part("vae_decoder", decoder, _VAE_TRACED, _VAE_VERIFIED, dtype)
        yield _Part("vae_encoder", encoder, _VAE_TRACED, _VAE_VERIFIED, dtype)
        scale = vae_scale(vae)
        del vae, decoder, encoder  # the UNet is next, and largest
        yield self._unet(scale)

    def _text_encoder(self, index: int) -> _Part:
        name = f"text_encoder{f'_{index + 1}' if index else ''}"
        self.report.start(f"{name}: load")
        model = self.source.text_encoder(index)
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

    def _unet(self, scale: int) -> _Part:
        self.report.start("unet: load")
        unet = self.source.unet()
        component = ExportUNet(unet, fuse_qkv=self.fuse_qkv)
        size = unet.config.sample_size or 64
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        self.latents = LatentFacts(
            channels=unet.config.in_channels,
            scale=scale,
            default_height=height * scale,
            default_width=width * scale,
        )
        if unet.config.in_channels != unet.config.out_channels:
            raise UnsupportedModel(
                f"this UNet takes {unet.config.in_channels} channels and gives "
                f"{unet.config.out_channels}: inpainting and editing models cannot be exported yet"
            )
        self.report.done()
        length = self.encoders[0].max_length
        verified = [
            {"B": 1, "h": 16, "w": 8, "L": length},
            {"B": 3, "h": 9, "w": 15, "L": 2 * length},
        ]
        return _Part("unet", component, {"B": 2, "h": 12, "w": 10, "L": 7}, verified, self.dtype)

    def _vae_dtype(self, vae: AutoencoderKL) -> torch.dtype:
        """float16 overflows in VAEs that say so (SDXL's): those stay in float32."""
        if self.dtype == torch.float16 and vae.config.force_upcast:
            self.report.note("the VAE overflows in float16 (force_upcast): exported in float32")
            return torch.float32
        return self.dtype


def _export_part(
    part: _Part, folder: Path, precision: str, targets: Sequence[str], report: Report
) -> Component:
    component = part.component
    own_precision = "fp32" if part.dtype == torch.float32 else precision
    report.start(f"{part.name}: eager reference")
    cases = make_cases(component, part.verified)
    report.done()

    report.start(f"{part.name}: trace")
    component.rewrite()
    component.cast(part.dtype)
    parameters = sum(p.numel() for p in component.parameters())
    model = onnx_from_component(component, part.traced, folder / "onnx" / part.name)
    report.done(f"{parameters / 1e6:,.1f} M parameters")
    if "torch" in targets:
        report.start(f"{part.name}: torch program")
        program = folder / "engines" / "torch" / f"{part.name}.pt2"
        program_from_component(component, part.traced, program)
        report.done()

    report.start(f"{part.name}: verify")
    engine = verification_engine(component, model, own_precision)
    figures = verify(part.name, engine, cases, own_precision)
    report.done(
        "relative error "
        + ", ".join(f"{figure.relative_error:.1e} at {sizes(figure.dims)}" for figure in figures)
    )
    return Component(
        onnx=model.relative_to(folder).as_posix(),
        inputs=tuple(_info(tensor) for tensor in component.spec.inputs),
        outputs=tuple(_info(tensor) for tensor in component.spec.outputs),
        parameters=parameters,
        verification=tuple(figures),
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
    if config.get("rescale_betas_zero_snr"):
        report.note("rescale_betas_zero_snr is ignored, as the k-diffusion pipelines did")
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
        rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr")),
        explicit=tuple(sorted(key for key in config if not key.startswith("_"))),
    )


def _check_choices(precision: str, targets: Sequence[str]) -> None:
    if precision not in ("auto", *PRECISIONS):
        raise ExportError(f"'{precision}' is no precision; choose auto, {', '.join(PRECISIONS)}")
    unknown = [target for target in targets if target not in TARGETS]
    if unknown:
        raise ExportError(f"'{unknown[0]}' is no target; choose {' or '.join(TARGETS)}")


def _info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape)


def _tool_versions() -> dict[str, str]:
    return {"kdrt": kdrt_version} | {tool: version(tool) for tool in _TOOLS}
