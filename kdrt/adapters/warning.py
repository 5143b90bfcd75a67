"""The warning of adapters, in a file that the command line imports without the adapters."""

from __future__ import annotations


class AdapterWarning(UserWarning):
    """Part of an adapter has no effect on this model."""
