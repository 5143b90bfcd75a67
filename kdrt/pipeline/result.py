"""Images in the making, and made."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from kdrt.common.validation import check_int
from kdrt.errors import InvalidRequestError
from kdrt.images.output import Images, save_image
from kdrt.pipeline.metadata import Infotext
from kdrt.prompt import Truncation
from kdrt.vae.preview import PreviewStep

ImagesT = TypeVar("ImagesT", bound=Images)


@dataclass(frozen=True)
class Result(Generic[ImagesT]):
    """The images of one call.

    Attributes:
        images: by ``output_type``: a list of PIL images; an array float32 ``[B, H, W, 3]`` or a
            tensor float32 ``[B, 3, H, W]``, both in [0, 1]; or latents float32 ``[B, C, h, w]``.
        seeds: the seed of each image, whether it was given or drawn.
        truncations: every distinct prompt that was longer than a text encoder reads.
        is_latent: whether ``images`` are latents.
        chunks: the number of chunks in which the longest prompt was read; more than one only with
            a ``prompt_weighting``, or with embeddings that long.
        nsfw: for each image, whether it was blacked out; None if nothing checked the images.
        in_flight: whether the evaluations could be shared with other requests (`kdrt.Batcher`);
            otherwise the request ran alone.
        unet_rows: how many rows of the whole UNet an image took in all evaluations together: two
            per evaluation with guidance, one more with perturbed attention; None if the sampler
            chooses its evaluations during the run.
        make_infotexts: makes the :attr:`infotexts`.
    """

    images: ImagesT
    seeds: list[int]
    truncations: tuple[Truncation, ...] = ()
    is_latent: bool = False
    chunks: int = 1
    nsfw: list[bool] | None = None
    in_flight: bool = False
    unet_rows: int | None = None
    make_infotexts: Callable[[], list[Infotext]] = field(default=list, repr=False, compare=False)

    @cached_property
    def infotexts(self) -> list[Infotext]:
        """How each image was made; its ``str`` is what :meth:`save` stores in the file."""
        return self.make_infotexts()

    def save(self, path: str | os.PathLike[str], index: int = 0, *, overwrite: bool = True) -> Path:
        """Save one image with its infotext; see :func:`kdrt.save_image`.

        Args:
            path: the file; its suffix decides the format.
            index: which image, counted from 0.
            overwrite: replace a file that exists.

        Returns:
            The path of the file.

        Raises:
            InvalidRequestError: there is no image ``index``, or the images are latents.
            OutputError: the file cannot be written, its suffix is unknown, or it exists and
                ``overwrite`` is off.
        """
        if self.is_latent:
            raise InvalidRequestError(
                "latents cannot be saved as an image; ask for another output_type"
            )
        if check_int("index", index, 0) >= len(self.seeds):
            raise InvalidRequestError(f"there are {len(self.seeds)} images, so no image {index}")
        return save_image(self.images[index], path, self.infotexts[index], overwrite=overwrite)


class Generation(Iterator[PreviewStep], Generic[ImagesT]):
    """Images in the making, from :meth:`Pipeline.stream`: iterate to sample, then call
    :meth:`result`.

    A step is sampled only when you ask for it: to cancel, stop iterating. ``len`` is the total
    number of steps. From the first step to the last, this generation has the pipeline for itself:
    other threads wait, and the thread that takes the steps can begin no other call. An unfinished
    run ends with :meth:`close`, or when it is garbage-collected.

    Different threads may take the steps, one after the other.
    """

    def __init__(
        self,
        steps: int,
        run: Generator[PreviewStep, None, Tensor],
        finish: Callable[[Tensor], Result[ImagesT]],
    ) -> None:
        self._steps = steps
        self._run = run
        self._finish = finish
        self._taking = threading.Lock()
        self._latents: Tensor | None = None
        self._result: Result[ImagesT] | None = None

    def __len__(self) -> int:
        return self._steps

    def __next__(self) -> PreviewStep:
        if not self._taking.acquire(blocking=False):
            raise InvalidRequestError(
                "a step of this generation is being taken already; let one thread after the other "
                "take them"
            )
        try:
            return next(self._run)
        except StopIteration as end:
            if end.value is not None:
                self._latents = end.value
            raise
        finally:
            self._taking.release()

    def close(self) -> None:
        """End the run where it is, and discard what it made so far."""
        with self._taking:
            self._run.close()
        self._latents = None

    def result(self) -> Result[ImagesT]:
        """The images. Takes the steps that are left, then decodes; later calls return the same
        result.

        Raises:
            NonFiniteError: the network overflowed.
            PipelineClosedError: the pipeline was closed between the last step and the decoding.
            InvalidRequestError: the generation was closed, or failed, before its last step.
        """
        if self._result is None:
            for _ in self:
                pass
            if self._latents is None:
                raise InvalidRequestError("these images were not finished; make them again")
            self._result = self._finish(self._latents)
        return self._result
