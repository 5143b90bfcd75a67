"""The exceptions kdrt raises for things a user can put right; all derive from ``KdrtError``."""

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
    """An argument of a generation is wrong: an unknown sampler, an impossible size, …"""


class UnknownFieldError(InvalidRequestError, TypeError):
    """A request has no field of that name."""


class BundleError(KdrtError):
    """A bundle is missing, damaged, incomplete or of an unknown version."""


class ExportError(KdrtError):
    """A source cannot be exported, or an export did not pass its verification."""


class NonFiniteError(KdrtError):
    """Latents or pixels are not finite: no image is better than a black one."""


class OutputError(KdrtError):
    """A file cannot be written where the user asked for it."""


class OutputExistsError(OutputError):
    """A file is there already, and was not to be replaced."""


class CancelledError(KdrtError):
    """A call was ended at a step, by ``pipe.cancel()`` or by its callback."""


class PipelineClosedError(KdrtError):
    """A pipeline was used after ``close()``."""
