"""Loading each component with the engine that was fastest on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from kdrt.backends.fallback import warn_of_fallback
from kdrt.backends.loader import Loader
from kdrt.errors import EngineError, OutOfMemoryError
from kdrt_engines import Engine


class TunedLoader:
    """Loads some components with engines of their own, and the others with one loader; see
    :class:`kdrt.backends.loader.Loader`. Where an engine of its own fails, a component is loaded
    with that loader too, and a ``FallbackWarning`` says why.

    Args:
        loader: of the engine that is used otherwise.
        name: of that engine.
        engines: the name of another, by component.
        make: makes the loader of an engine, when it is first needed.
    """

    def __init__(
        self,
        loader: Loader,
        name: str,
        engines: Mapping[str, str],
        make: Callable[[str], Loader],
    ) -> None:
        self._loader, self.device = loader, loader.device
        self._name, self._engines, self._make = name, engines, cache(make)

    def load(self, component: str) -> Engine:
        engine = self._engines.get(component)
        if engine is not None:
            try:
                return self._make(engine).load(component)
            except OutOfMemoryError:
                raise
            except EngineError as error:
                warn_of_fallback(component, self._name, error)
        return self._loader.load(component)
