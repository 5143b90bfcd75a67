"""Who is told of the progress of long work."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the stages of some work."""

    def start(self, stage: str) -> None:
        """A stage begins."""
        ...

    def done(self, detail: str = "") -> None:
        """The stage has ended, with this result."""
        ...

    def note(self, text: str, /) -> None:
        """Something that users may want to know."""
        ...


class BuildProgress(Progress, Protocol):
    """Receives the stages of a build, and what happens during one."""

    def running(self, detail: str, memory: int) -> None:
        """Called a few times a second: the current phase, and the bytes the builder holds."""
        ...

    def warn(self, text: str) -> None:
        """Something that users should act on."""
        ...
