"""diffusers' IP-Adapter methods, on a bundle that was exported with one.

The removed pipelines could load an adapter but never run it. Here the adapter is part of the
bundle: loading it switches to its UNet.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from kdrt.adapters.ip_adapter import VARIANT, ImagePrompt
from kdrt.common.validation import check_finite, excerpt
from kdrt.compat.export_hint import export_again
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.calls import one_call
from kdrt.pipeline.pipeline import Pipeline


class IpAdapterMixin:
    """For a class with a ``pipeline``.

    Attributes:
        ip_adapter_scale: how much images count.
    """

    pipeline: Pipeline
    exported_from: str | None = None
    ip_adapter_scale: float = 1.0

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: Any = "",
        weight_name: Any = "",
        image_encoder_folder: str | None = "image_encoder",
        **_: Any,
    ) -> None:
        """Switch to the bundle's IP-Adapter, which must be the one named here.

        Raises:
            InvalidRequestError: the bundle has none, or another; the message says what to export.
        """
        manifest = self.pipeline.bundle.manifest
        source, subfolder, weight_name = map(
            _single, (pretrained_model_name_or_path_or_dict, subfolder or "", weight_name or "")
        )
        name = weight_name or PurePath(source).name
        facts = manifest.ip_adapter
        if facts is None or facts.file != name:
            inside = PurePath(subfolder, weight_name).as_posix() if weight_name else ""
            separator = "/" if Path(source).is_dir() else ":"
            wanted = f"{source}{separator}{inside}" if inside else source
            raise InvalidRequestError(
                f"'{manifest.name}' has {'no IP-Adapter' if facts is None else facts.file}: "
                + export_again(self.pipeline.bundle, self.exported_from, "--ip-adapter", wanted)
            )
        self.pipeline.adapters.use_variant(VARIANT, ["unet"])

    def set_ip_adapter_scale(self, scale: float | Sequence[float]) -> None:
        """How much images count from now on; 0 is exactly off.

        Raises:
            InvalidRequestError: the scale is no finite number; scales of single blocks are not
                known.
        """
        single = scale[0] if isinstance(scale, Sequence) and len(scale) == 1 else scale
        self.ip_adapter_scale = check_finite("ip_adapter_scale", single)

    @one_call
    def unload_ip_adapter(self) -> None:
        """Go back to the plain UNet."""
        if self.pipeline.bundle.manifest.ip_adapter is not None:
            self.pipeline.adapters.use_variant(None, ["unet"])
        self.ip_adapter_scale = 1.0

    def _image_tokens(
        self, prompts: ImagePrompt | None, embeddings: Tensor | None, images: int, *, doubled: bool
    ) -> Tensor | None:
        """The image tokens for the UNet, ``[n·B, N, D]``; None without images. With images this
        switches to the adapter's UNet, also without :meth:`load_ip_adapter`."""
        if prompts is None and embeddings is None:
            return None
        if not self.pipeline.engines["unet"].spec.has_input("ip_scale"):
            self.pipeline.adapters.use_variant(VARIANT, ["unet"])
        return self.pipeline.adapters.image_prompts.encode(
            prompts, embeddings, images, doubled=doubled
        )


def _single(value: object) -> str:
    """A name or path, given alone or in a list of one."""
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(one, (str, os.PathLike)):
        raise InvalidRequestError(
            "load_ip_adapter takes one adapter: a hub id or a path, the name of its folder there, "
            f"and the name of its file, not {excerpt(value)}"
        )
    return os.fspath(one)
