"""How an export tells of its progress. The command line shows it; a library user may ignore it."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Receives one ``start`` and one ``done`` a stage, in order, and notes at any time."""

    def start(self, stage: str) -> None:
        """A stage begins: ``unet: trace``."""

    def done(self, detail: str = "") -> None:
        """The current stage ended well."""

    def note(self, text: str) -> None:
        """Something the user should know: a decision taken for them, an ignored setting."""


class Silent:
    """A report that nobody reads."""

    def start(self, stage: str) -> None: ...

    def done(self, detail: str = "") -> None: ...

    def note(self, text: str) -> None: ...
