"""diffusers' switches for fused attention projections, between the variants of a bundle."""

from __future__ import annotations

from kdrt.compat.export_hint import export_again
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline

_PARTS = {"unet": ("unet",), "vae": ("vae_decoder", "vae_encoder")}


class FusedProjectionsMixin:
    """For a class with a ``pipeline``.

    Attributes:
        exported_from: what the bundle was exported from when the model was opened; None where it
            was a bundle before.
    """

    pipeline: Pipeline
    exported_from: str | None = None

    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Compute query, key and value with one matrix, as most bundles do by default.

        Raises:
            InvalidRequestError: the bundle was exported without them; the message says what to
                export.
        """
        self._use_projections(fused=True, unet=unet, vae=vae)

    def unfuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Compute query, key and value with one matrix each. The images are the same.

        Raises:
            InvalidRequestError: the bundle has no such variant; the message says what to export.
        """
        self._use_projections(fused=False, unet=unet, vae=vae)

    def _use_projections(self, *, fused: bool, unet: bool, vae: bool) -> None:
        parts = (*(_PARTS["unet"] if unet else ()), *(_PARTS["vae"] if vae else ()))
        if fused == self.pipeline.bundle.manifest.baked.fused_qkv:
            self.pipeline.adapters.use_variant(None, parts)
            return
        variant = "fused-qkv" if fused else "unfused-qkv"
        if parts and variant not in self.pipeline.bundle.manifest.variants:
            bundle = self.pipeline.bundle
            options = ["--variant", variant]
            if fused:
                options.insert(0, "--no-fuse-qkv")
            raise InvalidRequestError(
                f"'{bundle.manifest.name}' has no variant '{variant}': "
                + export_again(bundle, self.exported_from, *options)
            )
        self.pipeline.adapters.use_variant(variant, parts)
