"""The bundles there are, and the pipelines that are loaded."""

from __future__ import annotations

import kdrt
from kdrt.bundle import MANIFEST, bundle_names, bundle_path
from kdrt.common.lru import LruCache
from kdrt_engines.registry import ENGINES

AUTOMATIC = "automatic"
"""In place of an engine's name: the best of this machine and bundle."""

ENGINE_CHOICES = (AUTOMATIC, *ENGINES)

_PIPELINES_KEPT = 2

_pipelines: LruCache[tuple[str, str, int], kdrt.Pipeline] = LruCache(_PIPELINES_KEPT)


def bundle_choices() -> list[str]:
    """The names of the bundles in ``$KDRT_HOME``."""
    return bundle_names()


def bundle_version(bundle: str) -> int:
    """Another number once a bundle was exported again; 0 where there is no such bundle."""
    try:
        return (bundle_path(bundle) / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


def pipeline_of(bundle: str, engine: str) -> kdrt.Pipeline:
    """The pipeline of a bundle, loaded now unless it is one of the last two.

    Nobody closes one that is forgotten: a MODEL may still use it.

    Args:
        bundle: its name.
        engine: one of `ENGINE_CHOICES`.

    Raises:
        KdrtError: as :func:`kdrt.load`.
    """
    key = (bundle, engine, bundle_version(bundle))
    return _pipelines.get(
        key, lambda: kdrt.load(bundle, engine=None if engine == AUTOMATIC else engine)
    )
