"""IP-Adapter (Ye et al. 2023, arXiv:2308.06721): images as prompts, as a variant of the UNet.

A CLIP vision encoder sees the image, a projection makes a few tokens of it, and every
cross-attention gets a second pair of key and value for those. Encoder and projection become
components of their own; tokens and strength are inputs of the variant.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import ImageProjection
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from kdrt.bundle import ImageEncoderFacts, IpAdapterFacts, sha256
from kdrt.common.paths import user_path
from kdrt_engines.spec import EngineSpec, TensorSpec
from kdrt_export.components import ExportComponent
from kdrt_export.components.vision import VisionTransformer
from kdrt_export.errors import SourceError, UnsupportedModelError
from kdrt_export.sources.hub import HubPlace, fetch_file
from kdrt_export.sources.reading import read_json, refused
from kdrt_export.sources.weight_files import check_pickle, choose_weights, read_folder, read_tensors
from kdrt_export.sources.weights import Weights

VARIANT = "ip-adapter"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, for encoders without a preprocessor file."""


class IpAdapter:
    """An adapter to export.

    Args:
        source: a ``.safetensors`` file, or ``owner/name:path/of/file`` on the hub.
        image_encoder: a folder with the CLIP vision model; None is ``image_encoder`` beside the
            file, if it exists. Without one, only image embeddings can be given later.

    Raises:
        SourceError: the file is missing, damaged or no IP-Adapter.
        UnsupportedModelError: an IP-Adapter of another kind (Plus, Full, FaceID).
    """

    def __init__(
        self, source: str, image_encoder: Path | None = None, *, allow_pickle: bool = False
    ) -> None:
        path = _find(source, allow_pickle)
        self.path = path
        self._allow_pickle = allow_pickle
        self._tensors = _read(path)
        if "proj.weight" not in self._tensors["image_proj"]:
            raise UnsupportedModelError(
                f"{path.name} is an IP-Adapter with another projection than a linear one (Plus, "
                "Full or FaceID), which cannot be exported yet"
            )
        folder = path.parent / "image_encoder" if image_encoder is None else image_encoder
        if image_encoder is not None and not folder.is_dir():
            raise SourceError(f"there is no image encoder in {folder}")
        self._encoder_folder = folder if folder.is_dir() else None

    def attach(self, unet: UNet2DConditionModel) -> ExportProjection:
        """Give ``unet`` the adapter's attention, in place, and return the projection."""
        attentions = [name for name in unet.attn_processors if ".attn2." in name]
        expected = {
            f"{2 * place + 1}.to_{each}_ip.weight"
            for place in range(len(attentions))
            for each in "kv"
        }
        given = self._tensors["ip_adapter"].keys()
        doubtful = sorted(expected ^ given)
        fits = f"{self.path.name} does not fit this model (is it for another family?)"
        if doubtful:
            raise SourceError(
                f"{fits}: the model has {len(attentions)} cross-attentions, the file keys and "
                f"values of {len(given) / 2:g}; {doubtful[0]} is in one of them alone"
            )
        with refused(fits):
            unet._load_ip_adapter_weights([self._tensors], low_cpu_mem_usage=False)
        (projection,) = unet.encoder_hid_proj.image_projection_layers
        unet.encoder_hid_proj = nn.Identity()  # what comes in has been projected
        unet.eval().requires_grad_(False)
        return ExportProjection(projection.eval().requires_grad_(False))

    def encoder(self) -> CLIPVisionModelWithProjection | None:
        """The image encoder, float32."""
        if self._encoder_folder is None:
            return None
        folder = self._encoder_folder
        raw = read_json(folder / "config.json", f"{folder} holds no image encoder")
        with refused(f"{folder / 'config.json'} describes no CLIP vision model"):
            config = CLIPVisionConfig.from_dict(raw.get("vision_config") or raw)
        state = read_folder(folder, allow_pickle=self._allow_pickle)
        return Weights(CLIPVisionModelWithProjection, config, state, str(folder)).network()

    def facts(self, projection: ExportProjection, encoder: Any | None) -> IpAdapterFacts:
        return IpAdapterFacts(
            file=self.path.name,
            sha256=sha256(self.path),
            tokens=projection.tokens,
            embedding=projection.width,
            image_encoder=None if encoder is None else self._encoder_facts(encoder),
        )

    def _encoder_facts(self, encoder: Any) -> ImageEncoderFacts:
        settings: dict[str, Any] = {}
        for folder in ("", "../feature_extractor"):
            file = Path(self._encoder_folder or "") / folder / "preprocessor_config.json"
            if file.is_file():
                settings = read_json(file, "the image encoder cannot be read")
                break
        with refused("the image encoder's preprocessor_config.json says no mean and deviation"):
            return ImageEncoderFacts(
                size=encoder.config.image_size,
                mean=tuple(settings.get("image_mean", _MEAN)),
                std=tuple(settings.get("image_std", _STD)),
            )


