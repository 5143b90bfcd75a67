"""diffusers' IP-Adapter methods, on a bundle that was exported with one.

The removed pipelines could load an adapter but never run it. Here the adapter is part of the
bundle: loading it switches to its UNet.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor

from kdrt.adapters.image_prompt import read_image_request
from kdrt.adapters.image_scale import ImageScale, scale_table
from kdrt.adapters.ip_adapter import VARIANT, ImageWeights
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
    ip_adapter_scale: ImageScale = 1.0

    def load_ip_adapter(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        subfolder: Any = "",
        weight_name: Any = "",
        image_encoder_folder: str | None = "image_encoder",
        **_: Any,
    ) -> None:
        """Switch to the UNet with the bundle's IP-Adapters, which must be those named here.

        Args:
            pretrained_model_name_or_path_or_dict: a hub id or a path; or a list with one for each
                adapter.
            subfolder: the folder of the adapter there; or a list.
            weight_name: the file of the adapter there; or a list.
            image_encoder_folder: has no effect: the encoder is exported with the adapters.

        Raises:
            InvalidRequestError: the bundle has no IP-Adapters, or others; the message says what to
                export.
        """
        manifest = self.pipeline.bundle.manifest
        named = _aligned(pretrained_model_name_or_path_or_dict, subfolder or "", weight_name or "")
        files = [facts.file for facts in manifest.ip_adapters.values()]
        for source, folder, file in named:
            if (file or PurePath(source).name) in files:
                continue
            inside = PurePath(folder, file).as_posix() if file else ""
            separator = "/" if Path(source).is_dir() else ":"
            wanted = f"{source}{separator}{inside}" if inside else source
            raise InvalidRequestError(
                f"'{manifest.name}' has {' and '.join(files) or 'no IP-Adapter'}: "
                + export_again(self.pipeline.bundle, self.exported_from, "--ip-adapter", wanted)
            )
        self.pipeline.adapters.use_variant(VARIANT, ["unet"])

    def set_ip_adapter_scale(self, scale: Any) -> None:
        """Set how much images count from now on; 0 turns them off exactly.

        Args:
            scale: a number; or numbers by part of the UNet, such as
                ``{"up": {"block_0": [0, 1, 0]}}``; or a list with one entry for each adapter, in
                which an inner list has one for each image of that adapter.

        Raises:
            InvalidRequestError: it is none of these, or names a part that does not exist.
        """
        facts = self.pipeline.bundle.manifest.ip_adapters
        if isinstance(scale, list | tuple):
            if len(scale) != len(facts):
                raise InvalidRequestError(
                    f"ip_adapter_scale has {len(scale)} scales, and the bundle {len(facts)} "
                    "IP-Adapters: give one for each"
                )
            scale = dict(zip(facts, scale, strict=True))
        if facts:
            images = {name: len(_images_of(scale, name)) for name in facts}
            scale_table(scale, self.pipeline.bundle.manifest, images)  # what is wrong is said now
        else:
            check_finite("ip_adapter_scale", scale)
        self.ip_adapter_scale = scale

    @one_call
    def unload_ip_adapter(self) -> None:
        """Return to the plain UNet."""
        if self.pipeline.bundle.manifest.ip_adapters:
            self.pipeline.adapters.use_variant(None, ["unet"])
        self.ip_adapter_scale = 1.0

    def _image_prompt(
        self,
        images: Any,
        embeds: Any,
        masks: Any,
        count: int,
        height: int,
        width: int,
        *,
        doubled: bool,
    ) -> tuple[Tensor | None, ImageWeights | None]:
        """The image tokens for the UNet, ``[n·B, N, D]``, and how much they count; None without
        images. With images this switches to the adapters' UNet, also without
        :meth:`load_ip_adapter`.

        Args:
            images: one, or a list as in diffusers: of one for each adapter, where there are
                several.
            embeds: likewise.
            masks: diffusers' ``ip_adapter_masks``, ``[1, m, H, W]`` for each adapter.
            count: B.
            height, width: in pixels.
            doubled: whether there is an unconditional half.
        """
        if images is None and embeds is None:
            return None, None
        manifest = self.pipeline.bundle.manifest
        names = tuple(manifest.ip_adapters)
        if isinstance(embeds, list) and doubled:  # their two halves are one after the other
            embeds = [each.unflatten(0, (2, -1)) if _is_even(each) else each for each in embeds]
        request = read_image_request(
            _named("ip_adapter_image", images, names),
            _named("ip_adapter_image_embeds", embeds, names),
            self.ip_adapter_scale,
            _mask_lists(masks, names),
            manifest=manifest,
            prompts=count,
            height=height,
            width=width,
        )
        assert request is not None
        if not self.pipeline.engines["unet"].spec.has_input("ip_scale"):
            self.pipeline.adapters.use_variant(VARIANT, ["unet"])
        tokens = self.pipeline.adapters.image_prompts.encode(request, count, doubled=doubled)
        return tokens, ImageWeights.of(request, count)


def _images_of(scale: object, name: str) -> Sequence[object]:
    """The scales of the images of an adapter."""
    own = scale.get(name) if isinstance(scale, Mapping) else None
    return own if isinstance(own, list | tuple) else [own]


def _named(field: str, value: Any, names: Sequence[str]) -> Any:
    """A list with one for each adapter as a mapping by name."""
    is_list = isinstance(value, list)
    if value is None or (len(names) == 1 and not (is_list and field.endswith("embeds"))):
        return value
    if not is_list or len(value) != len(names):
        raise InvalidRequestError(
            f"{field} must be a list with one for each IP-Adapter of the bundle: "
            f"{', '.join(names) or 'it has none'}"
        )
    return {
        # Several images of one adapter are for one prompt, in diffusers.
        name: [each] if isinstance(each, list) else each
        for name, each in zip(names, value, strict=True)
        if each is not None
    }


def _is_even(embeds: object) -> bool:
    return isinstance(embeds, Tensor) and embeds.ndim > 1 and len(embeds) % 2 == 0


def _mask_lists(masks: Any, names: Sequence[str]) -> Any:
    """diffusers' masks, ``[1, m, H, W]`` for each adapter, as ours, ``[m, 1, H, W]`` by name."""
    if masks is None:
        return None
    listed = list(masks[:, None]) if isinstance(masks, Tensor) else masks
    if not isinstance(listed, list) or len(listed) != len(names):
        raise InvalidRequestError("ip_adapter_masks must be a list with one for each IP-Adapter")
    return {
        name: mask[0][:, None] if isinstance(mask, Tensor) and mask.ndim == 4 else mask
        for name, mask in zip(names, listed, strict=True)
        if mask is not None
    }


