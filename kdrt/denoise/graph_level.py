"""The names of the levels of :mod:`kdrt.denoise.cuda_graphs`, and which one a UNet has."""

from __future__ import annotations

from typing import Literal

from kdrt.errors import InvalidRequestError
from kdrt_engines import Engine

CudaGraphLevel = Literal["off", "step", "loop"]
CUDA_GRAPH_LEVELS: tuple[CudaGraphLevel, ...] = ("off", "step", "loop")


class CaptureWarning(UserWarning):
    """A run could not be captured and went one level lower."""


def cuda_graph_level(asked: object, engine: Engine) -> CudaGraphLevel:
    """The level for a UNet: the one asked for. None is ``step`` on CUDA, and ``off`` on a CPU and
    for engines that only they themselves can capture.

    Raises:
        InvalidRequestError: there is no such level, or none but ``off`` is possible there.
    """
    on_cuda = engine.device.type == "cuda"
    if asked is None:
        return "step" if on_cuda and engine.capturable else "off"
    if asked not in CUDA_GRAPH_LEVELS:
        raise InvalidRequestError(
            f"unknown cuda_graph {asked!r}; known: {', '.join(CUDA_GRAPH_LEVELS)}"
        )
    if asked != "off" and not on_cuda:
        raise InvalidRequestError(
            f"cuda_graph={asked!r} needs CUDA, and this engine runs on {engine.device.type}: leave "
            "cuda_graph out, or choose an engine on CUDA"
        )
    return asked