class ExportProjection(ExportComponent):
    """image_embeds [B,P] → ip_hidden_states [B,N,D]."""

    def __init__(self, source: ImageProjection) -> None:
        super().__init__()
        self.image_embeds, self.norm = source.image_embeds, source.norm
        self.tokens: int = source.num_image_text_embeds
        self.width: int = source.image_embeds.in_features
        self._source = [source]
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        out = self.image_embeds.out_features // self.tokens
        return EngineSpec(
            (TensorSpec("image_embeds", dtype, ("B", self.width)),),
            (TensorSpec("ip_hidden_states", dtype, ("B", self.tokens, out)),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._source[0](*inputs),)

    def rewrite(self) -> None:
        self._source.clear()

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        return self.norm(self.image_embeds(image_embeds).unflatten(-1, (self.tokens, -1)))


class ExportImageEncoder(ExportComponent):
    """A CLIP vision model: pixels [B,3,S,S], normalised → image_embeds [B,P], projected."""

    def __init__(self, model: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self._source = [model]
        self.projection = model.visual_projection
        self.size: int = model.config.image_size
        self.spec = self.make_spec("float32")

    def make_spec(self, dtype: str) -> EngineSpec:
        return EngineSpec(
            (TensorSpec("pixels", dtype, ("B", 3, self.size, self.size)),),
            (TensorSpec("image_embeds", dtype, ("B", self.projection.out_features)),),
        )

    def reference(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self._source[0](*inputs).image_embeds,)

    def rewrite(self) -> None:
        self.vision = VisionTransformer(self._source.pop().vision_model)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.projection(self.vision.pooled(self.vision(pixels)))


def _find(source: str, allow_pickle: bool) -> Path:
    path = user_path(source)
    if not path.is_file():
        place = HubPlace.parse(source)
        if place is None or place.file is None:
            raise SourceError(
                f"there is no IP-Adapter file {source}; give a .safetensors file, or "
                "owner/name:path/of/file.safetensors for one on the hub"
            )
        check_pickle(Path(place.file), allow_pickle)
        folder = Path(place.file).parent / "image_encoder"
        path = fetch_file(place, lambda names: _encoder_files(names, folder, allow_pickle))
    check_pickle(path, allow_pickle)
    return path


def _encoder_files(names: Collection[str], folder: Path, allow_pickle: bool) -> list[str]:
    """What is used of the image encoder beside an adapter, where there is one."""
    prefix = f"{folder.as_posix()}/"
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if "config.json" not in inside:
        return []
    weights = choose_weights(inside, folder.as_posix(), allow_pickle=allow_pickle)
    texts = [n for n in ("config.json", "preprocessor_config.json") if n in inside]
    return [f"{prefix}{name}" for name in (*texts, *weights)]


def _read(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in read_tensors(path).items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = tensor.float()
    if not all(parts.values()):
        raise SourceError(f"{path.name} is no IP-Adapter")
    return parts
