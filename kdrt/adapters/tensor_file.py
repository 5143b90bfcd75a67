"""Files of tensors that strangers made: told by their bytes, bounded before they are read.

What a file is called says nothing: a pickle named ``.safetensors`` is still a pickle, and can run
code. So the first bytes decide. A safetensors header has every name, dtype and shape, and is
checked before a tensor is touched: a sparse file of a megabyte can claim a terabyte.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from torch import Tensor

from kdrt.common.paths import user_path
from kdrt.common.placeholders import placeholder
from kdrt.errors import InvalidRequestError

MAX_TENSORS = 100_000
MAX_NAME = 1000
"""Characters in the name of one."""
MAX_ELEMENTS = 1 << 28
"""Of one tensor: four times SDXL's largest, a table of token embeddings."""
MAX_BYTES = 16 << 30
"""Of one file: a LoRA of rank 1024 on every layer of SDXL fits."""

Kind = Literal["safetensors", "pickle", "image", "unknown"]

_PICKLES = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
"""A zip archive, and the opcode that begins a pickle and names its protocol."""
_DTYPES = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
}
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"\0\0\0\x0cJXL ", b"GIF8")


def existing(path: str | os.PathLike[str], what: str = "file") -> Path:
    """``path`` with ``~`` resolved, if it is a file that can be read as one.

    Args:
        path: of the file.
        what: it should be, for the message where there is nothing.

    Raises:
        InvalidRequestError: it is missing, a folder, a device or a pipe, empty, or too large.
    """
    file = user_path(path)
    try:
        status = file.stat()
    except FileNotFoundError:
        raise InvalidRequestError(f"there is no {what} {path}") from None
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise InvalidRequestError(f"{file} is {kind}; give a file")
    if not 0 < status.st_size <= MAX_BYTES:
        what = "empty: download it again" if not status.st_size else "larger than any adapter"
        raise InvalidRequestError(f"{file} is {what}")
    return file


def is_there(path: Path) -> bool:
    """Whether a path leads anywhere. Raises InvalidRequestError: the system does not say."""
    try:
        return path.exists()
    except OSError as error:  # a folder that may not be entered, a path of 5000 characters
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error


def kind_of(path: Path) -> Kind:
    """What an :func:`existing` file is, by its first bytes.

    Raises:
        InvalidRequestError: it cannot be read, or stands for another (a Git LFS pointer, a web
            page).
    """
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InvalidRequestError(f"cannot read {path}: {error.strerror}") from error
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    if start.startswith(_PICKLES):
        return "pickle"
    if start.startswith(_IMAGES) or start[4:8] == b"ftyp":
        return "image"
    if (fault := placeholder(start)) is not None:
        raise InvalidRequestError(f"{path} {fault}")
    return "unknown"


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        InvalidRequestError: it is damaged, or its header claims more than any adapter has.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            check_sizes({name: file.get_slice(name).get_shape() for name in names}, path.name)
            # Copies: what safetensors gives is mapped, and changes when the file is written over.
            return {name: file.get_tensor(name).clone() for name in names}, file.metadata() or {}
    except InvalidRequestError:
        raise
    except Exception as error:  # safetensors has an exception of its own for each damage
        raise InvalidRequestError(
            f"{path.name} is damaged, no .safetensors file: {error}"
        ) from error


def read_pickle(path: Path, classes: Sequence[type] = ()) -> object:
    """What a PyTorch file holds, by torch's restricted unpickler.

    Args:
        path: the file.
        classes: what it may hold besides tensors and plain containers.

    Raises:
        InvalidRequestError: it is damaged, or holds more than that.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # PyTorch only stores; what is compressed may unpack to a thousand times its size.
                if any(entry.compress_type for entry in archive.infolist()):
                    raise InvalidRequestError(
                        f"{path.name} is compressed, which PyTorch's files are not"
                    )
        with torch.serialization.safe_globals(list(classes)):
            state: object = torch.load(path, map_location="cpu", weights_only=True)
    except InvalidRequestError:
        raise
    except Exception as error:  # torch and pickle raise anything on a damaged file
        reason = str(error).partition("\n")[0]
        raise InvalidRequestError(
            f"{path.name} is damaged or cannot be read safely: {reason}"
        ) from error
    return state


def check_sizes(shapes: Mapping[str, Iterable[int]], name: str) -> None:
    """Raises InvalidRequestError: tensors of these shapes are more than any adapter has."""
    if len(shapes) > MAX_TENSORS:
        raise InvalidRequestError(f"{name} has {len(shapes)} tensors, more than any adapter")
    if any(len(key) > MAX_NAME for key in shapes):
        raise InvalidRequestError(
            f"{name} has a tensor whose name is longer than {MAX_NAME} characters"
        )
    elements = {key: math.prod(shape) for key, shape in shapes.items()}
    largest = max(elements, key=elements.__getitem__, default="")
    if elements.get(largest, 0) > MAX_ELEMENTS or sum(elements.values()) > MAX_BYTES:
        raise InvalidRequestError(
            f"{name} claims {sum(elements.values())} numbers, {elements[largest]} of them in "
            f"'{largest}', more than any adapter"
        )


def checked(tensor: object, name: str) -> Tensor:
    """``tensor``, if it is one of finite floating-point numbers in ordinary memory.

    Raises:
        InvalidRequestError: it is not; ``name`` says in the message which it is.
    """
    if not isinstance(tensor, Tensor):
        raise InvalidRequestError(f"{name} is no tensor but a {type(tensor).__name__}")
    if tensor.dtype not in _DTYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InvalidRequestError(f"{name} holds {kind} numbers; save it as float16 or float32")
    if (
        tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.untyped_storage().nbytes() < tensor.nbytes
    ):
        raise InvalidRequestError(
            f"{name} is not stored number by number; save it as a dense tensor"
        )
    if not bool(tensor.detach().float().isfinite().all()):
        raise InvalidRequestError(f"{name} has numbers that are not finite, NaN or infinity")
    return tensor.detach()
