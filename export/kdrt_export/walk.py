"""From a model's source to the components that are exported of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderTiny

from kdrt.bundle import (
    BakedLora,
    IpAdapterFacts,
    LatentFacts,
    SchedulerFacts,
    TextEncoderFacts,
)
from kdrt.bundle.components import PAG, SHALLOW_UNET
from kdrt_engines.spec import Dim
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
from kdrt_export.components.image_prompt import ExportImageEncoder
from kdrt_export.components.perturbed_unet import ExportPerturbedUNet, self_attentions
from kdrt_export.components.preview_decoder import ExportPreviewDecoder
from kdrt_export.components.preview_factors import Factors, preview_factors
from kdrt_export.components.shallow_unet import ExportShallowUNet
from kdrt_export.components.vision import ExportSafetyChecker
from kdrt_export.configs import write_config
from kdrt_export.errors import ExportError, SourceError, UnsupportedModelError
from kdrt_export.ip_adapter import VARIANT as IP_ADAPTER
from kdrt_export.ip_adapter import IpAdapter, attach, image_tokens
from kdrt_export.lora import LorasToBake
from kdrt_export.report import Report
from kdrt_export.scheduler import scheduler_facts
from kdrt_export.sources import Source
from kdrt_export.sources.reading import refused
from kdrt_export.sources.replacement_vae import vae_dtype
from kdrt_export.tokenizers import write_text_files

Network = TypeVar("Network", bound=torch.nn.Module)

_VAE_TRACED = {"B": 1, "h": 6, "w": 5}
_VAE_VERIFIED = [{"B": 2, "h": 8, "w": 12}, {"B": 1, "h": 9, "w": 7}]


@dataclass(frozen=True)
class Part:
    """One component to export: the sizes to trace at, those to verify at, and its dtype; and the
    exported component whose weights it reads, if it has none of its own."""

    name: str
    component: ExportComponent
    traced: dict[str, int]
    verified: list[dict[str, int]]
    dtype: torch.dtype
    beside: str | None = None


def unet_sizes(length: int) -> tuple[dict[str, int], list[dict[str, int]]]:
    """The sizes to trace a UNet at, and those to verify it at; ``length`` is of a prompt."""
    verified = [
        {"B": 1, "h": 16, "w": 8, "L": length},
        {"B": 3, "h": 9, "w": 15, "L": 2 * length},
    ]
    return {"B": 2, "h": 12, "w": 10, "L": 7}, verified


@dataclass(kw_only=True)
class Walk:
    """Walks a source, one network in memory at a time, and gathers the manifest's facts.

    Args:
        source: the model.
        folder: the bundle, for tokenizers and embedding tables.
        dtype: of the networks.
        fuse_qkv: concatenate attention projections.
        loras: to be merged into the weights.
        report: told of every stage.
        vae_dtype: of the VAE, where it shall differ.
        safety_checker: export the source's; None does so if it has one.
        fusings: variants of how attention is projected.
        deep_cache: add the shallow UNet.
        pag_layers: add a UNet in which these self-attentions can be perturbed.
        ip_adapters: add a UNet with them.
        tiny: makes the previews.

    Attributes:
        scheduler, encoders, latents, baked_loras, perturbed: facts, complete after the last part.
        ip_facts, ip_attentions: likewise; see `kdrt.bundle.Manifest`.
        variants: what each puts in place of which component, likewise.
    """

    source: Source
    folder: Path
    dtype: torch.dtype
    fuse_qkv: bool
    loras: LorasToBake
    report: Report
    vae_dtype: torch.dtype | None = None
    safety_checker: bool | None = None
    fusings: Sequence[str] = ()
    deep_cache: bool = False
    pag_layers: Sequence[str] = ()
    ip_adapters: Sequence[IpAdapter] = ()
    tiny: AutoencoderTiny | None = None

    scheduler: SchedulerFacts = field(init=False)
    encoders: list[TextEncoderFacts] = field(init=False, default_factory=list)
    latents: LatentFacts = field(init=False)
    baked_loras: tuple[BakedLora, ...] = field(init=False)
    ip_facts: dict[str, IpAdapterFacts] = field(init=False, default_factory=dict)
    ip_attentions: dict[str, int] = field(init=False, default_factory=dict)
    perturbed: tuple[str, ...] = field(init=False, default=())
    variants: dict[str, dict[str, str]] = field(init=False)

    _pooled: Dim = field(init=False)
    """Width of the last text encoder's pooled embedding."""

    def __post_init__(self) -> None:
        with refused(f"the scheduler of '{self.source.name}' cannot be read"):
            self.scheduler = scheduler_facts(self.source.scheduler, self.report)
        self.variants = {variant: {} for variant in self.fusings}

    def parts(self) -> Iterator[Part]:
        """The components, in the order they are loaded; one is done with when the next is asked
        for.

        Raises:
            ExportError: a network cannot be loaded.
            UnsupportedModelError: a network is of a kind that cannot be exported.
        """
        for index in self.source.encoder_indices:
            yield self._text_encoder(index)
        if self.safety_checker is not False:
            yield from self._safety_checker()
        self.report.start("vae: load")
        vae = self.source.vae()
        write_config(self.folder, "vae", vae)
        dtype = vae_dtype(vae, self.dtype, self.vae_dtype, self.report)
        with refused("vae cannot be run as its configuration describes it"):
            preview = preview_factors(vae)
        self.report.done()
        for variant, network, fuse in self._fusings(vae):
            decoder = ExportVaeDecoder(network, fuse_qkv=fuse)
            encoder = ExportVaeEncoder(network, fuse_qkv=fuse)
            for name, part in (("vae_decoder", decoder), ("vae_encoder", encoder)):
                named = self._named(name, variant)
                yield Part(named, part, _VAE_TRACED, _VAE_VERIFIED, dtype)
        scale, channels = vae_scale(vae), vae.config.latent_channels
        tile = vae_tile(vae)
        del vae, network, decoder, encoder, part  # the UNet is next, and largest
        if self.tiny is not None:
            tiny = ExportPreviewDecoder(self.tiny, channels=channels, scale=scale)
            yield Part("preview_decoder", tiny, _VAE_TRACED, _VAE_VERIFIED, self.dtype)
        yield from self._unet(scale, tile, preview, channels)

    def _text_encoder(self, index: int) -> Part:
        name = f"text_encoder{f'_{index + 1}' if index else ''}"
        self.report.start(f"{name}: load")
        model = self.source.text_encoder(index)
        write_config(self.folder, name, model)
        self.loras.merge(name, model)
        facts = write_text_files(
            self.folder, index, self.source.tokenizer(index), model, self.source.family, self.dtype
        )
        self.encoders.append(facts)
        component = ExportTextEncoder(model, normalize=facts.normalized, fuse_qkv=self.fuse_qkv)
        self._pooled = component.spec.outputs[1].shape[-1]
        self.report.done()
        return Part(
            name,
            component,
            {"B": 2, "L": 9},
            [{"B": 1, "L": facts.max_length}, {"B": 3, "L": 12}],
            self.dtype,
        )

    def _safety_checker(self) -> Iterator[Part]:
        checker = self.source.safety_checker()
        if checker is not None:
            component = ExportSafetyChecker(checker)
            yield Part("safety_checker", component, {"B": 2}, [{"B": 1}, {"B": 3}], self.dtype)
        elif self.safety_checker:
            raise ExportError(
                f"'{self.source.name}' has no safety checker; leave out --safety-checker, or "
                "give kdrt an image_filter of your own"
            )

    def _unet(self, scale: int, tile: int, preview: Factors, latents: int) -> Iterator[Part]:
        self.report.start("unet: load")
        unet = self.source.unet()
        write_config(self.folder, "unet", unet)
        self.loras.merge("unet", unet)
        self.baked_loras = self.loras.baked(self.report)
        channels = unet.config.out_channels
        if unet.config.in_channels not in (channels, 2 * channels + 1):
            raise UnsupportedModelError(
                f"this UNet takes {unet.config.in_channels} channels for latents of {channels}; "
                f"kdrt exports text-to-image models ({channels}) and inpainting models "
                f"({2 * channels + 1})"
            )
        if channels != latents:
            raise SourceError(
                f"this UNet makes latents of {channels} channels, and the VAE decodes those of "
                f"{latents}; they are of different models"
            )
        height, width = latent_size(unet)
        with refused(f"the sizes of '{self.source.name}' cannot be used"):
            self.latents = LatentFacts(
                channels=channels,
                scale=scale,
                default_height=height * scale,
                default_width=width * scale,
                vae_tile=tile,
                preview=preview,
            )
        self.report.done()
        length = self.encoders[0].max_length
        traced, verified = unet_sizes(length)
        time_ids = 5 if self.source.is_refiner else 6
        self._check_texts(ExportUNet(unet, time_ids=time_ids))
        if self.ip_adapters:
            network = copy.deepcopy(unet)
            yield from self._image_prompts(self.ip_adapters, network)
            tokens = image_tokens(self.ip_facts)
            component = ExportUNet(
                network, fuse_qkv=self.fuse_qkv, ip_tokens=tokens, time_ids=time_ids
            )
            self.ip_attentions = {each.name: each.level for each in component.attentions}
            self.variants[IP_ADAPTER] = {}
            named = self._named("unet", IP_ADAPTER)
            yield Part(named, component, traced, verified, self.dtype)
        if self.deep_cache:
            shallow = ExportShallowUNet(unet, fuse_qkv=self.fuse_qkv, time_ids=time_ids)
            yield Part(SHALLOW_UNET, shallow, traced, verified, self.dtype)
        perturbed = None
        if self.pag_layers:
            self.perturbed = self_attentions(unet, self.pag_layers)
            perturbed = ExportPerturbedUNet(
                copy.deepcopy(unet), self.perturbed, fuse_qkv=self.fuse_qkv, time_ids=time_ids
            )
        for variant, network, fuse in self._fusings(unet):
            component = ExportUNet(
                network, fuse_qkv=fuse, time_ids=time_ids, deep_feature=self.deep_cache
            )
            yield Part(self._named("unet", variant), component, traced, verified, self.dtype)
        if perturbed is not None:
            self.variants[PAG] = {}
            named = self._named("unet", PAG)
            yield Part(named, perturbed, traced, verified, self.dtype, beside="unet")

    def _check_texts(self, unet: ExportUNet) -> None:
        """Raises SourceError: a UNet reads what other text encoders give."""
        read = {tensor.name: tensor.shape[-1] for tensor in unet.spec.inputs}
        given = {
            "encoder_hidden_states": sum(encoder.hidden_size for encoder in self.encoders),
            "text_embeds": self._pooled,
        }
        for name, width in given.items():
            if read.get(name, width) != width:
                raise SourceError(
                    f"this UNet takes {name} of width {read[name]}, and the text encoders give "
                    f"{width}; they are of different models"
                )

    def _image_prompts(self, adapters: Sequence[IpAdapter], unet: Any) -> Iterator[Part]:
        """What comes before the UNet, which gets its attention to images here."""
        components: dict[Path, str] = {}
        verified = [{"B": 1}, {"B": 3}]
        for adapter, projection in zip(adapters, attach(unet, adapters), strict=True):
            # Those of the first have the names that they had where there was one.
            own = f"-{adapter.name}" if self.ip_facts else ""
            encoder = None
            if adapter.encoder_folder is not None:
                folder = adapter.encoder_folder.resolve()
                encoder = components.setdefault(folder, f"image_encoder{own if components else ''}")
            component = f"image_projection{own}"
            self.ip_facts[adapter.name] = adapter.facts(projection, component, encoder)
            yield Part(component, projection, {"B": 2}, verified, self.dtype)
        for folder, component in components.items():
            readers = [
                adapter
                for adapter in adapters
                if adapter.encoder_folder is not None and adapter.encoder_folder.resolve() == folder
            ]
            kinds = {reader.kind for reader in readers}
            images = ExportImageEncoder(
                readers[0].encoder(), embeds="linear" in kinds, states=bool(kinds - {"linear"})
            )
            yield Part(component, images, {"B": 2}, verified, self.dtype)

    def _fusings(self, network: Network) -> Iterator[tuple[str | None, Network, bool]]:
        """A network as it is exported, and before that a copy for the other way to project."""
        for variant in self.fusings:
            yield variant, copy.deepcopy(network), not self.fuse_qkv
        yield None, network, self.fuse_qkv

    def _named(self, name: str, variant: str | None) -> str:
        """The component's name, after making a note of which one it stands in for."""
        if variant is None:
            return name
        self.variants[variant] = {**self.variants[variant], name: f"{name}-{variant}"}
        return f"{name}-{variant}"
