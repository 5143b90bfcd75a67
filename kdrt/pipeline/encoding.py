"""From the prompts of a job to the conditioning of its images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

from kdrt.common.user_warning import warn_user
from kdrt.prompt import (
    Conditioning,
    PromptEncoder,
    PromptSyntaxWarning,
    Truncation,
    TruncationWarning,
    zeros_like,
)
from kdrt.request.job import PromptJob
from kdrt.request.snapshot import Columns


class PromptWarnings(NamedTuple):
    """What is not read as it may be meant; attributes as of :class:`EncodedPrompts`."""

    truncations: tuple[Truncation, ...]
    hints: tuple[PromptSyntaxWarning, ...]

    def warn(self) -> None:
        """Warn of it.

        Warns:
            TruncationWarning: a prompt is too long.
            PromptSyntaxWarning: part of a prompt is written for another program.
        """
        for truncation in self.truncations:
            warn_user(TruncationWarning(str(truncation)))
        for hint in self.hints:
            warn_user(hint)


@dataclass(frozen=True)
class EncodedPrompts:
    """The encoded prompts of B images.

    Attributes:
        positive: of the prompts.
        negative: of the negative prompts, as long; None where there is no second half.
        regions: of the prompt of each region, likewise for B images.
        truncations: every distinct prompt that was longer than a text encoder reads.
        version: of the prompt encoder, which changes with learned tokens and weights.
        max_length: tokens that a text encoder reads at once.
        hints: what is read as plain text, though other programs give it a meaning.
    """

    positive: Conditioning
    negative: Conditioning | None
    truncations: tuple[Truncation, ...]
    version: int
    max_length: int
    hints: tuple[PromptSyntaxWarning, ...]
    regions: tuple[Conditioning, ...] = ()

    @property
    def chunks(self) -> int:
        """In how many parts the longest prompt is read."""
        return -(-self.positive.length // self.max_length)

    def warn(self) -> None:
        """Warn of what is not read as it may be meant; see :class:`PromptWarnings`."""
        self.warnings.warn()

    @property
    def warnings(self) -> PromptWarnings:
        """What there is to warn of."""
        return PromptWarnings(self.truncations, self.hints)


def encode_prompts(
    encoder: PromptEncoder, job: PromptJob, device: torch.device, *, doubled: bool
) -> EncodedPrompts:
    """Encode what the caller did not bring encoded.

    Args:
        encoder: of the pipeline.
        job: the prompts.
        device: of the UNet.
        doubled: whether there is an unconditional half of the batch.
    """
    truncations: tuple[Truncation, ...] = ()
    if job.positive is not None:
        positive = job.positive.to(device)
    else:
        positive, truncations = encoder.encode(job.prompts, job.clip_skip, job.weighting)
    negative = regions = None
    if doubled:
        negative, others = _negative(encoder, job, positive)
        truncations = tuple(dict.fromkeys(truncations + others))
    if job.region_prompts:
        regions, others = encoder.encode(_columns(encoder, job), job.clip_skip, job.weighting)
        truncations = tuple(dict.fromkeys(truncations + others))
    length = max(each.length for each in (positive, negative, regions) if each is not None)
    positive = encoder.pad(positive, length, job.clip_skip)
    negative = negative and encoder.pad(negative, length)
    regions = regions and encoder.pad(regions, length, job.clip_skip)
    images = len(positive.encoder_hidden_states)
    max_length = encoder.encoders[0].facts.max_length
    texts = chain.from_iterable((*job.prompts, *(job.negatives or ()), job.region_prompts))
    hints = tuple(encoder.hints(texts, job.weighting))
    return EncodedPrompts(
        positive,
        negative,
        truncations,
        encoder.version,
        max_length,
        hints,
        tuple(
            regions.one(region).repeated(images)
            for region in range(len(job.region_prompts))
            if regions is not None
        ),
    )


def conditioning_length(encoder: PromptEncoder, job: PromptJob, *, doubled: bool) -> int:
    """How many tokens the conditioning of a job will have, without encoding anything; arguments as
    for :func:`encode_prompts`."""
    given, texts = [job.positive], [job.prompts]
    if doubled:
        given.append(job.negative)
        texts.append(job.negatives or job.prompts)
    if job.region_prompts:
        given.append(None)
        texts.append(_columns(encoder, job))
    return max(
        conditioning.length if conditioning is not None else encoder.length(columns, job.weighting)
        for conditioning, columns in zip(given, texts, strict=True)
    )


def _columns(encoder: PromptEncoder, job: PromptJob) -> Columns:
    """The prompts of regions for every text encoder."""
    return (job.region_prompts,) * len(encoder.encoders)


def _negative(
    encoder: PromptEncoder, job: PromptJob, positive: Conditioning
) -> tuple[Conditioning, tuple[Truncation, ...]]:
    if job.negative is not None:
        return job.negative.to(positive.encoder_hidden_states.device), ()
    if job.negatives is None:
        return zeros_like(positive), ()
    return encoder.encode(job.negatives, weighting=job.weighting)
