"""What a request gives IP-Adapters, checked against the bundle's before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from kdrt.adapters.image_mask import mask_planes
from kdrt.adapters.image_scale import scale_table
from kdrt.bundle import IpAdapterFacts, Manifest
from kdrt.common.validation import check_dense, check_finite, excerpt
from kdrt.errors import InvalidRequestError

Images: TypeAlias = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]]
"""Of one adapter: an image for all prompts, or one for each prompt; several at once for each are a
list in the list."""

ImagePrompt: TypeAlias = Images | Mapping[str, Images]
"""Of the one adapter that there is, or of several by name."""

ImageEmbeds: TypeAlias = Tensor | Mapping[str, Tensor]
"""What stands for images: CLIP's embeddings ``[n, P]``, its hidden states ``[n, T, W]``, or the
embeddings of faces ``[n, P]``, as the adapter reads them; of m images at once ``[n, m, …]``. With
those of the unconditional half in front, ``[2, n, m, …]``; without, they are of zeros."""


@dataclass(frozen=True)
class AdapterImages:
    """What one adapter is given for n prompts, m images at once for each.

    Attributes:
        images: n times m of them; None where ``states`` or ``embeds`` say it all.
        embeds: ``[n, m, P]``.
        states: ``[n, m, T, W]``.
        unconditional: likewise of the unconditional half, where it was given: ``embeds`` or
            ``states``. None is what there is of zeros.
        count: m.
        prompts: n.
    """

    images: Sequence[Sequence[Image.Image]] | None = None
    embeds: Tensor | None = None
    states: Tensor | None = None
    unconditional: Tensor | None = None

    @property
    def prompts(self) -> int:
        return self._size[0]

    @property
    def count(self) -> int:
        return self._size[1]

    @property
    def _size(self) -> tuple[int, int]:
        for given in (self.embeds, self.states):
            if given is not None:
                return given.shape[0], given.shape[1]
        assert self.images is not None
        return len(self.images), len(self.images[0])


@dataclass(frozen=True)
class ImageRequest:
    """What IP-Adapters are given for B images, and how it counts.

    Attributes:
        adapters: by name; others of the bundle are off.
        scale: see `kdrt.adapters.image_scale.scale_table`.
        mask: see `kdrt.adapters.image_mask.mask_planes`; None is everywhere.
    """

    adapters: Mapping[str, AdapterImages]
    scale: Tensor
    mask: Tensor | None


def read_image_request(
    images: object,
    embeds: object,
    scale: object,
    masks: object,
    *,
    manifest: Manifest,
    prompts: int,
    height: int,
    width: int,
) -> ImageRequest | None:
    """What a request gives IP-Adapters; None if it gives nothing.

    Args:
        images: an `ImagePrompt`, or None.
        embeds: an `ImageEmbeds`, or None.
        scale: a `kdrt.adapters.image_scale.ImageScale`.
        masks: see `kdrt.adapters.image_mask.mask_planes`; or None.
        manifest: of the bundle.
        prompts: B.
        height, width: in pixels.

    Raises:
        InvalidRequestError: the bundle has no such adapter, or it takes something else.
    """
    if images is None and embeds is None:
        if not isinstance(scale, Mapping | list | tuple):
            check_finite("ip_adapter_scale", scale)
        return None
    if not manifest.ip_adapters:
        raise InvalidRequestError(
            f"'{manifest.name}' has no IP-Adapter; export it with "
            f"`{manifest.export_command} --ip-adapter FILE`"
        )
    shown = _by_adapter("ip_adapter_image", images, manifest)
    told = _by_adapter("ip_adapter_image_embeds", embeds, manifest)
    adapters = {
        name: _adapter_images(manifest, name, shown.get(name), told.get(name))
        for name in manifest.ip_adapters
        if shown.get(name) is not None or told.get(name) is not None
    }
    for name, given in adapters.items():
        _check_counts(name, manifest.ip_adapters[name], given, prompts, masked=masks is not None)
    counts = {name: given.count for name, given in adapters.items()}
    return ImageRequest(
        adapters,
        scale_table(scale, manifest, counts),
        None if masks is None else mask_planes(masks, manifest, counts, height, width),
    )


def _by_adapter(field: str, value: object, manifest: Manifest) -> Mapping[str, object]:
    names = tuple(manifest.ip_adapters)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        if len(names) == 1:
            return {names[0]: value}
        raise InvalidRequestError(
            f"'{manifest.name}' has the IP-Adapters {', '.join(names)}: give {field} by name, as "
            f"in {{'{names[0]}': …}}"
        )
    unknown = [name for name in value if name not in names]
    if unknown:
        raise InvalidRequestError(
            f"{field} names {excerpt(unknown[0])}, and '{manifest.name}' has the IP-Adapters "
            f"{', '.join(names)}"
        )
    return value


def _adapter_images(manifest: Manifest, name: str, images: object, embeds: object) -> AdapterImages:
    facts = manifest.ip_adapters[name]
    listed = None if images is None else _listed(images)
    if facts.kind == "faceid-plus":
        return _face_and_image(name, facts, listed, embeds)
    if embeds is None and facts.kind == "faceid":
        raise InvalidRequestError(
            f"the IP-Adapter '{name}' reads faces: give their embeddings as "
            "ip_adapter_image_embeds; kdrt looks for no faces in images"
        )
    if embeds is None:
        _check_encoder(manifest, facts)
        return AdapterImages(images=listed)
    shape = facts.states if facts.embedding is None else (facts.embedding,)
    assert shape is not None
    unconditional, told = _tensor(embeds, shape)
    if facts.embedding is None:
        return AdapterImages(states=told, unconditional=unconditional)
    return AdapterImages(embeds=told, unconditional=unconditional)


def _face_and_image(
    name: str, facts: IpAdapterFacts, images: Sequence[Sequence[Image.Image]] | None, embeds: object
) -> AdapterImages:
    assert facts.embedding is not None
    if images is None or embeds is None or facts.image_encoder is None:
        raise InvalidRequestError(
            f"the IP-Adapter '{name}' reads a face and its embedding: give both ip_adapter_image "
            "and ip_adapter_image_embeds"
            + ("" if facts.image_encoder else ", on a bundle exported with --image-encoder")
        )
    given = AdapterImages(images=images, embeds=_tensor(embeds, (facts.embedding,))[1])
    if (len(images), len(images[0])) != (given.prompts, given.count):
        raise InvalidRequestError(
            f"the IP-Adapter '{name}' needs as many images in ip_adapter_image as embeddings in "
            "ip_adapter_image_embeds"
        )
    return given


def _check_encoder(manifest: Manifest, facts: IpAdapterFacts) -> None:
    if facts.image_encoder is None:
        raise InvalidRequestError(
            f"the bundle '{manifest.name}' has no image encoder: give "
            "ip_adapter_image_embeds, or export it with --image-encoder"
        )


def _check_counts(
    name: str, facts: IpAdapterFacts, given: AdapterImages, prompts: int, *, masked: bool
) -> None:
    if prompts % given.prompts:
        raise InvalidRequestError(
            f"{given.prompts} image prompts for {prompts} images: give one, or one for each prompt"
        )
    if given.count > facts.images:
        raise InvalidRequestError(
            f"the IP-Adapter '{name}' takes {facts.images} image{'s'[: facts.images > 1]} at once, "
            f"not {given.count}; export it with `--ip-adapter FILE:images={given.count}`"
        )
    if given.count > 1 and not masked:
        raise InvalidRequestError(
            f"several images of the IP-Adapter '{name}' need a mask each: give ip_adapter_masks"
        )


def _listed(images: object) -> Sequence[Sequence[Image.Image]]:
    outer = [images] if isinstance(images, Image.Image) else images
    wrong = InvalidRequestError("ip_adapter_image must be a PIL image or a list of them")
    if not isinstance(outer, Sequence) or not outer:
        raise wrong
    listed = [[each] if isinstance(each, Image.Image) else each for each in outer]
    for inner in listed:
        if not isinstance(inner, list | tuple) or not inner or len(inner) != len(listed[0]):
            raise wrong
        if not all(isinstance(image, Image.Image) for image in inner):
            raise wrong
    return listed


def _tensor(embeds: object, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor]:
    """What is given for the unconditional half, if it is, and for the other: ``[n, m, *shape]``.
    Both are in a tensor ``[2, n, m, *shape]``."""
    said = ", ".join(map(str, shape))
    if not isinstance(embeds, Tensor):
        raise InvalidRequestError(f"ip_adapter_image_embeds must be a tensor [n, {said}]")
    check_dense("ip_adapter_image_embeds", embeds)
    axes = embeds.ndim - len(shape)
    fits = (
        1 <= axes <= 3
        and embeds.shape[axes:] == shape
        and embeds.numel() > 0
        and (axes < 3 or len(embeds) == 2)
    )
    if not fits or embeds.is_complex() or not bool(embeds.isfinite().all()):
        raise InvalidRequestError(
            f"ip_adapter_image_embeds must be finite and of shape [n, {said}], not "
            f"{list(embeds.shape)}"
        )
    if axes == 3:
        return embeds[0], embeds[1]
    return None, embeds[:, None] if axes == 1 else embeds
