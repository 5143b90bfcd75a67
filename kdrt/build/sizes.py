"""The sizes that networks mostly run at."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from kdrt.backends.profiles import DEFAULT, component_profiles
from kdrt.build.engines import wanted_components
from kdrt.bundle import Manifest
from kdrt.errors import EngineError


def usual_sizes(
    manifest: Manifest, components: Sequence[str] = (), profiles: Sequence[str] = DEFAULT
) -> list[tuple[str, dict[str, int]]]:
    """Components, each with the size of every symbol: those that its profiles are fastest at.

    Args:
        manifest: of a bundle.
        components: all whose sizes kdrt knows if empty.
        profiles: names, see :mod:`kdrt.backends.profiles`; sizes that occur twice are given once.

    Raises:
        EngineError: unknown components or profiles, or one whose sizes kdrt does not know.
    """
    found: list[tuple[str, dict[str, int]]] = []
    for name in wanted_components(manifest, components):
        # One of many that has no sizes is left out; one that was named is an error.
        with contextlib.nullcontext() if components else contextlib.suppress(EngineError):
            for profile in component_profiles(manifest, name, profiles):
                each = name, profile.sizes("opt")
                found += [] if each in found else [each]
    if not found:
        component_profiles(manifest, "unet", profiles)  # says which profile there is not
    return found
