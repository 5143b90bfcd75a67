"""What is kept of a job for the text of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import cast

from kdrt.bundle import Manifest
from kdrt.denoise.freeu import FreeU
from kdrt.request.fields import Request

Columns = tuple[tuple[str, ...], ...]
"""For every text encoder, a prompt for every image."""

GIVEN = "given"
"""Stands for what text cannot hold."""


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """What the text of a job's images is made from, when it is first asked for: no tensors, images
    or functions, and nothing that the caller can still change.

    Attributes:
        manifest: of the model.
        request: complete, of :func:`plain` values.
        prompts, negatives: see `PromptJob`.
        clip_skip: likewise.
        seeds, noise_seeds: see `Job`.
        height, width: in pixels.
        steps: as asked for, of which an image to begin with may leave fewer to run.
        guidance_scale: asked for, or the model's.
        freeu: (b1, b2, s1, s2).
        own_sampler: the name of a sampler that is the caller's function; None for all others.
        controls: what is told of each control image.
        regions: prompt and weight of each.
    """

    manifest: Manifest
    request: Request
    prompts: Columns
    negatives: Columns | None
    clip_skip: int
    seeds: tuple[int, ...]
    noise_seeds: tuple[int, ...] | None
    height: int
    width: int
    steps: int
    guidance_scale: float
    freeu: FreeU
    own_sampler: str | None
    controls: tuple[str, ...] = ()
    regions: tuple[tuple[str, float], ...] = ()


def plain(request: Request) -> Request:
    """The same request as far as text can hold it; other values are `GIVEN`."""
    return cast(Request, {name: _plain(value) for name, value in request.items()})


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and all(isinstance(each, str | Real) for each in value):
        return value if isinstance(value, str) else tuple(value)
    return value if value is None or isinstance(value, Real) else GIVEN
