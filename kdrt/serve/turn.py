"""The right to one request to a loaded model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from kdrt.adapters.lora_merge import Scale
from kdrt.batching.handle import Handle
from kdrt.request.fields import Request
from kdrt.serve.queue import Place
from kdrt.serve.version import ModelVersion


class Turn:
    """The right to one request to a loaded model, which stays loaded until the request is over and
    `was_read` was called: what is seen of unfinished images is made by the model too.

    Args:
        version: which is loaded.
        place: in its queue.
        end: called once, from any thread.
    """

    def __init__(self, version: ModelVersion, place: Place, end: Callable[[], object]) -> None:
        self._version = version
        self._place = place
        self._end = end
        self._lock = threading.Lock()
        self._open = {"made", "read"}

    def submit(
        self,
        request: Request,
        loras: Mapping[str, Scale] | None,
        *,
        watch: bool,
        on_end: Callable[[], object],
    ) -> Handle[Any]:
        """See `ModelVersion.submit`."""

        def over() -> None:
            on_end()
            self._close("made")

        try:
            return self._version.submit(request, loras, self._place, watch=watch, on_end=over)
        except BaseException:
            self._close("made")
            raise

    def was_read(self) -> None:
        """Nobody looks at the steps any more. A second time does nothing."""
        self._close("read")

    def _close(self, part: str) -> None:
        with self._lock:
            is_last = self._open == {part}
            self._open.discard(part)
        if is_last:
            self._end()
