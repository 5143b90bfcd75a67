"""Latents in files: what one model hands over to the next, as SDXL's base does to its refiner."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from kdrt.common.atomic_io import new_file
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError

SUFFIX = ".safetensors"
_NAME = "latents"


def save_latents(latents: Tensor, path: Path, *, overwrite: bool = True) -> None:
    """Write latents ``[B, C, h, w]``; the file appears complete or not at all.

    Raises:
        OutputError: it cannot be written.
        OutputExistsError: a file is there, and ``overwrite`` is off.
    """
    from safetensors.torch import save_file

    with new_file(path, overwrite=overwrite) as partial:
        save_file({_NAME: latents.cpu().contiguous()}, partial)


def read_latents(path: Path) -> Tensor:
    """The latents that `save_latents` wrote.

    Raises:
        InvalidRequestError: there is no such file, or it holds something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = user_path(path)
    if not path.is_file():
        raise InvalidRequestError(f"there is no file {path}")
    try:
        tensors = load_file(path)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InvalidRequestError(f"{path} is no safetensors file: {error}") from error
    if set(tensors) != {_NAME}:
        raise InvalidRequestError(
            f"{path} holds no latents; `kdrt generate … -o latents{SUFFIX}` writes them"
        )
    return tensors[_NAME]
