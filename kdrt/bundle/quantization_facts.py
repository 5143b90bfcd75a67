"""What a quantised bundle says of how it was made, and of what it lost."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from kdrt.bundle.bounded import ComponentName, Positive, Sha256, Size, Strict, Text

QuantizationFormat = Literal["fp8", "int8", "int4-weights"]


_Error = Annotated[float, Field(ge=0, le=1e6)]


_Share = Annotated[float, Field(ge=0, le=1)]


_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class StepLoss(Strict):
    """The error ``‖out − ref‖ / ‖ref‖`` of the UNet's output at a noise level. Both outputs are for
    the inputs that the original bundle had there."""

    sigma: Positive
    error: _Error


class QuantizationLoss(Strict):
    """What was measured on images that the calibration did not see.

    Attributes:
        steps: the error at each step of a generation, as the root mean square over the images.
        images: the number of images, made with the same seeds.
        height, width: the size of the images, in pixels.
        psnr: of the final images, in decibels: the mean over those that differ; None if all are
            equal.
        ssim: structural similarity (Wang et al. 2004); 1 for equal images.
        fidelity: for the demo model, the share of images that show what the prompt says.
        fidelity_before: likewise, for the bundle that this one was made from.
    """

    steps: Annotated[tuple[StepLoss, ...], Field(min_length=1, max_length=1000)]
    images: _Count
    height: Size
    width: Size
    psnr: Annotated[float, Field(ge=-100, le=1000)] | None
    ssim: Annotated[float, Field(ge=-1, le=1)]
    fidelity: _Share | None = None
    fidelity_before: _Share | None = None

    @property
    def error(self) -> float:
        """The error of one evaluation: the root mean square over the steps."""
        return math.sqrt(sum(step.error**2 for step in self.steps) / len(self.steps))


class QuantizationFacts(Strict):
    """How the UNets of a bundle were quantised.

    Attributes:
        format: the format that their layers compute in.
        made_from: the name of the bundle that this one was made from.
        network: SHA-256 over the graphs and weights of the UNet in that bundle.
        components: the quantised networks.
        layers: the number of quantised layers of the UNet.
        left: the layers that could be quantised and are not, because of their errors.
        max_error: the bound by which these layers were chosen.
        prompts: the number of calibration prompts.
        evaluations: the number of UNet evaluations in which the activations were measured.
        loss: what was measured afterwards.
    """

    format: QuantizationFormat
    made_from: Text
    network: Sha256
    components: Annotated[tuple[ComponentName, ...], Field(min_length=1, max_length=64)]
    layers: _Count
    left: Annotated[tuple[Text, ...], Field(max_length=10_000)] = ()
    max_error: Positive
    prompts: _Count
    evaluations: _Count
    loss: QuantizationLoss
