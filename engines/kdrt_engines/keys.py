"""What a built engine depends on. All of it is checked before one is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from kdrt_engines.profiles import Profile

REFIT = "REFIT"


@dataclass(frozen=True)
class EngineKey:
    """Everything a built engine depends on.

    ``network`` is a SHA-256 over the component's graph and weights; ``compute_capabilities`` are
    numbers like 89; ``flags`` are the builder's, by name.
    """

    component: str
    network: str
    backend: str
    backend_version: str
    compute_capabilities: tuple[int, ...]
    profiles: tuple[Profile, ...]
    dtype: str
    flags: Mapping[str, bool]

    @property
    def refittable(self) -> bool:
        """Whether weights of the engine can change. The flag is ``REFIT``, whichever kind of refit
        TensorRT offers."""
        return self.flags.get(REFIT, False)

    def digest(self) -> str:
        """SHA-256 of the whole key, as hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def folder(self) -> str:
        """The name of the engine's folder: for people to read, and unique."""
        targets = "-".join(f"sm{number}" for number in self.compute_capabilities)
        return f"{self.component}-{targets}-{self.digest()[:16]}"
