"""The exceptions of the export stage."""

from __future__ import annotations

from kdrt.errors import ExportError

__all__ = ["ExportError", "SourceError", "UnsupportedModelError", "VerificationError"]


class SourceError(ExportError):
    """A source is unknown, unreachable, unreadable or unsafe."""


class UnsupportedModelError(ExportError):
    """A checkpoint of an architecture that kdrt cannot export."""


class VerificationError(ExportError):
    """An exported network does not compute what eager PyTorch computes."""
