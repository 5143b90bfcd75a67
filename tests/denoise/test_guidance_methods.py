"""Other ways of guidance than CFG, beside diffusers' guiders on random predictions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kdrt.bundle import PredictionType
from kdrt.denoise.guidance import Guidance
from kdrt.denoise.guidance_methods import GuidanceMethod
from kdrt.denoise.known_region import KnownRegion
from kdrt.denoise.parts import Predictions
from kdrt.denoise.scaling import Numbers, Scaling
from kdrt.sampling import NoiseSchedule

SHAPE = (3, 4, 5, 7)
SD = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
SIGMAS = [14.6, 3.0, 0.4, 0.03]
PREDICTIONS: list[PredictionType] = ["epsilon", "v_prediction", "sample"]


def random(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


class Case:
    """Random predictions at one noise level: U without the prompt, C with it."""

    def __init__(self, prediction: PredictionType, sigma: float) -> None:
        scaling = Scaling(prediction, SD)
        self.scalars = scaling.scalars(sigma)
        self.skips_whole = scaling.skips_whole
        self.x = random(0) * math.hypot(sigma, 1)
        self.predictions = random(1), random(2) * 0.7 + random(1)

    def made(self) -> Predictions:
        unconditional, conditional = self.predictions
        return Predictions(conditional, unconditional)

    def denoised(self) -> list[Tensor]:
        """D_u and D_c."""
        _, _, c_skip, c_out = self.scalars
        return [c_skip * self.x + c_out * prediction for prediction in self.predictions]

    def guided(self, scale: float, method: GuidanceMethod, **kind: Any) -> Tensor:
        numbers = Numbers(*self.scalars, scale, 0.0, *method.numbers)
        guidance = Guidance(self.x, skips_whole=self.skips_whole)
        return guidance.denoised(self.x, self.made(), numbers, None, **kind)


def guider(name: str, **options: Any) -> Any:
    guiders = pytest.importorskip("diffusers.guiders")
    made = getattr(guiders, name)(**options)
    made._step = 10
    return made


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> None:
    assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("eta", "threshold"), [(0.0, 0.0), (0.0, 2.0), (0.4, 15.0), (1.0, 0.0), (1.5, 0.5)]
)
def test_apg_is_diffusers_on_the_denoised_images(
    prediction: PredictionType, sigma: float, eta: float, threshold: float
) -> None:
    case = Case(prediction, sigma)
    without, conditional = case.denoised()
    # Its own formulation adds to the result without the prompt; the paper's to that with it, w - 1
    # times.
    theirs = guider(
        "AdaptiveProjectedGuidance",
        guidance_scale=5.5,
        adaptive_projected_guidance_rescale=threshold,
        eta=eta,
        use_original_formulation=True,
    )
    expected = theirs.forward(conditional, without).pred
    close(case.guided(6.5, GuidanceMethod("apg", eta, threshold), apg=True), expected)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_cfg_zero_star_is_diffusers_on_the_noise(sigma: float) -> None:
    case = Case("epsilon", sigma)
    theirs = guider("ClassifierFreeZeroStarGuidance", guidance_scale=6.5, zero_init_steps=0)
    without, conditional = case.predictions
    expected = case.x - sigma * theirs.forward(conditional, without).pred
    actual = case.guided(6.5, GuidanceMethod("cfg_zero_star"), zero_star=True)
    # The noise is a difference of images here, of which float32 leaves less where it is little.
    close(actual, expected, 1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_cfg_zero_star_is_the_papers_whatever_is_predicted(
    prediction: PredictionType, sigma: float
) -> None:
    """Restated with dx/dσ = (x - D)/σ as the velocity."""
    case = Case(prediction, sigma)
    x = case.x.double()
    without, with_prompt = ((x - denoised) / sigma for denoised in case.denoised())
    for image in range(len(x)):
        u, c = without[image], with_prompt[image]
        fitted = (c * u).sum() / (u * u).sum() * u
        velocity = (1 - 4.0) * fitted + 4.0 * c
        expected = (x[image] - sigma * velocity).float()
        actual = case.guided(4.0, GuidanceMethod("cfg_zero_star"), zero_star=True)[image]
        close(actual, expected, 2e-5)


def test_apg_with_nothing_left_out_is_cfg() -> None:
    case = Case("epsilon", 3.0)
    plain = case.guided(7.0, GuidanceMethod())
    close(case.guided(7.0, GuidanceMethod("apg", eta=1.0), apg=True), plain, 1e-6)


@pytest.mark.parametrize("name", ["apg", "cfg_zero_star"])
def test_equal_or_empty_predictions_are_finite(name: Any) -> None:
    case = Case("sample", 2.0)
    method = GuidanceMethod(name, 0.0, 1.0)
    for predictions in ((random(3), random(3)), (torch.zeros(SHAPE), torch.zeros(SHAPE))):
        case.predictions = predictions
        kind = {"apg": method.is_apg, "zero_star": method.is_zero_star}
        close(case.guided(5.0, method, **kind), predictions[1] + 0.0, 1e-5)


def test_each_image_of_a_batch_has_its_own() -> None:
    """Numbers on the device, a row for each image: CFG, adaptive projected, CFG-Zero*."""
    case = Case("v_prediction", 1.7)
    methods = [GuidanceMethod(), GuidanceMethod("apg", 0.2, 3.0), GuidanceMethod("cfg_zero_star")]
    scales = [7.0, 3.0, 5.0]
    rows = torch.tensor(
        [
            [*case.scalars, scale, 0.0, *method.numbers, 0.0]
            for scale, method in zip(scales, methods, strict=True)
        ]
    )
    guidance = Guidance(case.x, skips_whole=False)
    mask = torch.zeros(len(SHAPE) - 1, 1, *SHAPE[2:], dtype=torch.bool)
    mask[..., 2:] = True
    region = KnownRegion(torch.full(SHAPE, 9.0), mask)
    together = guidance.denoised(
        case.x, case.made(), Numbers.of_rows(rows), region, apg=True, zero_star=True
    )
    for image, (scale, method) in enumerate(zip(scales, methods, strict=True)):
        alone = case.guided(scale, method, apg=method.is_apg, zero_star=method.is_zero_star)
        close(together[image][..., 2:], alone[image][..., 2:], 1e-6)
        assert (together[image][..., :2] == 9.0).all()
