"""A small cache that forgets what was not used for longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class LruCache(Generic[Key, Value]):
    """Keeps the ``size`` most recently used values.

    ``functools.lru_cache`` keys on every argument of a function; here the key is separate from
    what the value is made of, and a value that fails to be made leaves nothing behind.

    Args:
        size: how many.
        on_evict: called with every value that is not kept any more.
    """

    def __init__(self, size: int, on_evict: Callable[[Value], object] | None = None) -> None:
        self._size = size
        self._forgotten = on_evict or (lambda value: None)
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made now unless it is still known."""
        if key not in self._values:
            # Room first: values may own most of a device's memory.
            while len(self._values) >= self._size:
                self._forgotten(self._values.popitem(last=False)[1])
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]

    def clear(self) -> None:
        """Forget everything."""
        while self._values:
            self._forgotten(self._values.popitem(last=False)[1])

    def __len__(self) -> int:
        return len(self._values)
