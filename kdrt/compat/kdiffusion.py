"""k-diffusion's own samplers, from the installed package.

Its ``__init__`` imports evaluation code that needs a removed part of setuptools, and dozens of
packages besides. The samplers need torch, scipy, torchsde, torchdiffeq and tqdm: their module is
loaded alone, under a private name, so that a real ``import k_diffusion`` is not affected.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from torch import Tensor

from kdrt.errors import InvalidRequest

_PACKAGE = "_kdrt_k_diffusion"
_INSTALL = "pip install --no-deps k-diffusion, and pip install 'kdrt[k-diffusion]' for what it uses"


def sampling_module() -> ModuleType:
    """``k_diffusion.sampling``.

    Raises:
        InvalidRequest: it, or something it imports, is not installed.
    """
    if _PACKAGE not in sys.modules:
        spec = PathFinder.find_spec("k_diffusion")
        if spec is None or not spec.submodule_search_locations:
            raise InvalidRequest(f"exact=True needs k-diffusion: {_INSTALL}")
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(Path(spec.submodule_search_locations[0]))]
        utils = ModuleType(f"{_PACKAGE}.utils")
        utils.append_dims = append_dims  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules |= {_PACKAGE: package, f"{_PACKAGE}.utils": utils}
    try:
        return importlib.import_module(f"{_PACKAGE}.sampling")
    except ImportError as error:
        raise InvalidRequest(f"k-diffusion needs {error.name}: {_INSTALL}") from error


def append_dims(x: Tensor, dims: int) -> Tensor:
    """``x`` with dimensions of 1 appended, until it has ``dims``."""
    return x.reshape(x.shape + (1,) * (dims - x.ndim))