def _aligned(*arguments: object) -> list[tuple[str, ...]]:
    """Names and paths by adapter: each argument is one for all, or a list with one for each."""
    listed = [each if isinstance(each, list) else [each] for each in arguments]
    count = max(map(len, listed))
    for argument in listed:
        if len(argument) not in (1, count) or not all(
            isinstance(each, (str, os.PathLike)) for each in argument
        ):
            raise InvalidRequestError(
                "load_ip_adapter takes one adapter: a hub id or a path, the name of its folder "
                "there, and the name of its file; or lists of these with one for each adapter, not "
                f"{excerpt(argument[0] if len(argument) == 1 else argument)}"
            )
    columns = [argument * (count // len(argument)) for argument in listed]
    return [tuple(map(os.fspath, row)) for row in zip(*columns, strict=True)]


def masks_given(masks: Any, unknown: dict[str, Any]) -> Any:
    """``ip_adapter_masks``, or those in diffusers' ``cross_attention_kwargs``, which are taken out
    of the ``unknown`` arguments."""
    inside = unknown.get("cross_attention_kwargs")
    if masks is not None or not isinstance(inside, dict) or inside.keys() != {"ip_adapter_masks"}:
        return masks
    return unknown.pop("cross_attention_kwargs")["ip_adapter_masks"]
