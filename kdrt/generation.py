"""Pictures in the making, and made."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kdrt.errors import InvalidRequest
from kdrt.images import Images, save_image
from kdrt.parameters import Parameters
from kdrt.previews import PreviewStep
from kdrt.prompt import Truncation


@dataclass(frozen=True)
class Result:
    """The pictures of one call.

    Attributes:
        images: as ``output_type`` asked: a list of PIL images; an array float32 ``[B, H, W, 3]``
            or a tensor float32 ``[B, 3, H, W]`` in [0, 1]; or latents float32 ``[B, C, h, w]``.
        seeds: the seed of each picture, drawn or given.
        parameters: how each was made; its ``str`` is what :meth:`save` stores in the file.
        truncations: every distinct prompt that was longer than a text encoder reads.
        chunks: in how many parts the longest prompt was read; more than one only with a
            ``prompt_weighting``, or with embeddings that long.
        nsfw: for each picture whether it was blacked out; None if nobody looked.
    """

    images: Images
    seeds: list[int]
    parameters: list[Parameters]
    truncations: tuple[Truncation, ...] = ()
    is_latent: bool = False
    chunks: int = 1
    nsfw: list[bool] | None = None

    def save(self, path: str | os.PathLike[str], index: int = 0) -> Path:
        """Save one picture with its parameters; see :func:`kdrt.save_image`.

        Raises:
            InvalidRequest: there is no picture ``index``, or these are latents.
            OutputError: the file cannot be written, or its suffix is unknown.
        """
        if self.is_latent:
            raise InvalidRequest(
                "latents cannot be saved as a picture; ask for another output_type"
            )
        if not 0 <= index < len(self.seeds):
            raise InvalidRequest(f"there are {len(self.seeds)} images, so no image {index}")
        return save_image(self.images[index], path, self.parameters[index])


class Generation(Iterator[PreviewStep]):
    """Pictures in the making, from :meth:`Pipeline.steps`: iterate to sample, then take the result.

    Nothing is sampled but what is asked for: to cancel, stop iterating. ``len`` is the number of
    steps in all. A pipeline makes one set of pictures at a time; starting another ends this one.
    """

    def __init__(
        self, steps: int, run: Iterator[PreviewStep], finish: Callable[[Tensor], Result]
    ) -> None:
        self._steps = steps
        self._run = run
        self._finish = finish
        self._latents: Tensor | None = None
        self._result: Result | None = None

    def __len__(self) -> int:
        return self._steps

    def __next__(self) -> PreviewStep:
        try:
            step = next(self._run)
        except StopIteration:
            raise
        except BaseException:
            self._latents = None  # half of a picture is none
            raise
        self._latents = step.latents
        return step

    def close(self) -> None:
        """End the run where it stands; what it made so far is let go."""
        if isinstance(self._run, Generator):
            self._run.close()
        self._latents = None

    def result(self) -> Result:
        """The pictures: takes what steps are left, then decodes; once only.

        Raises:
            NonFiniteError: the network overflowed.
            InvalidRequest: the pipeline has started on other pictures before the last step.
        """
        if self._result is None:
            for _ in self:
                pass
            if self._latents is None:
                raise InvalidRequest("these pictures were not finished; make them again")
            self._result = self._finish(self._latents)
        return self._result
