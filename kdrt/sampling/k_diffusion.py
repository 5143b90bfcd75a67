"""k-diffusion's own samplers, from the package installed.

``import k_diffusion`` fails on a current Python: its ``__init__`` imports evaluation code that
needs a removed part of setuptools. Its samplers themselves need only torch, scipy, torchsde,
torchdiffeq and tqdm, and one helper from a module that needs more. So they are imported below a
stand-in package of a private name, which a real ``k_diffusion`` in the process never meets.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "k_diffusion."
_PACKAGE = "_kdrt_k_diffusion"
_INSTALL = "pip install 'kdrt[k-diffusion]' && pip install --no-deps k-diffusion"


def is_foreign(sampler: object) -> bool:
    """Whether ``sampler`` is a function, or names one of k-diffusion's."""
    return callable(sampler) or (isinstance(sampler, str) and sampler.startswith(PREFIX))


def k_diffusion_sampler(name: str) -> Callable[..., Any]:
    """The function that ``k_diffusion.sample_heun`` or ``k_diffusion.sampling.sample_heun`` names.

    Raises:
        InvalidRequestError: the package or one that it imports is missing, or has no such sampler.
    """
    sampling = k_diffusion_module("sampling", f"sampler {name!r}")
    function = name.removeprefix(PREFIX).removeprefix("sampling.")
    known = [each for each in vars(sampling) if each.startswith("sample_")]
    if function not in known:
        raise InvalidRequestError(f"k-diffusion has no {function!r}; it has: {', '.join(known)}")
    found: Callable[..., Any] = getattr(sampling, function)
    return found


def k_diffusion_module(module: Literal["sampling", "external"], wanted_by: str) -> ModuleType:
    """One of k-diffusion's modules.

    Args:
        module: its name.
        wanted_by: what needs it, for the message of an error.

    Raises:
        InvalidRequestError: the package or one that it imports is missing.
    """
    if _PACKAGE not in sys.modules:
        # Unlike importlib.util.find_spec this also finds it beside a half-imported k_diffusion.
        spec = PathFinder.find_spec("k_diffusion")
        if spec is None or not spec.submodule_search_locations:
            raise InvalidRequestError(f"{wanted_by} needs the k-diffusion package: {_INSTALL}")
        package = ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        utils = ModuleType(f"{_PACKAGE}.utils")
        utils.append_dims = append_dims  # type: ignore[attr-defined]
        package.utils = utils  # type: ignore[attr-defined]
        sys.modules |= {_PACKAGE: package, utils.__name__: utils}
    try:
        return importlib.import_module(f"{_PACKAGE}.{module}")
    except ImportError as error:
        raise InvalidRequestError(
            f"{wanted_by} needs {error.name}, which k-diffusion imports: {_INSTALL}"
        ) from error


def append_dims(x: Tensor, dims: int) -> Tensor:
    """``x`` with dimensions of 1 at its end, up to ``dims``."""
    return x.reshape(x.shape + (1,) * (dims - x.ndim))
