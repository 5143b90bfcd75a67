"""IP-Adapters (Ye et al. 2023, arXiv:2308.06721): images as prompts, as a variant of the UNet.

A CLIP vision encoder sees the image, a projection makes a few tokens of it, and every
cross-attention gets a second pair of key and value for those. Encoder and projection become
components of their own; tokens, strength and mask are inputs of the variant. Several adapters go
into one UNet, each with key and value of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from kdrt.bundle import ImageEncoderFacts, IpAdapterFacts, sha256
from kdrt_export.components.image_prompt import ExportProjection, encoder_states
from kdrt_export.errors import SourceError
from kdrt_export.sources.ip_adapter import (
    IpAdapterOption,
    default_name,
    encoder_folders,
    find_adapter,
    find_encoder,
    kind_of,
    read_adapter,
)
from kdrt_export.sources.reading import read_json, refused
from kdrt_export.sources.weight_files import read_folder
from kdrt_export.sources.weights import Weights

VARIANT = "ip-adapter"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, for encoders without a preprocessor file."""

_USUAL_STATES = 257
"""Hidden states of the encoders that adapters are trained with: 16 × 16 patches and the class."""


class IpAdapter:
    """An adapter to export.

    Args:
        source: a file, or ``owner/name:path/of/file`` on the hub.
        image_encoder: a folder with the CLIP vision model, or ``owner/name:path/of/folder`` on the
            hub; None is ``image_encoder`` beside the file, if it exists. Without one, only what it
            would make of images can be given later.
        name: of the adapter; None is made of the file's.
        images: how many it takes at once.
        allow_pickle: accept pickled weights.

    Attributes:
        name: see there.
        images: see there.
        path: of the file.
        kind: what it reads of an image.
        tensors: the file's, float32, of its parts ``image_proj`` and ``ip_adapter``.
        encoder_folder: of the image encoder; None without one.

    Raises:
        SourceError: the file is missing, damaged or no IP-Adapter.
    """

    def __init__(
        self,
        source: str,
        image_encoder: str | Path | None = None,
        *,
        name: str | None = None,
        images: int = 1,
        allow_pickle: bool = False,
    ) -> None:
        self.path = path = find_adapter(source, allow_pickle)
        self.images = images
        self._allow_pickle = allow_pickle
        self.tensors = read_adapter(path)
        self.kind = kind = kind_of(path, self.tensors["image_proj"])
        self.name = default_name(path) if name is None else name
        self.encoder_folder: Path | None = None
        if kind == "faceid":
            return  # it reads no images
        if image_encoder is not None:
            self.encoder_folder = find_encoder(str(image_encoder), allow_pickle)
        else:
            self.encoder_folder = next(filter(Path.is_dir, encoder_folders(path)), None)

    def encoder(self) -> CLIPVisionModelWithProjection | None:
        """The image encoder, float32.

        Raises:
            SourceError: it is damaged, or does not give what the adapter reads.
        """
        if self.encoder_folder is None:
            return None
        folder = self.encoder_folder
        config = self._encoder_config(folder)
        state = read_folder(folder, allow_pickle=self._allow_pickle)
        return Weights(CLIPVisionModelWithProjection, config, state, str(folder)).network()

    @property
    def rows(self) -> int:
        """How many hidden states the image encoder gives."""
        if self.encoder_folder is None:
            return _USUAL_STATES
        return encoder_states(self._encoder_config(self.encoder_folder))[0]

    def check_encoder(self, projection: ExportProjection) -> None:
        """Raises SourceError: the image encoder does not give what the projection reads."""
        if self.encoder_folder is None:
            return
        config = self._encoder_config(self.encoder_folder)
        reads = projection.embedding if self.kind == "linear" else (projection.states or (0, 0))[1]
        gives = config.projection_dim if self.kind == "linear" else config.hidden_size
        if reads != gives:
            raise SourceError(
                f"{self.path.name} reads images of an encoder {reads} wide, and the one in "
                f"{self.encoder_folder} is {gives} wide; give its own with --image-encoder"
            )

    def facts(
        self, projection: ExportProjection, component: str, encoder: str | None
    ) -> IpAdapterFacts:
        """What the manifest says of it.

        Args:
            projection: see there.
            component: its component.
            encoder: the image encoder's; None without one.
        """
        return IpAdapterFacts(
            file=self.path.name,
            sha256=sha256(self.path),
            kind=self.kind,
            tokens=projection.tokens,
            embedding=projection.embedding,
            states=projection.states,
            images=self.images,
            projection=component,
            image_encoder=None if encoder is None else self._encoder_facts(encoder),
        )

    def _encoder_config(self, folder: Path) -> CLIPVisionConfig:
        raw = read_json(folder / "config.json", f"{folder} holds no image encoder")
        with refused(f"{folder / 'config.json'} describes no CLIP vision model"):
            return CLIPVisionConfig.from_dict(raw.get("vision_config") or raw)

    def _encoder_facts(self, component: str) -> ImageEncoderFacts:
        assert self.encoder_folder is not None
        settings: dict[str, Any] = {}
        for folder in ("", "../feature_extractor"):
            file = self.encoder_folder / folder / "preprocessor_config.json"
            if file.is_file():
                settings = read_json(file, "the image encoder cannot be read")
                break
        with refused("the image encoder's preprocessor_config.json says no mean and deviation"):
            return ImageEncoderFacts(
                component=component,
                size=self._encoder_config(self.encoder_folder).image_size,
                mean=tuple(settings.get("image_mean", _MEAN)),
                std=tuple(settings.get("image_std", _STD)),
            )


