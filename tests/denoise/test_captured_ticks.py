"""Captured ticks repeat what was captured, at the addresses of then: nothing that comes later may
need another operation or lie elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdrt.denoise.conditioning_store import ImageShape
from kdrt.denoise.guidance_methods import GuidanceMethod
from kdrt.denoise.in_flight import InFlight
from kdrt.denoise.inputs import DenoiserInputs, RegionalPrompts, UNetConditioning
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.perturbed_attention import PerturbedAttention
from kdrt.denoise.regional import relative_weights
from kdrt.denoise.scaling import Scaling
from kdrt.prompt import Conditioning
from kdrt.sampling import NoiseSchedule, Plan, SeededNoise
from kdrt_engines.cuda_graphs import CudaGraphCache
from kdrt_engines.torch_eager import TorchEngine
from tests.support.frozen_graph import FrozenGraph
from tests.support.plans import fixed_plan
from tests.support.tiny_model import CHANNELS, POOLED, WIDTHS, Recorder, tiny_unet, unet_spec

SHAPE = ImageShape(height=4, width=6, tokens=5)
SCALING = Scaling("epsilon", NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear"))
SIGMAS = [14.6, 7.1, 3.0, 1.2, 0.5, 0.0]
SHORT = [9.0, 2.0, 0.0]
LONG = [20.0 / (i + 1) for i in range(40)]


def room(graphs: CudaGraphCache | None = None, *, captured: bool = True) -> InFlight:
    """Where ticks are captured as on CUDA; ``graphs`` holds them."""
    spec = unet_spec(perturbed=True)
    unet = TorchEngine(Recorder(tiny_unet, [tensor.name for tensor in spec.inputs]), spec)
    capture = FrozenGraph if captured else None
    return InFlight(unet, SCALING, SHAPE, 6, capture=capture, graphs=graphs)


class Wanted:
    """An image that is asked for, and where it is."""

    def __init__(self, seed: int, plan: Plan, **told: Any) -> None:
        self.plan = plan
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=generator)

        positive, negative = (
            UNetConditioning(Conditioning(random(5, sum(WIDTHS)), random(POOLED)), random(6))
            for _ in range(2)
        )
        if regions := told.pop("regions", 0):
            masks = torch.rand(regions, SHAPE.height, SHAPE.width, generator=generator)
            weights = relative_weights(masks, [1.0] * regions, 0.2)
            told["regions"] = RegionalPrompts((negative, positive)[:regions], weights[None])
        if kind := told.pop("region", False):
            mask = random(1, SHAPE.height, SHAPE.width)
            known = random(CHANNELS, *mask.shape[2:])
            told["known_region"] = KnownRegion(known, mask > 0)
            if kind == "soft":
                told["known_region"] = KnownRegion.soft(known, mask.clamp(0, 1), plan.sigmas)
        self._inputs = DenoiserInputs(
            positive=positive, **{"negative": negative, "guidance_scale": 5.0, **told}
        )
        self._seed = seed
        self.slot = -1

    def board(self, room: InFlight) -> None:
        source = SeededNoise([self._seed], (CHANNELS, SHAPE.height, SHAPE.width))
        latents = source.latents() * self.plan.sigmas[0]
        noise = source.draw(self.plan.slots) if self.plan.slots else None
        self.slot = room.admit(self.plan, latents, noise, self._inputs)

    def alone(self) -> Tensor:
        """What it is without company, and without captures."""
        flight = room(captured=False)
        self.board(flight)
        return to_the_end(flight, self)[0]


def to_the_end(room: InFlight, *images: Wanted) -> list[Tensor]:
    """The last states of images that have boarded."""
    while flying := [image.slot for image in images if not room.is_finished(image.slot)]:
        room.tick(flying)
    return [room.latents(image.slot) for image in images]


def assert_same(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=2e-5)


def test_a_region_that_comes_when_ticks_of_its_size_are_captured() -> None:
    plain = Wanted(1, fixed_plan("euler", SIGMAS))
    repainted = Wanted(2, fixed_plan("dpmpp_2m", SIGMAS), region=True)
    expected = plain.alone(), repainted.alone()
    flight = room()
    plain.board(flight)
    flight.tick([plain.slot])
    repainted.board(flight)
    # One image at a time: both are taken further by the ticks of one bucket.
    for _ in range(2):
        flight.tick([plain.slot])
        flight.tick([repainted.slot])
    for actual, wanted in zip(to_the_end(flight, plain, repainted), expected, strict=True):
        assert_same(actual, wanted)


def test_parts_that_come_when_ticks_of_their_size_are_captured() -> None:
    """Three rows for one image: guided with a region, without and with two, or with perturbed
    attention."""
    euler = fixed_plan("euler", SIGMAS)
    told: list[dict[str, Any]] = [
        {"regions": 1},
        {"perturbed_attention": PerturbedAttention(2.0, 0.001)},
        {"regions": 1, "guidance_scale": 2.0},
        {"negative": None, "regions": 2},
    ]
    images = [Wanted(seed, euler, **each) for seed, each in enumerate(told)]
    expected = [image.alone() for image in images]
    flight = room()
    for image in images:
        image.board(flight)
        flight.tick([image.slot])
        flight.tick([images[0].slot])
    for image, wanted in zip(images, expected, strict=True):
        assert_same(to_the_end(flight, image)[0], wanted)


def test_images_that_need_more_than_those_before() -> None:
    images = [
        Wanted(1, fixed_plan("euler", LONG)),
        Wanted(2, fixed_plan("dpmpp_sde", SIGMAS)),
        Wanted(3, fixed_plan("unipc", LONG), guidance_rescale=0.7, region="soft"),
        Wanted(4, fixed_plan("euler_cfg_pp", SIGMAS), region=True, guidance_scale=2.0),
        Wanted(5, fixed_plan("tcd", SIGMAS), guidance_method=GuidanceMethod("apg", 0.2, 3.0)),
        Wanted(6, fixed_plan("heun", SHORT), guidance_method=GuidanceMethod("cfg_zero_star")),
    ]
    expected = [image.alone() for image in images]
    graphs = CudaGraphCache()
    flight = room(graphs)
    for count, image in enumerate(images):
        image.board(flight)
        flight.tick([each.slot for each in images[: count + 1]])
        flight.tick([image.slot])
    for actual, wanted in zip(to_the_end(flight, *images), expected, strict=True):
        assert_same(actual, wanted)


def test_what_can_be_replayed_no_more_is_let_go_of() -> None:
    graphs = CudaGraphCache()
    flight = room(graphs)
    for seed, plan in enumerate((fixed_plan("euler", SHORT), fixed_plan("dpmpp_sde", LONG))):
        image = Wanted(seed, plan)
        image.board(flight)
        to_the_end(flight, image)
        assert len(graphs) == 1
        flight.leave(image.slot)
    flight.release()
    assert len(graphs) == 0
