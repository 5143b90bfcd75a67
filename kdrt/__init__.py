"""kdrt: a k-diffusion runtime for Stable Diffusion and SDXL.

    import kdrt

    pipe = kdrt.load("demo")
    pipe("a red circle on a blue background", seed=7).save("circle.png")

:func:`load` opens a bundle made by ``kdrt export`` and returns a :class:`Pipeline`. Calling the
pipeline returns a :class:`Result`. Every error that a user can correct is a :class:`KdrtError`.

A name is imported when it is first used, so ``import kdrt`` costs almost nothing: a command that
only prints its help need not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kdrt._version import __version__

if TYPE_CHECKING:
    from kdrt.batching.batcher import Batcher
    from kdrt.batching.handle import Handle, ImageStep
    from kdrt.bundle import Bundle
    from kdrt.errors import (
        BundleError,
        CancelledError,
        EngineError,
        EngineRejectedError,
        EngineUnavailableError,
        ExportError,
        InvalidRequestError,
        KdrtError,
        NonFiniteError,
        OutOfMemoryError,
        OutputError,
        OutputExistsError,
        PipelineClosedError,
        ShapeError,
        UnknownFieldError,
    )
    from kdrt.images.control import ControlImage
    from kdrt.images.output import read_infotext, save_image
    from kdrt.images.region import Region
    from kdrt.images.sheet import image_grid
    from kdrt.pipeline.loading import load
    from kdrt.pipeline.metadata import Infotext
    from kdrt.pipeline.pipeline import Pipeline
    from kdrt.pipeline.result import Generation, Result
    from kdrt.prompt import Conditioning, PromptSyntaxWarning, Truncation, TruncationWarning
    from kdrt.request.fields import Request
    from kdrt.request.recorded import request_from
    from kdrt.sampling import Step
    from kdrt.vae.preview import PreviewStep

__all__ = [
    "Batcher",
    "Bundle",
    "BundleError",
    "CancelledError",
    "Conditioning",
    "ControlImage",
    "EngineError",
    "EngineRejectedError",
    "EngineUnavailableError",
    "ExportError",
    "Generation",
    "Handle",
    "ImageStep",
    "Infotext",
    "InvalidRequestError",
    "KdrtError",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "Pipeline",
    "PipelineClosedError",
    "PreviewStep",
    "PromptSyntaxWarning",
    "Region",
    "Request",
    "Result",
    "ShapeError",
    "Step",
    "Truncation",
    "TruncationWarning",
    "UnknownFieldError",
    "__version__",
    "image_grid",
    "load",
    "read_infotext",
    "request_from",
    "save_image",
]

_HOME = {
    "Batcher": "kdrt.batching.batcher",
    "Bundle": "kdrt.bundle",
    "Conditioning": "kdrt.prompt",
    "ControlImage": "kdrt.images.control",
    "Generation": "kdrt.pipeline.result",
    "Handle": "kdrt.batching.handle",
    "ImageStep": "kdrt.batching.handle",
    "Infotext": "kdrt.pipeline.metadata",
    "Pipeline": "kdrt.pipeline.pipeline",
    "PreviewStep": "kdrt.vae.preview",
    "Region": "kdrt.images.region",
    "Request": "kdrt.request.fields",
    "PromptSyntaxWarning": "kdrt.prompt",
    "Result": "kdrt.pipeline.result",
    "Step": "kdrt.sampling",
    "Truncation": "kdrt.prompt",
    "TruncationWarning": "kdrt.prompt",
    "load": "kdrt.pipeline.loading",
    "image_grid": "kdrt.images.sheet",
    "read_infotext": "kdrt.images.output",
    "request_from": "kdrt.request.recorded",
    "save_image": "kdrt.images.output",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kdrt' has no attribute {name!r}")
    # What is not listed is an exception: those share one module.
    value: object = getattr(importlib.import_module(_HOME.get(name, "kdrt.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
