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
    """What the UNet is told of the prompts of B images.

    Attributes:
        positive: of the prompts.
        negative: of the negative prompts, as long; None where there is no second half.
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
    negative = None
    if doubled:
        negative, others = _negative(encoder, job, positive)
        truncations = tuple(dict.fromkeys(truncations + others))
        length = max(positive.length, negative.length)
        positive = encoder.pad(positive, length, job.clip_skip)
        negative = encoder.pad(negative, length)
    max_length = encoder.encoders[0].facts.max_length
    texts = chain.from_iterable((*job.prompts, *(job.negatives or ())))
    hints = tuple(encoder.hints(texts, job.weighting))
    return EncodedPrompts(positive, negative, truncations, encoder.version, max_length, hints)


def conditioning_length(encoder: PromptEncoder, job: PromptJob, *, doubled: bool) -> int:
    """How many tokens the conditioning of a job will have, without encoding anything; arguments as
    for :func:`encode_prompts`."""
    given, texts = [job.positive], [job.prompts]
    if doubled:
        given.append(job.negative)
        texts.append(job.negatives or job.prompts)
    return max(
        conditioning.length if conditioning is not None else encoder.length(columns, job.weighting)
        for conditioning, columns in zip(given, texts, strict=True)
    )


def _negative(
    encoder: PromptEncoder, job: PromptJob, positive: Conditioning
) -> tuple[Conditioning, tuple[Truncation, ...]]:
    if job.negative is not None:
        return job.negative.to(positive.encoder_hidden_states.device), ()
    if job.negatives is None:
        return zeros_like(positive), ()
    return encoder.encode(job.negatives, weighting=job.weighting)