def open_adapters(
    options: Sequence[str], image_encoder: str | Path | None = None, *, allow_pickle: bool = False
) -> list[IpAdapter]:
    """The adapters of these options, see :class:`IpAdapterOption`; ``image_encoder`` is that of all
    that have none of their own.

    Raises:
        SourceError: a file cannot be used, or two adapters have one name.
    """
    adapters: list[IpAdapter] = []
    for option in map(IpAdapterOption.parse, options):
        encoder = option.encoder or image_encoder
        adapter = IpAdapter(
            option.source,
            encoder,
            name=option.name,
            images=option.images,
            allow_pickle=allow_pickle,
        )
        if any(adapter.name == other.name for other in adapters):
            raise SourceError(
                f"two IP-Adapters are named '{adapter.name}'; name one, as in FILE:name=style"
            )
        adapters.append(adapter)
    return adapters


def attach(unet: UNet2DConditionModel, adapters: Sequence[IpAdapter]) -> list[ExportProjection]:
    """Give ``unet`` the attention of adapters, in place, and return their projections.

    Raises:
        SourceError: an adapter does not fit the model, or its image encoder.
    """
    for adapter in adapters:
        _check_fit(unet, adapter)
    names = " and ".join(adapter.path.name for adapter in adapters)
    with refused(_misfit(names)):
        unet._load_ip_adapter_weights(
            [adapter.tensors for adapter in adapters], low_cpu_mem_usage=False
        )
        projections = [
            ExportProjection(layer.eval().requires_grad_(False), adapter.rows)
            for layer, adapter in zip(
                unet.encoder_hid_proj.image_projection_layers, adapters, strict=True
            )
        ]
        unet.encoder_hid_proj = nn.Identity()  # what comes in has been projected
        for adapter in adapters:
            _merge_own_lora(unet, adapter.tensors["ip_adapter"])
    for adapter, projection in zip(adapters, projections, strict=True):
        adapter.check_encoder(projection)
    share_among_images(unet, [adapter.images for adapter in adapters])
    unet.eval().requires_grad_(False)
    return projections


def share_among_images(unet: UNet2DConditionModel, images: Sequence[int]) -> None:
    """Let diffusers' attentions take several images of an adapter, each as if it were an adapter of
    its own; ``images`` says how many each takes."""
    for processor in unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            for name in ("to_k_ip", "to_v_ip"):
                own = zip(getattr(processor, name), images, strict=True)
                shared = [linear for linear, count in own for _ in range(count)]
                setattr(processor, name, nn.ModuleList(shared))


def image_tokens(adapters: Mapping[str, IpAdapterFacts]) -> list[int]:
    """How many tokens there are of each image that a UNet with these adapters takes."""
    return [facts.tokens for facts in adapters.values() for _ in range(facts.images)]


def _misfit(names: str) -> str:
    return f"{names} does not fit this model (is it for another family?)"


def _check_fit(unet: UNet2DConditionModel, adapter: IpAdapter) -> None:
    """Whether a file has keys and values for all of a UNet's cross-attentions, and for no more."""
    attentions = [name for name in unet.attn_processors if name.endswith(".attn2.processor")]
    given = adapter.tensors["ip_adapter"].keys()
    expected = {
        f"{2 * place + 1}.to_{each}_ip.weight" for place in range(len(attentions)) for each in "kv"
    }
    own_lora = {name for name in given if "_lora." in name}
    doubtful = sorted(expected ^ (given - own_lora))
    if doubtful:
        raise SourceError(
            f"{_misfit(adapter.path.name)}: the model has {len(attentions)} cross-attentions, the "
            f"file keys and values of {(len(given) - len(own_lora)) / 2:g}; {doubtful[0]} is in "
            "one of them alone"
        )
    everywhere = {
        f"{place}.to_{each}_lora.{half}.weight"
        for place in range(len(unet.attn_processors))
        for each in ("q", "k", "v", "out")
        for half in ("down", "up")
    }
    wrong = sorted(own_lora ^ everywhere) if own_lora else []
    if wrong:
        raise SourceError(
            f"{_misfit(adapter.path.name)}: of the LoRA in it and the model's attentions "
            f"{wrong[0]} is in one alone"
        )


def _merge_own_lora(unet: UNet2DConditionModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Merge the LoRA that FaceID adapters bring, at the full strength that diffusers gives it."""
    if not any("_lora." in name for name in tensors):
        return
    paths = [name.removesuffix(".processor") for name in unet.attn_processors]
    for place, path in enumerate(paths):
        attention: Attention = unet.get_submodule(path)
        for each in ("q", "k", "v", "out"):
            linear = attention.to_out[0] if each == "out" else getattr(attention, f"to_{each}")
            down, up = (tensors[f"{place}.to_{each}_lora.{h}.weight"] for h in ("down", "up"))
            linear.weight.data += (up @ down).to(linear.weight.dtype)
