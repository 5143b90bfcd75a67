"""Versions of installed packages."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_ALTERNATIVES = {"onnxruntime": ("onnxruntime-gpu",)}
"""Distributions that provide the same module."""


def installed_version(*distributions: str) -> str | None:
    """The version of the first of ``distributions`` that is installed, or of an alternative that
    provides the same module; None if there is none."""
    for name in distributions:
        for candidate in (name, *_ALTERNATIVES.get(name, ())):
            try:
                return version(candidate)
            except PackageNotFoundError:
                continue
    return None
