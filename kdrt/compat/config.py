"""Configurations as diffusers' objects show them."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from kdrt.bundle import Bundle, config_file
from kdrt.compat.absent import AbsentAttributeError
from kdrt.errors import InvalidRequestError


def recorded(bundle: Bundle, network: str) -> dict[str, Any]:
    """The configuration of a network as it was exported; empty where the bundle has none."""
    name = config_file(network)
    if name not in bundle.manifest.files:
        return {}
    try:
        values = json.loads(bundle.file(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


class Config(dict[str, Any]):
    """A configuration, read by key or by attribute as diffusers' ``FrozenDict``.

    Raises:
        InvalidRequestError: it is written to, which would have no effect.
        AbsentAttributeError: there is no such value.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self:
            raise AbsentAttributeError(f"this configuration has no {name!r}; it has {[*self]}")
        return self[name]

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise InvalidRequestError(
            "a configuration only tells how the model was exported; export it again to change it"
        )

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse
