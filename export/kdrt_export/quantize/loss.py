"""What a quantised UNet loses, measured on images that the calibration did not see.

Three questions, from the inside out: how far off is an evaluation, on the inputs that the UNet had
before; how far off is the image in the end, with the same seed; and, of the demo model, does it
still show what the prompt says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import kdrt
from kdrt.bundle import QuantizationLoss, StepLoss
from kdrt_engines import Engine
from kdrt_engines.comparison import greatest_error, results
from kdrt_export.demo.fidelity import held_out_prompts, judge, score
from kdrt_export.errors import VerificationError
from kdrt_export.quantize.calibration import Evaluation, is_demo, trajectory
from kdrt_export.quantize.likeness import psnr_and_ssim
from kdrt_export.quantize.ranges import Sample
from kdrt_export.quantize.sensitivity import root_mean_square

IMAGES = 4
"""Images that are compared, unless the user says another number."""

JUDGED = 120
"""Prompts that the demo model is judged by."""

MOST_POINTS = 0.02
"""Of prompt fidelity that the demo model may lose."""

MOST_BEYOND = 2.0
"""How many times the bound of the scan the measured error of an evaluation may be. The scan adds up
single layers, on other images; a graph that is wrong is off by far more."""

_BATCH = 24
_JUDGED_STEPS = 10
_SEED = 2_000_000


@dataclass(frozen=True)
class Reference:
    """What a bundle makes before it is quantised.

    Attributes:
        prompts: of the images.
        evaluations: of the UNet, by image.
        images: float32 ``[H, W, 3]`` in [0, 1], by prompt.
        fidelity: of the demo model, its share of held-out prompts; else None.
    """

    prompts: tuple[str, ...]
    evaluations: tuple[tuple[Evaluation, ...], ...]
    images: tuple[np.ndarray, ...]
    fidelity: float | None


@dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
        prompts: of the images that are compared.
        height, width: of them in pixels; None is the model's own.

    The demo model is judged by ``JUDGED`` held-out prompts besides.
    """

    prompts: tuple[str, ...]
    height: int | None = None
    width: int | None = None

    def reference(self, pipe: kdrt.Pipeline) -> Reference:
        """What there is before quantising."""
        made = [
            trajectory(
                pipe,
                prompt,
                seed=_SEED + number,
                height=self.height,
                width=self.width,
                output_type="np",
            )
            for number, prompt in enumerate(self.prompts)
        ]
        return Reference(
            self.prompts,
            tuple(tuple(evaluations) for evaluations, _ in made),
            tuple(images[0] for _, images in made),
            self._fidelity(pipe),
        )

    def loss(self, pipe: kdrt.Pipeline, before: Reference) -> QuantizationLoss:
        """What a pipeline with the quantised UNet loses.

        Raises:
            VerificationError: an evaluation is not finite.
        """
        engine = pipe.engines["unet"]
        errors = [_errors(engine, evaluations) for evaluations in before.evaluations]
        if not all(math.isfinite(error) for of_image in errors for error in of_image):
            raise VerificationError(
                "the quantised UNet gives numbers that are not finite; calibrate with more "
                "prompts, or quantise less with a smaller --max-error"
            )
        images = [
            pipe(
                prompt,
                seed=_SEED + number,
                steps=len(before.evaluations[number]),
                sampler="euler",
                height=self.height,
                width=self.width,
                output_type="np",
            ).images[0]
            for number, prompt in enumerate(self.prompts)
        ]
        psnr, ssim = likeness(images, before.images)
        return QuantizationLoss(
            steps=tuple(
                StepLoss(sigma=evaluation.sigma, error=root_mean_square(e[step] for e in errors))
                for step, evaluation in enumerate(before.evaluations[0])
            ),
            images=len(images),
            height=images[0].shape[0],
            width=images[0].shape[1],
            psnr=psnr,
            ssim=ssim,
            fidelity=self._fidelity(pipe),
            fidelity_before=before.fidelity,
        )

    def _fidelity(self, pipe: kdrt.Pipeline) -> float | None:
        if not is_demo(pipe.bundle):
            return None
        return demo_fidelity(pipe, JUDGED, steps=_JUDGED_STEPS)


def demo_fidelity(pipe: kdrt.Pipeline, prompts: int, *, steps: int) -> float:
    """The share of images that show what the prompt says.

    Args:
        pipe: of the demo model.
        prompts: how many of the held-out ones.
        steps: of each image.
    """
    chosen = held_out_prompts(prompts)
    verdicts = []
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
        images = pipe([text for text, _ in part], seed=start, steps=steps).images
        pairs = zip(images, part, strict=True)
        verdicts += [judge(image, scene) for image, (_, scene) in pairs]
    return score(verdicts)


def check_loss(loss: QuantizationLoss, max_error: float) -> None:
    """Whether a quantised network may be kept.

    Args:
        loss: what was measured.
        max_error: the bound that its layers were chosen by.

    Raises:
        VerificationError: it loses too much.
    """
    if not loss.error <= MOST_BEYOND * max_error:
        raise VerificationError(
            f"an evaluation of the quantised UNet is off by {loss.error:.2g}, and its layers were "
            f"chosen for {max_error:.2g}; calibrate with more prompts, or quantise less with a "
            "smaller --max-error"
        )
    if loss.fidelity is None or loss.fidelity_before is None:
        return
    if loss.fidelity < loss.fidelity_before - MOST_POINTS:
        raise VerificationError(
            f"quantised it draws {loss.fidelity:.1%} of the prompts as asked, where it drew "
            f"{loss.fidelity_before:.1%}; quantise less with a smaller --max-error"
        )


def likeness(
    images: Sequence[np.ndarray], references: Sequence[np.ndarray]
) -> tuple[float | None, float]:
    """PSNR in decibels, the mean over the images that differ (None if none does), and SSIM.

    Args:
        images, references: float32 ``[H, W, 3]`` in [0, 1].
    """
    pairs = zip(images, references, strict=True)
    figures = [psnr_and_ssim(image[None], reference[None]) for image, reference in pairs]
    finite = [psnr for psnr, _ in figures if math.isfinite(psnr)]
    ssim = float(np.mean([ssim for _, ssim in figures]))
    return (float(np.mean(finite)) if finite else None), ssim


def _errors(engine: Engine, evaluations: Sequence[Evaluation]) -> list[float]:
    """Of the evaluations of an image, each on the inputs that it had."""
    binding = engine.bind(**evaluations[0].dims)
    return [
        greatest_error(results(binding, _tensors(evaluation.inputs)), _tensors(evaluation.outputs))
        for evaluation in evaluations
    ]


def _tensors(sample: Sample) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in sample.items()}
