"""Tiles and slices of the VAE, against diffusers' AutoencoderKL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.compat.vae import VaeMixin
from kdrt.errors import InvalidRequestError, NonFiniteError, ShapeError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.vae.coder import Decoder, Encoder
from kdrt.vae.tiling import Tiling, run_tiled
from kdrt_engines import EngineSpec
from kdrt_engines.torch_eager import TorchBinding, TorchEngine
from kdrt_export.components import ExportVaeDecoder, ExportVaeEncoder
from tests.support.tiny_model import CHANNELS, SCALE, TinyModel, tiny_model, tiny_vae_decoder
from tests.support.tiny_networks import vae as tiny_vae

# Tiles of 16 latents; sides below, at, just above and far above one, and ones that leave
# slivers of a single latent.
SHAPES = [(1, 17, 16), (2, 16, 25), (1, 40, 13), (3, 37, 29), (1, 15, 33)]


class LimitedEngine(TorchEngine):
    """An engine built for a range of sizes, which keeps the sizes it is bound to."""

    def __init__(self, module: torch.nn.Module, spec: EngineSpec, least: int, most: int) -> None:
        super().__init__(module, spec)
        self.least, self.most = least, most
        self.bound: list[tuple[int, int]] = []

    def limits(self) -> dict[str, tuple[int, int]]:
        return {"h": (self.least, self.most), "w": (self.least, self.most)}

    def bind(self, **dims: int) -> TorchBinding:
        if not all(self.least <= dims[side] <= self.most for side in "hw"):
            raise ShapeError(f"{dims} is outside of {self.least} to {self.most}")
        self.bound.append((dims["h"], dims["w"]))
        return super().bind(**dims)


def relative(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, None])
@torch.no_grad()
def test_decoding_equals_diffusers(shape: tuple[int, int, int], batch: int | None) -> None:
    vae = tiny_vae()
    vae.enable_tiling()
    assert vae.tile_latent_min_size == 16
    images, height, width = shape
    latents = torch.randn(images, 4, height, width)
    component = ExportVaeDecoder(vae)
    decoder = Decoder(TorchEngine(component, component.spec), batch, Tiling(16))
    expected = vae.decode(latents / vae.config.scaling_factor).sample
    assert relative(decoder(latents), expected) < 2e-6
    vae.disable_tiling()
    whole = vae.decode(latents / vae.config.scaling_factor).sample
    assert relative(expected, whole) > 1e-2


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_encoding_equals_diffusers(shape: tuple[int, int, int]) -> None:
    vae = tiny_vae()
    vae.enable_tiling()
    images, height, width = shape
    pixels = torch.rand(images, 3, 2 * height, 2 * width) * 2 - 1
    component = ExportVaeEncoder(vae)
    mean = Encoder(TorchEngine(component, component.spec), 2, Tiling(16))(pixels)
    expected = vae.encode(pixels).latent_dist
    assert relative(mean, expected.mean * vae.config.scaling_factor) < 2e-6


@torch.no_grad()
def test_statistics_of_the_latents_are_part_of_the_encoder() -> None:
    """As diffusers' pipelines use ``latents_mean`` and ``latents_std``; the decoder undoes it."""
    shift, spread = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 0.8]
    vae = tiny_vae(latents_mean=shift, latents_std=spread)
    component = ExportVaeEncoder(vae)
    pixels = torch.rand(2, 3, 12, 20) * 2 - 1
    mean = Encoder(TorchEngine(component, component.spec))(pixels)
    expected = vae.encode(pixels).latent_dist
    columns = [torch.tensor(v).view(1, 4, 1, 1) for v in (shift, spread)]
    factor = vae.config.scaling_factor
    assert relative(mean, (expected.mean - columns[0]) * factor / columns[1]) < 2e-6
    std = component(pixels).chunk(2, dim=1)[1].mul(0.5).exp()
    assert relative(std, expected.std * factor / columns[1]) < 2e-6


def test_an_image_no_larger_than_a_tile_is_run_whole(sdxl: TinyModel) -> None:
    sdxl.pipeline.vae.enable_tiling(tile=16 * SCALE)
    sdxl.pipeline.vae.decoder(torch.randn(1, CHANNELS, 16, 9))
    assert [tuple(call["latents"].shape[2:]) for call in sdxl.vae_decoder.calls] == [(16, 9)]


@pytest.mark.parametrize(("tile", "overlap"), [(8, 0.25), (5, 0.25), (7, 0.0), (6, 0.6), (9, 0.9)])
def test_tiles_without_a_seam_are_the_whole(tile: int, overlap: float) -> None:
    """A network that works latent by latent is the same in tiles of any kind."""
    latents = torch.randn(2, CHANNELS, 23, 31)
    result = run_tiled(tiny_vae_decoder, latents, Tiling(tile, overlap), scale_in=1, scale_out=8)
    torch.testing.assert_close(result, tiny_vae_decoder(latents), rtol=0, atol=1e-6)


def test_tiles_of_one_shape_share_a_binding(sdxl: TinyModel) -> None:
    engine = LimitedEngine(sdxl.vae_decoder, sdxl.pipeline.engines["vae_decoder"].spec, 1, 99)
    decoder = Decoder(engine, tiling=Tiling(8))
    decoder(torch.randn(2, CHANNELS, 20, 21))
    assert len(sdxl.vae_decoder.calls) == 2 * 4 * 4
    assert len(engine.bound) == len(set(engine.bound))


