"""The exceptions of the export stage."""

from __future__ import annotations

from kdrt.errors import ExportError

__all__ = ["ExportError", "SourceError", "UnsupportedModel", "VerificationError"]


class SourceError(ExportError):
    """A source is unknown, unreachable, unreadable or unsafe."""


class UnsupportedModel(ExportError):
    """A checkpoint of an architecture that kdrt cannot export."""


class VerificationError(ExportError):
    """An exported network does not compute what eager PyTorch computes."""
