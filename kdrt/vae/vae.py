"""The VAE of a pipeline: both halves, with one setting of slices and tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from kdrt.bundle import LatentFacts
from kdrt.common.validation import check_int
from kdrt.errors import BundleError, InvalidRequestError
from kdrt.vae.coder import Decoder, Encoder
from kdrt.vae.tiling import Tiling
from kdrt_engines import Engine

Turn = Callable[[], AbstractContextManager[object]]


class Vae:
    """Decoder and encoder with one setting of slices and tiles.

    The encoder is loaded when it is first asked for: text to image does without it.

    Attributes:
        decoder: latents to pixels.

    Args:
        engines: ``vae_decoder``, and ``vae_encoder`` where images are to be read.
        facts: scale and sizes of the latents.
        turn: entered to run either half, as its buffers hold one run at a time.
        change: entered to change slices or tiles, which no run may be in the middle of.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        facts: LatentFacts,
        turn: Turn = nullcontext,
        change: Turn = nullcontext,
    ) -> None:
        self._engines = engines
        self._facts = facts
        self._turn = turn
        self._change = change
        self.decoder = Decoder(engines["vae_decoder"], turn=turn)
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """Pixels to latents.

        Raises:
            BundleError: the bundle has no encoder.
        """
        if self._encoder is None:
            self.check_encoder()
            engine = self._engines["vae_encoder"]
            batch, tiling = self.decoder.batch, self.decoder.tiling
            self._encoder = Encoder(engine, batch, tiling, turn=self._turn)
        return self._encoder

    def check_encoder(self) -> None:
        """Raises BundleError: the bundle has no encoder. Loads nothing."""
        if "vae_encoder" not in self._engines:
            raise BundleError(
                "this bundle has no vae_encoder, which reads images; export the model again"
            )

    def use(self, engines: Mapping[str, Engine]) -> None:
        """Go on with other engines, by component, and the same switches; what is not named
        stays. They must be in the mapping that this was made with too."""
        if "vae_decoder" in engines:
            batch, tiling = self.decoder.batch, self.decoder.tiling
            self.decoder = Decoder(engines["vae_decoder"], batch, tiling, turn=self._turn)
        if "vae_encoder" in engines:
            self._encoder = None

    def encode(self, image: Tensor) -> Tensor:
        """Latents of pixels; see :class:`kdrt.vae.coder.Encoder`."""
        return self.encoder(image)

    def release(self) -> None:
        """Let go of what was bound for the sizes seen last."""
        for half in self._halves():
            half.release()

    def enable_slicing(self) -> None:
        """Pass images of a batch through the VAE one by one: the default."""
        with self._change():
            self.slicing = True

    def disable_slicing(self) -> None:
        """Pass the whole batch through the VAE at once: faster where memory allows."""
        with self._change():
            self.slicing = False

    def enable_tiling(self, tile: int | None = None, overlap: float = 0.25) -> None:
        """Pass images larger than a tile through the VAE in overlapping tiles.

        Peak memory then depends on the tile, not on the image. See :mod:`kdrt.vae.tiling` for
        what it does to the image. Without this, only what the engine was not built for is tiled.

        Args:
            tile: side of a tile in pixels; None is the size the VAE was trained at.
            overlap: fraction of a tile shared with its neighbour.

        Raises:
            InvalidRequestError: no multiple of the VAE's scale, or an overlap outside of [0, 1).
        """
        with self._change():
            self.tiling = self.tiling_of(tile, overlap)

    def disable_tiling(self) -> None:
        """Run the VAE on whole images wherever the engine can."""
        with self._change():
            self.tiling = None

    @property
    def slicing(self) -> bool:
        """Whether images of a batch pass one by one."""
        return self.decoder.batch == 1

    @slicing.setter
    def slicing(self, on: bool) -> None:
        for half in self._halves():
            half.batch = 1 if on else None

    @property
    def tiling(self) -> Tiling | None:
        """The tiles of images larger than one; None runs them whole where the engine can."""
        return self.decoder.tiling

    @tiling.setter
    def tiling(self, tiling: Tiling | None) -> None:
        for half in self._halves():
            half.tiling = tiling

    def tiling_of(self, tile: int | None = None, overlap: float = 0.25) -> Tiling:
        """Tiles of ``tile`` pixels; None is the size the VAE was trained at.

        Raises:
            InvalidRequestError: no multiple of the VAE's scale, or an overlap outside of [0, 1).
        """
        facts = self._facts
        if tile is None:
            side = facts.vae_tile or max(facts.default_height, facts.default_width) // facts.scale
            return Tiling(side, overlap)
        pixels = check_int("tile", tile, facts.scale)
        if pixels % facts.scale:
            below = pixels // facts.scale * facts.scale
            raise InvalidRequestError(
                f"tile must be a multiple of {facts.scale}, and {pixels} is not: "
                f"use {below} or {below + facts.scale}"
            )
        return Tiling(pixels // facts.scale, overlap)

    def _halves(self) -> list[Decoder | Encoder]:
        return [self.decoder] if self._encoder is None else [self.decoder, self._encoder]