def test_what_an_engine_does_not_allow_is_tiled_of_itself(sdxl: TinyModel) -> None:
    engine = LimitedEngine(sdxl.vae_decoder, sdxl.pipeline.engines["vae_decoder"].spec, 6, 12)
    latents = torch.randn(1, CHANNELS, 30, 12)
    result = Decoder(engine)(latents)
    torch.testing.assert_close(result, tiny_vae_decoder(latents), rtol=0, atol=1e-6)
    assert (12, 12) in engine.bound
    # Asked for larger tiles than it has: its own.
    Decoder(engine, tiling=Tiling(20))(latents)
    # Small enough: whole, and too small: the engine says so.
    before = len(sdxl.vae_decoder.calls)
    Decoder(engine)(latents[:, :, :12])
    assert len(sdxl.vae_decoder.calls) == before + 1
    with pytest.raises(ShapeError, match="outside"):
        Decoder(engine)(latents[:, :, :5])


def test_an_engine_of_one_size_runs_the_pieces_at_the_edge(sdxl: TinyModel) -> None:
    engine = LimitedEngine(sdxl.vae_decoder, sdxl.pipeline.engines["vae_decoder"].spec, 8, 8)
    latents = torch.randn(1, CHANNELS, 13, 8 * 3 + 1)
    result = Decoder(engine)(latents)
    torch.testing.assert_close(result, tiny_vae_decoder(latents), rtol=0, atol=1e-6)
    assert set(engine.bound) == {(8, 8)}


def test_the_switches_of_a_pipeline(sdxl: TinyModel) -> None:
    pipe = sdxl.pipeline
    options: dict[str, Any] = {
        "steps": 1,
        "seed": 0,
        "height": 64,
        "width": 96,
        "output_type": "pt",
    }
    whole = pipe(["a", "b"], **options).images
    assert [len(call["latents"]) for call in sdxl.vae_decoder.calls] == [1, 1]
    pipe.vae.disable_slicing()
    pipe(["a", "b"], **options)
    assert [len(call["latents"]) for call in sdxl.vae_decoder.calls[2:]] == [2]
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling(tile=64)
    assert pipe.vae.tiling == Tiling(8)
    tiled = pipe(["a", "b"], **options).images
    assert len(sdxl.vae_decoder.calls) == 3 + 2 * 2 * 2
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)
    pipe.vae.disable_tiling()
    pipe("a", **options)
    assert len(sdxl.vae_decoder.calls) == 3 + 8 + 1
    pipe.vae.enable_tiling()
    assert pipe.vae.tiling == Tiling(64 // SCALE)


@pytest.mark.parametrize(
    ("tile", "overlap", "words"),
    [
        (63, 0.25, "tile must be a multiple of 8, and 63 is not: use 56 or 64"),
        (0, 0.25, "whole number of at least 8"),
        ("64", 0.25, "whole number of at least 8"),
        (64, 1.0, "from 0 to below 1"),
        (64, -0.1, "from 0 to below 1"),
        (64, float("nan"), "from 0 to below 1"),
        (64, "a quarter", "from 0 to below 1"),
    ],
)
def test_switches_check_what_they_are_given(
    sdxl: TinyModel, tile: int, overlap: float, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        sdxl.pipeline.vae.enable_tiling(tile, overlap)
    assert sdxl.pipeline.vae.tiling is None


def test_diffusers_switches(sdxl: TinyModel) -> None:
    class Holder(VaeMixin):
        def __init__(self, pipeline: Pipeline) -> None:
            self.pipeline = pipeline

    holder, vae = Holder(sdxl.pipeline), sdxl.pipeline.vae
    holder.disable_vae_slicing()
    assert not vae.slicing
    holder.enable_vae_slicing()
    assert vae.slicing
    holder.enable_vae_tiling()
    assert vae.tiling == Tiling(8)
    holder.disable_vae_tiling()
    assert vae.tiling is None
    holder.upcast_vae()


def test_a_vae_in_float16_cannot_be_upcast(tmp_path: Path) -> None:
    class Holder(VaeMixin):
        pipeline = tiny_model(tmp_path, "sdxl", dtype="float16").pipeline

    with pytest.raises(InvalidRequestError, match="--vae-precision fp32 or bf16"):
        Holder().upcast_vae()


class Overflowing(torch.nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return torch.full((len(tensor), 8, tensor.shape[2] // 8, tensor.shape[3] // 8), -torch.inf)


def test_an_overflowing_encoder_is_an_error_with_advice() -> None:
    spec = ExportVaeEncoder(tiny_vae(block_out_channels=(8,) * 4, **FOUR)).spec
    encoder = Encoder(TorchEngine(Overflowing(), spec))
    with pytest.raises(NonFiniteError, match=r"encoder.*not finite.*--vae-precision fp32"):
        encoder(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ShapeError, match="multiples of 8, not 17 by 16"):
        encoder(torch.zeros(1, 3, 17, 16))


FOUR = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
