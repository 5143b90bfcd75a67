"""What a pipeline offers of its VAE: the switches that trade speed for memory."""

from __future__ import annotations

from kdrt.pipeline.calls import Calls
from kdrt.vae.vae import Vae


class VaeSwitches:
    """The VAE's switches on a pipeline."""

    vae: Vae
    _calls: Calls

    def enable_vae_slicing(self) -> None:
        """Pass images of a batch through the VAE one by one: the default."""
        with self._calls.one():
            self.vae.slicing = True

    def disable_vae_slicing(self) -> None:
        """Pass the whole batch through the VAE at once: faster where memory allows."""
        with self._calls.one():
            self.vae.slicing = False

    def enable_vae_tiling(self, tile: int | None = None, overlap: float = 0.25) -> None:
        """Pass images larger than a tile through the VAE in overlapping tiles.

        Peak memory then depends on the tile, not on the image. See :mod:`kdrt.vae.tiling` for
        what it does to the image. Without this, only what the engine was not built for is tiled.

        Args:
            tile: side of a tile in pixels; None is the size the VAE was trained at.
            overlap: fraction of a tile shared with its neighbour.

        Raises:
            InvalidRequestError: no multiple of the VAE's scale, or an overlap outside of [0, 1).
        """
        with self._calls.one():
            self.vae.tiling = self.vae.tiling_of(tile, overlap)

    def disable_vae_tiling(self) -> None:
        """Run the VAE on whole images wherever the engine can."""
        with self._calls.one():
            self.vae.tiling = None
