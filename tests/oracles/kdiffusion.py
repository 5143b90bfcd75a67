"""k-diffusion as an oracle: its modules as kdrt loads them, without the package's broken
``__init__``, and only if they are the text that was compared with."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal
from unittest.mock import MagicMock, patch

from kdrt.errors import InvalidRequestError
from kdrt.sampling.k_diffusion import k_diffusion_module

# 0.1.1.post1. Comparisons to 1e-12 are comparisons with one text.
_SHA256 = {
    "sampling": "4c5c2d92ddc2a07f",
    "external": "422e6f3e35cac7d5",
    "layers": "090058b33bb74522",
}


class OracleUnavailableError(Exception):
    """k-diffusion or something it imports is not installed, or is another version."""


def load(module: Literal["sampling", "external", "layers"] = "sampling") -> ModuleType:
    """k-diffusion's ``sampling``, ``external`` or ``layers`` module.

    Raises:
        OracleUnavailableError: see there; the message says which.
    """
    try:
        loaded = k_diffusion_module("sampling", "the oracle")
        if module == "external":
            loaded = k_diffusion_module(module, "the oracle")
        elif module == "layers":
            # Its Denoiser uses neither of what the module imports for its losses and networks.
            unused = ("dctorch", "einops")
            with patch.dict(sys.modules, {name: MagicMock() for name in unused}):
                loaded = importlib.import_module(loaded.__name__.replace("sampling", module))
    except InvalidRequestError as error:
        raise OracleUnavailableError(str(error)) from error
    assert loaded.__file__ is not None
    digest = hashlib.sha256(Path(loaded.__file__).read_bytes()).hexdigest()
    if not digest.startswith(_SHA256[module]):
        raise OracleUnavailableError(f"k-diffusion's {module}.py is not the one of 0.1.1.post1")
    return loaded
