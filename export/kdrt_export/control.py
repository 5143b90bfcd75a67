"""ControlNets and T2I-Adapters of a bundle: from their sources to components beside the UNet.

Each is a component of its own (a ControlNet two), made for one UNet. What takes their residuals is
a second graph of that UNet, the variant ``control``: it reads the weights of the first, and so
costs megabytes. All of it is added to a bundle that is there, or that an export has just written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusers import ControlNetModel, T2IAdapter, UNet2DConditionModel

from kdrt.bundle import MOST_CONTROLS, ControlFacts, Manifest, sha256
from kdrt.bundle.components import ADAPTER_COMPONENT, CONTROL_COMPONENT, CONTROL_HINT
from kdrt_engines.spec import EngineSpec
from kdrt_export.component_export import export_component
from kdrt_export.components import ExportComponent, ExportUNet
from kdrt_export.components.controlnet import ExportControlHint, ExportControlNet
from kdrt_export.components.t2i_adapter import ExportT2IAdapter
from kdrt_export.errors import ExportError, SourceError
from kdrt_export.ip_adapter import VARIANT as IP_ADAPTER
from kdrt_export.ip_adapter import image_tokens
from kdrt_export.keep_fp32 import KeepFp32
from kdrt_export.options import PRECISIONS
from kdrt_export.reopen import check_reopens, reopen_unet, unet_config
from kdrt_export.report import Report
from kdrt_export.sources import Source, demo_folder
from kdrt_export.sources.control import (
    CONTROLNET,
    T2I_ADAPTER,
    adapter_weights,
    controlnet_weights,
)
from kdrt_export.sources.names import default_name, split_name
from kdrt_export.sources.part import short_name
from kdrt_export.sources.reading import refused
from kdrt_export.sources.weights import Weights, build
from kdrt_export.walk import Part, unet_sizes

CONTROL = "control"
"""The variant of the UNet that takes residuals."""

Kind = Literal["controlnet", "t2i-adapter"]

_PLACES = {"controlnet": CONTROLNET, "t2i-adapter": T2I_ADAPTER}
_WORDS = {"controlnet": "ControlNet", "t2i-adapter": "T2I-Adapter"}
_IMAGE_SIZES = [{"B": 1, "h": 8, "w": 12}, {"B": 3, "h": 9, "w": 7}]


@dataclass(frozen=True)
class ControlSource:
    """A ControlNet or T2I-Adapter to export: which of the two, its name in the bundle, and where it
    lies."""

    kind: Kind
    name: str
    source: str
    path: Path

    @classmethod
    def find(cls, kind: Kind, text: str, *, allow_pickle: bool = False) -> ControlSource:
        """Find what ``SOURCE`` or ``SOURCE:NAME`` says, on disk or on the hub. The ControlNet
        ``demo`` is the one of the demo model.

        Raises:
            SourceError: there is nothing, or nothing that may be read.
            ExportError: no name follows from it, or one that cannot be used.
        """
        source, name = split_name(text)
        if kind == "controlnet" and source == "demo":
            path = demo_folder("control")
        else:
            path = _PLACES[kind].find(source, allow_pickle=allow_pickle)
        name = name or default_name(source)
        if name.endswith(CONTROL_HINT):
            raise ExportError(
                f"no ControlNet or T2I-Adapter can be called '{name}', since '{CONTROL_HINT}' is "
                f"the end of the names of their parts; give another name with {source}:NAME"
            )
        return cls(kind, name, short_name(source), path)

    @property
    def what(self) -> str:
        """For messages."""
        return f"the {_WORDS[self.kind]} '{self.name}'"

    def facts(self, components: Iterable[ExportComponent]) -> ControlFacts:
        """What a manifest says of it, which has these networks."""
        digest = sha256(self.path) if self.path.is_file() else None
        image, *rest = components
        assert isinstance(image, ExportControlHint | ExportT2IAdapter)
        return ControlFacts(
            kind=self.kind,
            source=self.source,
            sha256=digest,
            channels=image.channels,
            global_pool=any(isinstance(each, ExportControlNet) and each.pools for each in rest),
        )


@dataclass(frozen=True)
class UNetFacts:
    """What a control must fit: the configuration of a UNet, and facts of its model."""

    config: dict[str, Any]
    family: str
    latents: int
    scale: int
    time_ids: int

    def spec(self) -> EngineSpec:
        """Of the UNet that takes residuals."""
        unet = build(UNet2DConditionModel, self.config, "the UNet", _MANY)
        return ExportUNet(unet, time_ids=self.time_ids, control=True).spec


_MANY = 1000
"""Layers of a UNet that has been loaded before."""


class Control:
    """One of them, opened and found to fit.

    Args:
        source: what it is.
        unet: the UNet it is for.
        allow_pickle: accept pickled weights.

    Attributes:
        facts: what a manifest says of it.

    Raises:
        SourceError: it is damaged, or does not fit.
        UnsupportedModelError: it is a network of another kind.
    """

    def __init__(
        self, source: ControlSource, unet: UNetFacts, *, allow_pickle: bool = False
    ) -> None:
        self.source, self._unet = source, unet
        self._weights: Weights[Any]
        if source.kind == "controlnet":
            self._weights = controlnet_weights(
                source.path, unet.config, unet.latents, allow_pickle=allow_pickle
            )
        else:
            self._weights = adapter_weights(
                source.path, unet.family, unet.scale, allow_pickle=allow_pickle
            )
        self._weights.check()
        count = len(self._weights.tensors)
        network = build(self._weights.kind, self._weights.config, self._weights.where, count)
        components = self._components(network, fuse_qkv=True)
        _check_fit(source, components, unet)
        with refused(f"{source.what} cannot be used"):
            self.facts = source.facts(components.values())

    def components(self, *, fuse_qkv: bool) -> dict[str, ExportComponent]:
        """Its networks by component name, with their weights."""
        return self._components(self._weights.network(), fuse_qkv=fuse_qkv)

    def _components(self, network: Any, *, fuse_qkv: bool) -> dict[str, ExportComponent]:
        if isinstance(network, T2IAdapter):
            name = ADAPTER_COMPONENT + self.source.name
            return {name: ExportT2IAdapter(network, scale=self._unet.scale)}
        assert isinstance(network, ControlNetModel)
        hint = ExportControlHint(network)  # first: the other takes its part out of the network
        name = CONTROL_COMPONENT + self.source.name
        return {name + CONTROL_HINT: hint, name: ExportControlNet(network, fuse_qkv=fuse_qkv)}


def find_controls(
    controlnets: Sequence[str],
    t2i_adapters: Sequence[str],
    *,
    taken: Collection[str] = (),
    weights: str = "float",
    allow_pickle: bool = False,
) -> list[ControlSource]:
    """Find all that shall be exported.

    Args:
        controlnets, t2i_adapters: see :meth:`ControlSource.find`.
        taken: names that the bundle has already.
        weights: how those of its UNet are stored.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: see :meth:`ControlSource.find`.
        ExportError: two have one name, there are too many, or the UNet cannot take any.
    """
    asked: list[tuple[Kind, str]] = [("controlnet", text) for text in controlnets]
    asked += [("t2i-adapter", text) for text in t2i_adapters]
    if asked and weights == "int8":
        raise ExportError(
            "a UNet with int8 weights takes no ControlNets and T2I-Adapters; leave out "
            "--weights int8"
        )
    if len(taken) + len(asked) > MOST_CONTROLS:
        raise ExportError(
            f"a bundle holds at most {MOST_CONTROLS} ControlNets and T2I-Adapters, and these would "
            f"be {len(taken) + len(asked)}; leave some out"
        )
    names = list(taken)
    sources = []
    for kind, text in asked:
        source = ControlSource.find(kind, text, allow_pickle=allow_pickle)
        if source.name in names:
            raise ExportError(
                f"the name '{source.name}' is taken by another ControlNet or T2I-Adapter; give "
                f"one with {source.source}:NAME"
            )
        names.append(source.name)
        sources.append(source)
    return sources


def add_controls(
    folder: Path,
    manifest: Manifest,
    controls: Sequence[Control],
    targets: Sequence[str],
    report: Report,
) -> Manifest:
    """Export controls, and the UNets that take what they give, into the folder of a bundle.

    Args:
        folder: the bundle, which is being written.
        manifest: of what it holds so far.
        controls: to add.
        targets: see :func:`kdrt_export.stage.export`.
        report: told of every stage.

    Returns:
        The manifest with them, without the digests of their files.

    Raises:
        ExportError: see :func:`kdrt_export.reopen.reopen_unet`.
        VerificationError: a network does not compute what it should.
    """
    components = dict(manifest.components)
    variants, facts = dict(manifest.variants), dict(manifest.controls)
    for variant, part in _unets(folder, manifest, report):
        keep = KeepFp32.again(components[str(part.beside)])
        components[part.name] = export_component(part, folder, targets, report, keep=keep)
        variants[variant] = {"unet": part.name}
    for control in controls:
        source = control.source
        report.start(f"{source.kind}-{source.name}: load")
        parts = control.components(fuse_qkv=manifest.baked.fused_qkv)
        report.done()
        for name, component in parts.items():
            described = _described(manifest, name, component)
            components[name] = export_component(described, folder, targets, report)
        facts[source.name] = control.facts
    update = {"components": components, "variants": variants, "controls": facts}
    return manifest.model_copy(update=update)


def with_own_weights(manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Those components that do not read the weights of another."""
    return [name for name in names if f"/{name}/" in manifest.components[name].onnx]


