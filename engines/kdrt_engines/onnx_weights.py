"""The weights that an ONNX model keeps in files beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kdrt_engines.dtypes import FROM_ONNX
from kdrt_engines.errors import EngineError
from kdrt_engines.onnx_model import DAMAGE, initializers, read_model
from kdrt_engines.regular_files import open_regular


@dataclass(frozen=True)
class StoredWeight:
    """One tensor in a weights file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            EngineError: the file does not hold it.
        """
        try:
            with open_regular(self.file) as file:
                file.seek(self.offset)
                raw = np.fromfile(file, np.uint8, self.size)
        except OSError as error:
            raise EngineError(f"cannot read {self.file}: {error.strerror}") from error
        if raw.nbytes != self.size:
            raise EngineError(f"{self.file} is too short for its graph; export it again")
        return torch.from_numpy(raw).view(self.dtype).reshape(self.shape)

    def mapped(self) -> torch.Tensor:
        """The tensor as the file has it, read when it is used; what is changed of it changes in
        memory alone.

        Raises:
            EngineError: the file does not hold it.
        """
        try:
            with open_regular(self.file) as file:
                raw = np.memmap(file, np.uint8, "c", self.offset, (self.size,))
        except (OSError, ValueError) as error:  # it is empty, or too short
            raise EngineError(f"{self.file} is too short for its graph; export it again") from error
        return torch.from_numpy(raw).view(self.dtype).reshape(self.shape)


def stored_weights(model: Path) -> dict[str, StoredWeight]:
    """The external initialisers of an ONNX file, by name.

    Raises:
        EngineError: the file cannot be read, or is no ONNX model.
    """
    try:
        return {
            tensor.name: StoredWeight(
                FROM_ONNX[tensor.dtype].torch,
                tensor.shape,
                model.parent / tensor.file(),
                tensor.offset(),
            )
            for tensor in initializers(read_model(model))
            if tensor.external
        }
    except DAMAGE as error:
        raise EngineError(f"{model} is no readable ONNX model; export it again") from error
