"""Running the command line inside the test process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What one command did."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The sentence of a refused command, after checking that there is nothing else."""
        assert self.code == 2, self.err
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        return self.err.removeprefix("error: ").strip()


Cli = Callable[..., Outcome]
"""``cli("samplers", "--json")`` runs ``kdrt samplers --json``."""
