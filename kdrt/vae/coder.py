"""Between latents and pixels: the VAE's two halves, and the refusal to show a broken image.

Latents here are what the sampler works on: the scaling factor of the VAE (and its statistics,
where it has them) is part of the exported networks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from kdrt.common.log import timed
from kdrt.common.lru import LruCache
from kdrt.errors import NonFiniteError, ShapeError
from kdrt.vae.tiling import Tiling, run_tiled
from kdrt_engines import Binding, Engine

_logger = logging.getLogger(__name__)

_BINDINGS = 4
"""A tiled image has up to four shapes of tiles: inside, at the right, at the bottom, corner."""

_OVERFLOWS = (
    "as it does where it overflows in float16; export the model with --vae-precision fp32 or bf16, "
    "or with a VAE made for float16 (--vae madebyollin/sdxl-vae-fp16-fix)"
)


class _Coder:
    """One half of the VAE, run on a slice of the batch at a time and, if asked, in tiles.

    This is what needs most memory, and needs it for every image at once. In slices of one, the
    default, the peak does not grow with the batch, and neither does an image depend on it; in
    tiles it does not grow with the image either.

    Args:
        engine: the component.
        batch: the most images run together; None is all of them.
        tiling: how images larger than a tile are cut; None runs them whole. Either way, what is
            larger than the engine allows is cut into the largest tiles that it does allow.
        turn: entered to run, as the buffers hold one run at a time.
    """

    def __init__(
        self,
        engine: Engine,
        batch: int | None = 1,
        tiling: Tiling | None = None,
        turn: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._engine = engine
        self._turn = turn
        self.batch = batch
        self.tiling = tiling
        source, result = engine.spec.inputs[0], engine.spec.outputs[0]
        self._in, self._out = source.name, result.name
        one = {"B": 1, "h": 1, "w": 1}
        self._scale_in, self._scale_out = source.resolve(one)[-1], result.resolve(one)[-1]
        self._bindings: LruCache[tuple[int, int, int], Binding] = LruCache(_BINDINGS)

    def release(self) -> None:
        """Let go of what was bound for the sizes seen last."""
        self._bindings.clear()

    def _run(self, source: Tensor) -> Tensor:
        """``[B, C, scale_in·h, scale_in·w]`` through the network, as float32."""
        with self._turn():
            return self._run_in_turn(source)

    def _run_in_turn(self, source: Tensor) -> Tensor:
        size = self.batch or len(source)
        tiling = self._tiling_for(
            min(size, len(source)), *(side // self._scale_in for side in source.shape[2:])
        )
        results = []
        for start in range(0, len(source), size):
            part = source[start : start + size]
            if tiling is None:
                results.append(self._run_whole(part))
                continue
            least = max((self._limits(side)[0] for side in "hw"), default=1)
            results.append(
                run_tiled(
                    self._run_whole,
                    part,
                    tiling,
                    scale_in=self._scale_in,
                    scale_out=self._scale_out,
                    least=least,
                )
            )
        return torch.cat(results)

    def _run_whole(self, source: Tensor) -> Tensor:
        height, width = (side // self._scale_in for side in source.shape[2:])
        binding = self._bindings.get(
            (len(source), height, width),
            lambda: self._engine.bind(B=len(source), h=height, w=width),
        )
        binding.inputs[self._in].copy_(source)
        binding.run()
        return binding.outputs[self._out].to(torch.float32, copy=True)

    def _limits(self, symbol: str) -> tuple[int, int | None]:
        return self._engine.limits().get(symbol, (1, None))

    def is_tiled(self, height: int, width: int) -> bool:
        """Whether an image of this size, in latents, is cut into tiles."""
        return self._tiling_for(1, height, width) is not None

    def _tiling_for(self, batch: int, height: int, width: int) -> Tiling | None:
        """The tiling asked for, with tiles no larger than the engine allows; or one of the
        engine's largest tiles where it does not allow the whole; or None."""
        most = [limit for symbol in "hw" if (limit := self._limits(symbol)[1]) is not None]
        largest = min(most, default=max(height, width))
        if self.tiling is not None and self.tiling.applies(height, width):
            return Tiling(min(self.tiling.size, largest), self.tiling.overlap)
        if self._engine.allows(B=batch, h=height, w=width):
            return None
        return Tiling(largest) if Tiling(largest).applies(height, width) else None


class Decoder(_Coder):
    """The VAE's decoder; see :class:`_Coder`.

    Args:
        engine: the ``vae_decoder`` component.
        batch: the most images decoded together; None is all of them.
        tiling: how large images are cut; None decodes them whole where the engine can.
        turn: see there too.
    """

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Decode ``latents [B, C, h, w]`` to float32 ``[B, 3, H, W]`` in about [-1, 1].

        Raises:
            NonFiniteError: a pixel is not finite.
            ShapeError: the engine does not allow this size.
        """
        with timed(_logger, f"decoded {len(latents)} image(s)", self._engine.device):
            pixels = self._run(latents)
        if not _is_finite(pixels):
            raise NonFiniteError(f"the VAE's decoder gave pixels that are not finite, {_OVERFLOWS}")
        return pixels


class Encoder(_Coder):
    """The VAE's encoder; see :class:`_Coder`.

    Args:
        engine: the ``vae_encoder`` component.
        batch: the most images encoded together; None is all of them.
        tiling: how large images are cut; None encodes them whole where the engine can.
        turn: see there too.
    """

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Encode ``image [B, 3, H, W]`` in [-1, 1] to float32 latents ``[B, C, h, w]``.

        The network gives a normal distribution for every latent, and this is its mean: the best
        guess, and the same every time. (A sample lies off it by what the VAE cannot tell apart.)

        Raises:
            NonFiniteError: a value is not finite.
            ShapeError: the sides are no multiples of the VAE's scale, or the engine does not
                allow them.
        """
        if any(side % self._scale_in for side in image.shape[2:]):
            raise ShapeError(
                f"the VAE encodes images whose sides are multiples of {self._scale_in}, "
                f"not {image.shape[2]} by {image.shape[3]}"
            )
        with timed(_logger, f"encoded {len(image)} image(s)", self._engine.device):
            moments = self._run(image)
        if not _is_finite(moments):
            raise NonFiniteError(
                f"the VAE's encoder gave latents that are not finite, {_OVERFLOWS}"
            )
        return moments.chunk(2, dim=1)[0]


def check_latents(latents: Tensor) -> None:
    """Raise NonFiniteError unless every latent is finite."""
    if not _is_finite(latents):
        raise NonFiniteError(
            "sampling ended in latents that are not finite: the UNet overflowed, or the sampler "
            "diverged; lower guidance_scale or the scale of a LoRA, take more steps or the default "
            "sampler_options, or export the model with --precision fp32 or bf16"
        )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
