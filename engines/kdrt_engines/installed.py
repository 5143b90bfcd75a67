"""Versions of what is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_INSTEAD = {"onnxruntime": ("onnxruntime-gpu",)}
"""Distributions with the same module in them."""


def installed_version(*distributions: str) -> str | None:
    """The version of the first of ``distributions`` that is installed, or of one with the same
    module in it; None if there is none."""
    for name in distributions:
        for candidate in (name, *_INSTEAD.get(name, ())):
            try:
                return version(candidate)
            except PackageNotFoundError:
                continue
    return None
