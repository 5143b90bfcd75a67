"""diffusers' ``VaeImageProcessor``, as far as pipelines for text to image have used it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdrt.common.literals import OutputType
from kdrt.compat.absent import SaysWhatThereIs
from kdrt.compat.config import Config
from kdrt.errors import InvalidRequestError
from kdrt.images.input import to_rgb
from kdrt.images.output import Images

Array = NDArray[np.float32]
Numbers = TypeVar("Numbers", Array, Tensor)


class VaeImageProcessor(SaysWhatThereIs):
    """Converts images of all kinds to a VAE's pixels and back.

    Attributes:
        config: ``vae_scale_factor`` and the settings of the original's defaults.

    Args:
        vae_scale_factor: pixels for one latent; sides are cut down to multiples of it.
        vae_latent_channels: tensors of that many channels are latents, and pass as they are.
    """

    instead = (
        "it has preprocess and postprocess with the steps they are made of; masks and images to "
        "begin from are taken by pipe.pipeline(…, image=…, mask_image=…)"
    )

    def __init__(self, vae_scale_factor: int = 8, vae_latent_channels: int = 4) -> None:
        self.config = Config(
            do_resize=True,
            vae_scale_factor=vae_scale_factor,
            vae_latent_channels=vae_latent_channels,
            resample="lanczos",
            do_normalize=True,
            do_binarize=False,
            do_convert_rgb=False,
            do_convert_grayscale=False,
        )

    def postprocess(
        self,
        image: Tensor,
        output_type: str = "pil",
        do_denormalize: Sequence[bool] | None = None,
    ) -> Images:
        """Images of a VAE's pixels.

        Args:
            image: ``[B, 3, H, W]`` in about [-1, 1].
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``.
            do_denormalize: for each image, whether it is to be brought from [-1, 1] to [0, 1];
                None is all.

        Raises:
            InvalidRequestError: it is no tensor, or the output type is unknown.
        """
        kind = output_type_of(output_type)
        if not isinstance(image, Tensor) or image.ndim != 4:
            found = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise InvalidRequestError(
                f"images to postprocess must be a tensor [B, 3, H, W], not {found}"
            )
        if kind == "latent":
            return image
        if do_denormalize is None:
            unit = self.denormalize(image)
        elif len(do_denormalize) != len(image):
            raise InvalidRequestError(
                f"{len(do_denormalize)} values in do_denormalize for {len(image)} images"
            )
        else:
            pairs = zip(image, do_denormalize, strict=True)
            unit = torch.stack([self.denormalize(one) if wanted else one for one, wanted in pairs])
        if kind == "pt":
            return unit
        array = self.pt_to_numpy(unit)
        return array if kind == "np" else self.numpy_to_pil(array)

    def preprocess(
        self,
        image: Any,
        height: int | None = None,
        width: int | None = None,
        resize_mode: str = "default",
        crops_coords: tuple[int, int, int, int] | None = None,
    ) -> Tensor:
        """Pixels ``[B, C, H, W]`` in [-1, 1] of images, for a VAE to read.

        Args:
            image: one PIL image of any mode, array ``[H, W, C]`` or ``[B, H, W, C]``, or tensor
                ``[C, H, W]`` or ``[B, C, H, W]``, in [0, 1]; or a list of them.
            height: rows to resize to; None is the image's own, cut down to a multiple of the scale.
            width: likewise.
            resize_mode: ``"default"`` only.
            crops_coords: (left, top, right, bottom) to cut out of PIL images first.

        Raises:
            InvalidRequestError: these are no images, or the mode is another.
        """
        if resize_mode != "default":
            raise InvalidRequestError(
                f"resize_mode must be 'default', not {resize_mode!r}; crop the image with PIL"
            )
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        kinds = (Image.Image, np.ndarray, Tensor)
        kind = next((k for k in kinds if images and isinstance(images[0], k)), None)
        if kind is None or not all(isinstance(one, kind) for one in images):
            raise InvalidRequestError(
                "images must be PIL images, arrays or tensors, all of one kind"
            )
        try:
            pixels = self._pixels(images, kind, height, width, crops_coords)
        except (ValueError, RuntimeError, TypeError) as error:
            raise InvalidRequestError(f"these images cannot be read together: {error}") from error
        if pixels.shape[1] == self.config.vae_latent_channels and kind is Tensor:
            return pixels
        return pixels if pixels.numel() and pixels.min() < 0 else self.normalize(pixels)

    def _pixels(
        self,
        images: list[Any],
        kind: type,
        height: int | None,
        width: int | None,
        crops_coords: tuple[int, int, int, int] | None,
    ) -> Tensor:
        if kind is Image.Image:
            images = [one if one.mode in ("L", "RGB") else to_rgb("image", one) for one in images]
            if crops_coords is not None:
                images = [one.crop(crops_coords) for one in images]
            rows, columns = self.get_default_height_width(images[0], height, width)
            return self.numpy_to_pt(
                self.pil_to_numpy([self.resize(one, rows, columns) for one in images])
            )
        if kind is Tensor:
            pixels = torch.cat(images) if images[0].ndim == 4 else torch.stack(images)
            if pixels.shape[1] == self.config.vae_latent_channels:
                return pixels
        else:
            array = np.concatenate(images) if images[0].ndim == 4 else np.stack(images)
            pixels = self.numpy_to_pt(array)
        resized: Tensor = self.resize(pixels, *self.get_default_height_width(pixels, height, width))
        return resized

    def get_default_height_width(
        self, image: Any, height: int | None = None, width: int | None = None
    ) -> tuple[int, int]:
        """The size that is asked for, or the image's own, cut down to multiples of the scale."""
        if isinstance(image, Image.Image):
            rows, columns = image.height, image.width
        elif isinstance(image, Tensor):
            rows, columns = image.shape[2:]
        else:
            rows, columns = image.shape[1:3]
        scale = self.config.vae_scale_factor
        rows, columns = height or rows, width or columns
        return rows - rows % scale, columns - columns % scale

    def resize(self, image: Any, height: int, width: int) -> Any:
        """A PIL image resized by Lanczos, or a tensor ``[B, C, H, W]`` by its nearest pixels."""
        if isinstance(image, Image.Image):
            return image.resize((width, height), resample=Image.Resampling.LANCZOS)
        if isinstance(image, np.ndarray):
            resized = self.resize(self.numpy_to_pt(image), height, width)
            return self.pt_to_numpy(resized)
        return torch.nn.functional.interpolate(image, size=(height, width))

    @staticmethod
    def normalize(images: Numbers) -> Numbers:
        """From [0, 1] to [-1, 1]."""
        return 2.0 * images - 1.0

    @staticmethod
    def denormalize(images: Numbers) -> Numbers:
        """From [-1, 1] to [0, 1]."""
        return (images * 0.5 + 0.5).clip(0, 1)

    @staticmethod
    def numpy_to_pil(images: Array) -> list[Image.Image]:
        """PIL images of arrays ``[B, H, W, C]`` or ``[H, W, C]`` in [0, 1]."""
        if not isinstance(images, np.ndarray) or images.ndim not in (3, 4):
            raise InvalidRequestError(
                "images must be an array [B, height, width, channels] in [0, 1]"
            )
        batch = images[None] if images.ndim == 3 else images
        pixels = (batch * 255).round().astype("uint8")
        return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]

    @staticmethod
    def pil_to_numpy(images: list[Image.Image] | Image.Image) -> Array:
        """Arrays ``[B, H, W, C]`` in [0, 1] of PIL images."""
        each = images if isinstance(images, list) else [images]
        return np.stack([np.array(one).astype(np.float32) / 255.0 for one in each])

    @staticmethod
    def numpy_to_pt(images: Array) -> Tensor:
        """A tensor ``[B, C, H, W]`` of arrays ``[B, H, W, C]`` or ``[B, H, W]``."""
        batch = images[..., None] if images.ndim == 3 else images
        return torch.from_numpy(batch.transpose(0, 3, 1, 2))

    @staticmethod
    def pt_to_numpy(images: Tensor) -> Array:
        """Float32 arrays ``[B, H, W, C]`` of a tensor ``[B, C, H, W]``."""
        array: Array = images.cpu().permute(0, 2, 3, 1).float().numpy()
        return array

    @staticmethod
    def convert_to_rgb(image: Image.Image) -> Image.Image:
        """A PIL image as RGB, on white where it has alpha."""
        return to_rgb("image", image)

    @staticmethod
    def convert_to_grayscale(image: Image.Image) -> Image.Image:
        """A PIL image as grey, on white where it has alpha."""
        return to_rgb("image", image).convert("L")


def output_type_of(value: object) -> OutputType:
    """``value`` as an output type. Raises InvalidRequestError if it is none."""
    if value not in get_args(OutputType):
        raise InvalidRequestError(
            f"unknown output_type {value!r}; known: {', '.join(get_args(OutputType))}"
        )
    return value  # type: ignore[return-value]
