"""Networks that enlarge images, from the files their authors publish.

A file holds weights alone. What kind of network it is tells spandrel, which knows some dozens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kdrt.common.paths import user_path
from kdrt_export.errors import ExportError, SourceError, UnsupportedModelError
from kdrt_export.sources.reading import check_fetched, refused
from kdrt_export.sources.weight_files import (
    check_pickle,
    is_checkpoint,
    is_pickle,
    load_pickle,
    read_tensors,
)

_SMALLEST = 16
"""Pixels of a side that any network has to take."""


@dataclass(frozen=True)
class UpscalerNetwork:
    """A network that enlarges images.

    Attributes:
        network: ``[B, 3, H, W]`` in [0, 1] to ``[B, 3, scale·H, scale·W]``, at any size; float32,
            in evaluation mode.
        scale: see there.
        architecture: what kind of network it is.
        halves: whether it can be computed in half precision.
    """

    network: nn.Module
    scale: int
    architecture: str
    halves: bool = True


def find_upscaler_file(source: str, *, allow_pickle: bool) -> Path:
    """The file that ``source`` names.

    Raises:
        SourceError: there is none, or it is a pickle without permission.
    """
    path = user_path(source)
    if not path.is_file() or not is_checkpoint(path.name):
        raise SourceError(
            f"'{source}' is no upscaler: give a .safetensors file with its weights, or with "
            "--allow-pickle a .pth file"
        )
    check_pickle(path, allow_pickle)
    return path


def load_upscaler(path: Path) -> UpscalerNetwork:
    """The network whose weights a file holds.

    Raises:
        SourceError: it is damaged, or holds the weights of no network that spandrel knows.
        UnsupportedModelError: it is one that does not enlarge colour images of any size.
        ExportError: spandrel is not installed.
    """
    try:
        import spandrel
    except ModuleNotFoundError as error:
        raise ExportError(
            f"reading the upscaler {path.name} needs the package '{error.name}', which is not "
            "installed: pip install 'kdrt[upscalers]'"
        ) from error
    state = _state(path)
    with refused(f"{path.name} holds no upscaler", "is it whole, and a network for images?"):
        try:
            found = spandrel.ModelLoader("cpu").load_from_state_dict(state)
        except spandrel.UnsupportedModelError as error:
            raise SourceError(
                f"{path.name} holds no upscaler that spandrel knows; give one of ESRGAN's kind"
            ) from error
    what = found.architecture.name
    sizes = found.size_requirements
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose == "Inpainting":
        raise UnsupportedModelError(f"{path.name} is a {what}, which does not enlarge images")
    if (found.input_channels, found.output_channels) != (3, 3):
        raise UnsupportedModelError(
            f"{path.name} takes images of {found.input_channels} channels and gives "
            f"{found.output_channels}, and only those of 3 can be used"
        )
    if sizes.multiple_of > 1 or sizes.square or sizes.minimum > _SMALLEST:
        raise UnsupportedModelError(
            f"{path.name} is a {what}, which does not take images of any size, and so cannot be "
            "used; give one of ESRGAN's kind"
        )
    network = found.model.float().eval().requires_grad_(False)
    return UpscalerNetwork(network, found.scale, what, halves=found.supports_half)


def _state(path: Path) -> Mapping[str, Any]:
    """What a file holds; of a pickle with the mappings in it, which training programs nest."""
    if not is_pickle(path):
        return read_tensors(path)
    check_fetched(path)
    with refused(f"{path} is damaged or holds more than weights", "download it again"):
        state = load_pickle(path)
    if not isinstance(state, Mapping):
        raise SourceError(f"{path} holds a {type(state).__name__}, not weights by name")
    return state
