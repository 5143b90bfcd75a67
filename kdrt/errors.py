"""The exceptions that kdrt raises for errors a user can correct; all derive from ``KdrtError``."""

from __future__ import annotations

from kdrt_engines.errors import (
    EngineError,
    EngineRejectedError,
    EngineUnavailableError,
    KdrtError,
    OutOfMemoryError,
    ShapeError,
)

__all__ = [
    "BundleError",
    "CancelledError",
    "EngineError",
    "EngineRejectedError",
    "EngineUnavailableError",
    "ExportError",
    "InvalidRequestError",
    "KdrtError",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutputError",
    "OutputExistsError",
    "PipelineClosedError",
    "ShapeError",
    "UnknownFieldError",
]


class InvalidRequestError(KdrtError, ValueError):
    """An argument is wrong: an unknown sampler, an impossible size, …"""


class UnknownFieldError(InvalidRequestError, TypeError):
    """A request has no field of that name."""


class BundleError(KdrtError):
    """A bundle is missing, damaged, incomplete or of an unknown version."""


class ExportError(KdrtError):
    """A source cannot be exported, or an export did not pass its verification."""


class NonFiniteError(KdrtError):
    """Latents or pixels are not finite. kdrt raises this instead of returning a black image."""


class OutputError(KdrtError):
    """A file cannot be written where the user asked for it."""


class OutputExistsError(OutputError):
    """A file exists already and was not to be replaced."""


class CancelledError(KdrtError):
    """A call was ended at a step by ``pipe.cancel()`` or its callback, or a request by its handle
    or its batcher."""


class PipelineClosedError(KdrtError):
    """A pipeline or a batcher was used after ``close()``."""
