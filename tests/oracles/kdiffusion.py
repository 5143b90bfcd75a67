"""k-diffusion as an oracle: its modules, loaded without the package's broken ``__init__``.

The ``__init__`` imports evaluation code that needs a removed part of setuptools. The samplers
themselves import only torch, scipy, torchsde, torchdiffeq and tqdm, so a stub package pointing at
the installed files, with a stub for the one helper they use, is enough. The stub has a private
name: a real ``import k_diffusion`` elsewhere in the process is not affected.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

_PACKAGE = "_kdrt_oracle_k_diffusion"
# 0.1.1.post1. Comparisons to 1e-12 are comparisons with one text.
_SHA256 = {
    "sampling": "4c5c2d92ddc2a07f",
    "external": "422e6f3e35cac7d5",
}


class OracleUnavailable(Exception):
    """k-diffusion or something it imports is not installed, or is another version."""


def load(module: str = "sampling") -> ModuleType:
    """k-diffusion's ``sampling`` or ``external`` module.

    Raises:
        OracleUnavailable: see there; the message says which.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise OracleUnavailable("k-diffusion is not installed")
    folder = Path(spec.submodule_search_locations[0])
    digest = hashlib.sha256((folder / f"{module}.py").read_bytes()).hexdigest()
    if not digest.startswith(_SHA256[module]):
        raise OracleUnavailable(f"k-diffusion's {module}.py is not the one of 0.1.1.post1")
    if _PACKAGE not in sys.modules:
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(folder)]
        utils = ModuleType(f"{_PACKAGE}.utils")
        utils.append_dims = _append_dims  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules[_PACKAGE] = package
        sys.modules[f"{_PACKAGE}.utils"] = utils
    try:
        return importlib.import_module(f"{_PACKAGE}.{module}")
    except ImportError as error:
        raise OracleUnavailable(f"k-diffusion needs {error.name}") from error


def _append_dims(x: torch.Tensor, ndim: int) -> torch.Tensor:
    return x.reshape(x.shape + (1,) * (ndim - x.ndim))
