"""k-diffusion as an oracle: its modules as kdrt loads them, without the package's broken
``__init__``, and only if they are the text that was compared with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Literal

from kdrt.errors import InvalidRequest
from kdrt.sampling.k_diffusion import k_diffusion_module

# 0.1.1.post1. Comparisons to 1e-12 are comparisons with one text.
_SHA256 = {
    "sampling": "4c5c2d92ddc2a07f",
    "external": "422e6f3e35cac7d5",
}


class OracleUnavailable(Exception):
    """k-diffusion or something it imports is not installed, or is another version."""


def load(module: Literal["sampling", "external"] = "sampling") -> ModuleType:
    """k-diffusion's ``sampling`` or ``external`` module.

    Raises:
        OracleUnavailable: see there; the message says which.
    """
    try:
        loaded = k_diffusion_module(module, "the oracle")
    except InvalidRequest as error:
        raise OracleUnavailable(str(error)) from error
    assert loaded.__file__ is not None
    digest = hashlib.sha256(Path(loaded.__file__).read_bytes()).hexdigest()
    if not digest.startswith(_SHA256[module]):
        raise OracleUnavailable(f"k-diffusion's {module}.py is not the one of 0.1.1.post1")
    return loaded