def unet_of_source(opened: Source) -> UNetFacts:
    """Facts of the UNet of a model that is yet to be exported.

    Raises:
        SourceError: its configurations do not say them.
    """
    unet, vae = opened.config("unet"), opened.config("vae")
    with refused(f"the sizes of '{opened.name}' cannot be used"):
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        time_ids = 5 if opened.is_refiner else 6
        return UNetFacts(dict(unet), opened.family, int(unet["out_channels"]), scale, time_ids)


def unet_facts(folder: Path, manifest: Manifest) -> UNetFacts:
    """Those of a bundle's UNet.

    Raises:
        ExportError: see :func:`kdrt_export.reopen.check_reopens`.
    """
    check_reopens(manifest, folder)
    latents = manifest.latents
    return UNetFacts(
        unet_config(folder),
        manifest.family,
        latents.channels,
        latents.scale,
        _time_ids(manifest),
    )


def _time_ids(manifest: Manifest) -> int:
    """How many numbers of size conditioning the UNet takes, where it takes any."""
    inputs = {tensor.name: tensor.shape for tensor in manifest.components["unet"].inputs}
    count = inputs.get("time_ids", (6,))[-1]
    assert isinstance(count, int)
    return count


def _unets(folder: Path, manifest: Manifest, report: Report) -> Iterator[tuple[str, Part]]:
    """The UNets that take residuals, as far as there are none yet, and the variants they are."""
    traced, verified = unet_sizes(manifest.text_encoders[0].max_length)
    images = image_tokens(manifest.ip_adapters)
    for feature, tokens in ((None, ()), (IP_ADAPTER, images)):
        beside = "unet" if feature is None else f"unet-{feature}"
        variant = CONTROL if feature is None else f"{feature}-{CONTROL}"
        if variant in manifest.variants or beside not in manifest.components:
            continue
        report.start(f"{beside}: open again")
        unet = reopen_unet(folder, manifest, beside)
        component = ExportUNet(
            unet,
            fuse_qkv=manifest.baked.fused_qkv,
            ip_tokens=tokens,
            time_ids=_time_ids(manifest),
            control=True,
        )
        report.done()
        dtype = PRECISIONS[manifest.precision]
        yield variant, Part(f"unet-{variant}", component, traced, verified, dtype, beside)


