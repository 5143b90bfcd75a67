"""The kernels TensorRT-RTX compiled on a GPU, kept for the next process."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any


class RuntimeCache:
    """Compiled kernels on disk. If they cannot be read or written they are compiled again; that is
    no error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._cache: Any = None
        self._saved = 0

    def attach(self, config: Any) -> None:
        if self._path is None:
            return
        self._cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            data = self._path.read_bytes()
            # False for a cache of another GPU, driver or version: then it is written anew.
            if self._cache.deserialize(data):
                self._saved = len(data)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache if kernels were added since."""
        if self._cache is None or self._path is None:
            return
        data = bytes(self._cache.serialize())
        if len(data) == self._saved:
            return
        with contextlib.suppress(OSError):  # a read-only bundle
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=self._path.parent, prefix=".cache.")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(partial).replace(self._path)
            self._saved = len(data)
