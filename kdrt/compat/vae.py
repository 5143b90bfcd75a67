"""diffusers' switches of the VAE, on engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from kdrt.pipeline.pipeline import Pipeline


class VaeMixin:
    """For a class that holds a :class:`kdrt.Pipeline` in ``pipeline``."""

    pipeline: Pipeline

    def enable_vae_slicing(self) -> None:
        """Decode the images of a batch one by one, which is kdrt's default."""
        self.pipeline.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode the whole batch at once."""
        self.pipeline.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Decode images that are larger than those the VAE was trained on in tiles of that size."""
        self.pipeline.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode whole images, if the engine can."""
        self.pipeline.vae.disable_tiling()

    def upcast_vae(self) -> None:
        """Check that the VAE does not overflow.

        The precision of the VAE is fixed at export. A VAE whose configuration says that it
        overflows in float16 is exported in float32. bfloat16 has the range of float32, and the
        original pipelines did not upcast it either.

        Raises:
            InvalidRequestError: the VAE is in float16.
        """
        spec = self.pipeline.engines["vae_decoder"].spec
        if spec.inputs[0].dtype == "float16":
            raise InvalidRequestError(
                "this bundle's VAE is in float16, which is fixed at export: export the model "
                "again with --vae-precision fp32 or bf16"
            )