def _described(manifest: Manifest, name: str, component: ExportComponent) -> Part:
    dtype = PRECISIONS[manifest.precision]
    if isinstance(component, ExportControlNet):
        traced, verified = unet_sizes(manifest.text_encoders[0].max_length)
    else:
        traced, verified = {"B": 2, "h": 6, "w": 5}, _IMAGE_SIZES
    return Part(name, component, traced, verified, dtype)


def _check_fit(
    source: ControlSource, components: dict[str, ExportComponent], unet: UNetFacts
) -> None:
    """Raises SourceError: what a control takes is not there, or what it gives is not taken."""
    whole = unet.spec()
    known = {tensor.name: tensor.shape for tensor in (*whole.inputs, *whole.outputs)}
    known["sample"] = known["noise_pred"]  # an inpainting UNet takes more channels
    for component in components.values():
        if isinstance(component, ExportControlHint) and component.scale != unet.scale:
            raise SourceError(
                f"{source.what} takes {component.scale} pixels for a latent, and this model has "
                f"{unet.scale}; is it for another family?"
            )
        for tensor in (*component.spec.inputs, *component.spec.outputs):
            if tensor.name not in ("image", "hint", "scales") and (
                known.get(tensor.name) != tensor.shape
            ):
                here = _shape(known.get(tensor.name))
                raise SourceError(
                    f"{source.what} does not fit this model (is it for another family?): its "
                    f"{tensor.name} is {_shape(tensor.shape)}, and the UNet's {here}"
                )
    given = {t.name for component in components.values() for t in component.spec.outputs}
    wanted = {name for name in known if name.startswith(("down_residual", "mid_residual"))}
    if source.kind == "controlnet" and (missing := sorted(wanted - given)):
        raise SourceError(
            f"{source.what} does not fit this model (is it for another family?): the UNet takes "
            f"{missing[0]} too"
        )


def _shape(shape: Sequence[int | str] | None) -> str:
    return "missing" if shape is None else "×".join(map(str, shape))
