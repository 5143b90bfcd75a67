"""Variants: other components that play the part of one, in the same bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kdrt.adapters.unet_features import EXPORT_OPTIONS
from kdrt.bundle import Manifest
from kdrt.errors import InvalidRequestError
from kdrt_engines import Engine

ComponentLoader = Callable[[str], Engine]
"""Loads one component of a bundle by its name."""


class Variants:
    """Which component plays which part in a pipeline.

    Args:
        manifest: names the variants.
        load: loads a component; None where only what is loaded already can run.
    """

    def __init__(self, manifest: Manifest, load: ComponentLoader | None) -> None:
        self._manifest = manifest
        self._load = load
        self._playing: dict[str, str] = {}
        self._put_aside: dict[str, Engine] = {}

    @property
    def in_use(self) -> dict[str, str]:
        """The components that play another's part, by part."""
        return {part: c for part, c in self._playing.items() if c != part}

    def named(self, name: str | None, parts: Sequence[str] | None = None) -> dict[str, str]:
        """The component for each part.

        Args:
            name: of a variant; None is the plain components.
            parts: of those; None is all.

        Raises:
            InvalidRequestError: there is no such variant, or it has nothing for a part.
        """
        variants = self._manifest.variants
        if name is None:
            wanted = {part: part for variant in variants.values() for part in variant}
        elif name in variants:
            wanted = dict(variants[name])
        else:
            option = EXPORT_OPTIONS.get(name, f"--variant {name}")
            raise InvalidRequestError(
                f"'{self._manifest.name}' has no variant '{name}' (it has "
                f"{', '.join(variants) or 'none'}); export it with "
                f"`{self._manifest.export_command} {option}`"
            )
        if parts is not None:
            missing = [part for part in parts if part not in wanted and name is not None]
            if missing:
                raise InvalidRequestError(
                    f"the variant '{name}' has nothing for {missing[0]}; it has {', '.join(wanted)}"
                )
            wanted = {part: component for part, component in wanted.items() if part in parts}
        return wanted

    def changes(self, wanted: Mapping[str, str]) -> dict[str, str]:
        """Of the components ``wanted`` by part, those that do not play it yet."""
        return {part: c for part, c in wanted.items() if self.playing(part) != c}

    def playing(self, part: str) -> str:
        """The component that plays a part."""
        return self._playing.get(part, part)

    def load(
        self, components: Mapping[str, str], engines: Mapping[str, Engine]
    ) -> dict[str, Engine]:
        """Their engines with the weights of the bundle, for the parts that are in use.

        Raises:
            InvalidRequestError: nothing more can be loaded.
        """
        needed = {part: component for part, component in components.items() if part in engines}
        if needed and self._load is None:
            raise InvalidRequestError("this pipeline cannot load variants; open it with kdrt.load")
        put_aside, self._put_aside = self._put_aside, {}
        return {
            part: put_aside[c] if c in put_aside else self._load(c)
            for part, c in needed.items()
            if self._load
        }

    def put_aside(self, component: str, engine: Engine) -> None:
        """Keep an engine with the weights of the bundle, in place of the last one, for
        :meth:`load`."""
        self._put_aside = {component: engine}

    def release(self) -> None:
        """Free what was put aside."""
        self._put_aside.clear()

    def chosen(self, components: Mapping[str, str]) -> None:
        """Keep in mind which components play the parts now."""
        self._playing |= components
