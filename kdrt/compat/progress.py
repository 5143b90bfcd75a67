"""A progress bar that is used and configured as tqdm's, which diffusers takes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


class ProgressBar(Generic[Item]):
    """Iterate over it, or use it in a ``with`` block and call :meth:`update`.

    Args:
        iterable: what to iterate over.
        total: how many steps there are; None asks ``iterable``.
        options: of tqdm: ``disable``, ``desc`` and ``leave`` are honoured.

    Raises:
        InvalidRequestError: neither is given.
    """

    def __init__(
        self,
        iterable: Iterable[Item] | None = None,
        total: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if iterable is None and total is None:
            raise InvalidRequestError("Either `total` or `iterable` has to be defined.")
        self.iterable = iterable
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        self.total = total
        self.n = 0
        self._options = options or {}
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to draw it on, and it is not disabled."""
        return self._bar is not None

    def update(self, n: float = 1) -> None:
        """So many more steps are done."""
        self.n += int(n)
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, n)

    def set_description(self, desc: str | None = None, refresh: bool = True) -> None:
        """Change what stands before the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=desc or "")

    def set_postfix(self, *_: Any, **__: Any) -> None:
        """No effect."""

    def close(self) -> None:
        """Take the bar away, or leave it as it is if that is configured."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        # In a log file a bar is only a line without meaning.
        if self._options.get("disable") or not sys.stderr.isatty():
            return self
        from rich.console import Console
        from rich.progress import Progress

        transient = not self._options.get("leave", True)
        self._bar = Progress(console=Console(stderr=True), transient=transient)
        self._task = self._bar.add_task(
            str(self._options.get("desc") or "Sampling"), total=self.total
        )
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        with self:
            for item in self.iterable or ():
                yield item
                self.update()

    def __len__(self) -> int:
        return self.total or 0
