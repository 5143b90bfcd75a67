"""How a pipeline is called, and the types of what it returns.

Three ways into the same generation: ``pipe(prompt, …)``, ``pipe.generate(request)`` and, step by
step, ``pipe.stream(prompt, …)``. For type checkers each has an overload for every output type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kdrt.common.literals import OutputType
from kdrt.images.output import Images
from kdrt.pipeline.result import Generation, Result
from kdrt.request.fields import Request, RequestFields
from kdrt.request.signature import takes_fields
from kdrt.vae.preview import PreviewStep

Callback = Callable[[PreviewStep], object]
"""Called after every step. The tensors of a step are valid only during the call."""

Prompt = str | Sequence[str] | None
Pil = list[Image.Image]
Array = NDArray[np.float32]


class Calling(ABC):
    """The calls of a pipeline; :meth:`generate` and :meth:`_stream` are the pipeline's."""

    @overload
    def __call__(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: Literal["pil"] = "pil",
        callback: Callback | None = None,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Result[Pil]: ...

    @overload
    def __call__(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: Literal["np"],
        callback: Callback | None = None,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Result[Array]: ...

    @overload
    def __call__(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: Literal["pt", "latent"],
        callback: Callback | None = None,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Result[Tensor]: ...

    @overload
    def __call__(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: OutputType,
        callback: Callback | None = None,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Result[Images]: ...

    @takes_fields(Request)
    def __call__(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: OutputType = "pil",
        callback: Callback | None = None,
        progress: bool = False,
        **fields: Unpack[RequestFields],
    ) -> Result[Any]:
        """Make images. All fields are checked before anything is computed.

        Args:
            {fields}
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`Result`.
            callback: called after every step. The tensors of the step are valid only during the
                call. If the callback returns False, the call ends with CancelledError.
            progress: show a progress bar on standard error.

        Raises:
            InvalidRequestError: a field is wrong; nothing has been computed.
            ShapeError: the engine was not made for this size.
            OutOfMemoryError: memory ran out during the call; the next call works.
            NonFiniteError: the network overflowed.
            EngineError: the pipeline was loaded in another process.
            CancelledError: :meth:`cancel` or the callback ended the call.
            PipelineClosedError: the pipeline is closed.

        Warns:
            TruncationWarning: a prompt is too long; see :attr:`Result.truncations`.
            PromptSyntaxWarning: part of a prompt uses the syntax of another program and is read as
                plain text; see :mod:`kdrt.prompt.hints`.
        """
        return self.generate(
            _request(prompt, negative_prompt, fields),
            output_type=output_type,
            callback=callback,
            progress=progress,
        )

    @overload
    def generate(
        self,
        request: Request,
        *,
        output_type: Literal["pil"] = "pil",
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result[Pil]: ...

    @overload
    def generate(
        self,
        request: Request,
        *,
        output_type: Literal["np"],
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result[Array]: ...

    @overload
    def generate(
        self,
        request: Request,
        *,
        output_type: Literal["pt", "latent"],
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result[Tensor]: ...

    @overload
    def generate(
        self,
        request: Request,
        *,
        output_type: OutputType,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result[Images]: ...

    @abstractmethod
    def generate(
        self,
        request: Request,
        *,
        output_type: OutputType = "pil",
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result[Any]:
        """Make the images of a request. Errors and warnings are those of ``pipe(prompt, …)``.

        Args:
            request: what to make; fields that are absent have their defaults.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`Result`.
            callback: called after every step. The tensors of the step are valid only during the
                call. If the callback returns False, the call ends with CancelledError.
            progress: show a progress bar on standard error.
        """

    @overload
    def stream(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: Literal["pil"] = "pil",
        **fields: Unpack[RequestFields],
    ) -> Generation[Pil]: ...

    @overload
    def stream(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: Literal["np"],
        **fields: Unpack[RequestFields],
    ) -> Generation[Array]: ...

    @overload
    def stream(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: Literal["pt", "latent"],
        **fields: Unpack[RequestFields],
    ) -> Generation[Tensor]: ...

    @overload
    def stream(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: OutputType,
        **fields: Unpack[RequestFields],
    ) -> Generation[Images]: ...

    @takes_fields(Request)
    def stream(
        self,
        prompt: Prompt = None,
        negative_prompt: Prompt = None,
        *,
        output_type: OutputType = "pil",
        **fields: Unpack[RequestFields],
    ) -> Generation[Any]:
        """Make images step by step, with your own progress display, previews and cancelling.

            generation = pipe.stream("a red circle", seed=7)
            for step in generation:
                print(step.index, step.sigma)
            generation.result().save("circle.png")

        No other call of the pipeline can begin between the first step and the last, unless the
        generation is closed or garbage-collected before. A LoRA or a learned token that changes
        before the first step takes effect.

        Args:
            {fields}
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`Result`.

        Raises:
            InvalidRequestError: raised at once: a field is wrong.

        Warns:
            TruncationWarning: a prompt is too long.
        """
        return self._stream(_request(prompt, negative_prompt, fields), output_type)

    @abstractmethod
    def _stream(self, request: Request, output_type: OutputType) -> Generation[Any]:
        """The generation of a request, before its first step."""


def _request(prompt: Prompt, negative_prompt: Prompt, fields: RequestFields) -> Request:
    return {**fields, "prompt": prompt, "negative_prompt": negative_prompt}
