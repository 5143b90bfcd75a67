"""A checkpoint as it is shared by the community: one file with every network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from kdrt_export.errors import SourceError
from kdrt_export.families import Architecture
from kdrt_export.sources.base import FileSource, text_config, text_model
from kdrt_export.sources.checkpoint_file import as_trained, detect, read_header
from kdrt_export.sources.clip_vocabulary import tokenizer_for
from kdrt_export.sources.folder import FolderSource
from kdrt_export.sources.layouts import text_encoder_tensors, unet_tensors, vae_tensors
from kdrt_export.sources.reading import check_fetched, refused
from kdrt_export.sources.weight_files import check_pickle, is_checkpoint
from kdrt_export.sources.weights import Weights

_HINT = (
    "it is incomplete, or of another architecture: then say which with --config and a diffusers "
    "folder of the same kind"
)


class SingleFileSource(FileSource):
    """A checkpoint file, each of whose networks is read when it is asked for.

    Args:
        path: the file.
        allow_pickle: accept a pickle.
        config: a diffusers folder that describes it; None detects what it is.

    Raises:
        SourceError: it is no checkpoint, is damaged, or a pickle without permission.
        UnsupportedModelError: it is of another architecture.
    """

    def __init__(self, path: Path, *, allow_pickle: bool, config: Path | None) -> None:
        super().__init__()
        if not is_checkpoint(path.name):
            raise SourceError(f"{path.name} is no checkpoint; .safetensors or .ckpt is needed")
        check_pickle(path, allow_pickle)
        check_fetched(path)
        self.path = path
        self.name, self.origin = path.stem, path.name
        self._described: FolderSource | None = None
        self.architecture: Architecture
        header = read_header(path)
        if config is not None:
            self._described = FolderSource(config, name=path.stem, origin=path.name)
            self.architecture = as_trained(self._described.architecture(), header, path.name)
        else:
            with refused(f"{path.name} is no model of Stable Diffusion"):
                kind = detect(header, path.name)
            self.kind, self.remark = kind.label, kind.remark
            self.architecture = kind.architecture
        self.family = self.architecture.family
        self.is_refiner = self.architecture.is_refiner
        self.scheduler = self.architecture.scheduler
        self.zeros_for_empty_negative = (
            self._described or self.architecture
        ).zeros_for_empty_negative

    def config(self, part: Literal["unet", "vae"]) -> Mapping[str, Any]:
        return self.architecture.unet if part == "unet" else self.architecture.vae

    def weights(self, part: str) -> Weights[Any]:
        if part == "unet":
            unet = self.config("unet")
            return self._of(UNet2DConditionModel, unet, unet_tensors(self.path, unet))
        if part == "vae":
            vae = self.config("vae")
            return self._of(AutoencoderKL, vae, vae_tensors(self.path, vae))
        index = int(part.endswith("_2"))
        raw = self.architecture.text_encoders[self.encoder_indices.index(index)]
        kind, config = text_model(index), text_config(raw, self.path.name)
        return self._of(kind, config, text_encoder_tensors(self.path, index, config))

    def tokenizer(self, index: int) -> CLIPTokenizer:
        if self._described is not None:
            return self._described.tokenizer(index)
        return tokenizer_for(self.architecture.text_encoders[self.encoder_indices.index(index)])

    def _of(self, kind: type[nn.Module], config: Any, tensors: Any) -> Weights[Any]:
        return Weights(kind, config, tensors, self.path.name, _HINT)
