"""GPUs as people call them, and their compute capabilities.

Names and numbers are those of NVIDIA's list, developer.nvidia.com/cuda/gpus; of each card the
shortest name that no other card has. Cards older than TensorRT goes are here so that they can be
told from typing errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import MappingProxyType

from kdrt.common.validation import printable
from kdrt.errors import EngineError
from kdrt_engines.tensorrt.flavour import parse_capabilities

_CARDS = {
    121: ("GB10", "DGX Spark"),
    120: (
        *("RTX 5090", "RTX 5080", "RTX 5070 Ti", "RTX 5070", "RTX 5060 Ti", "RTX 5060", "RTX 5050"),
        *("RTX PRO 6000", "RTX PRO 5000", "RTX PRO 4500", "RTX PRO 4000", "RTX PRO 2000"),
    ),
    110: ("Jetson T5000", "Jetson T4000", "Jetson Thor"),
    103: ("B300", "GB300"),
    100: ("B200", "GB200"),
    90: ("H100", "H200", "GH200"),
    89: (
        *("RTX 4090", "RTX 4080", "RTX 4070 Ti", "RTX 4070", "RTX 4060 Ti", "RTX 4060", "RTX 4050"),
        *("RTX 6000 Ada", "RTX 5000 Ada", "RTX 4500 Ada", "RTX 4000 Ada", "RTX 2000 Ada"),
        *("L4", "L40", "L40S"),
    ),
    87: ("Jetson AGX Orin", "Jetson Orin NX", "Jetson Orin Nano"),
    86: (
        *("RTX 3090 Ti", "RTX 3090", "RTX 3080 Ti", "RTX 3080", "RTX 3070 Ti", "RTX 3070"),
        *("RTX 3060 Ti", "RTX 3060", "RTX 3050 Ti", "RTX 3050"),
        *("RTX A6000", "RTX A5500", "RTX A5000", "RTX A4500", "RTX A4000", "RTX A3000"),
        *("RTX A2000", "A40", "A16", "A10", "A10G", "A2"),
    ),
    80: ("A100", "A30"),
    75: (
        *("RTX 2080 Ti", "RTX 2080", "RTX 2070", "RTX 2060", "Titan RTX"),
        *("GTX 1660 Ti", "GTX 1660", "GTX 1650 Ti", "GTX 1650"),
        *("Quadro RTX 8000", "Quadro RTX 6000", "Quadro RTX 5000", "Quadro RTX 4000"),
        *("T4", "T1000", "T600", "T400"),
    ),
    70: ("V100", "Titan V"),
    61: (
        *("GTX 1080 Ti", "GTX 1080", "GTX 1070 Ti", "GTX 1070", "GTX 1060", "GTX 1050 Ti"),
        *("GTX 1050", "Titan X", "Titan Xp", "P4", "P40"),
    ),
    60: ("P100",),
}

_MEANINGLESS = re.compile(
    r"nvidia|geforce|tesla|generation|gpu|laptop|mobile|super|blackwell|ampere"
    r"|edition|workstation|server|max|q|sff|pcie|nvl|sxm\d?|hbm\d?e?|\d+gb"
)
"""Words that do not change the compute capability."""


_SHORT = 3
"""Letters that may be part of many names by chance."""


def _key(name: str) -> str:
    """What is left of a name without its spelling: "NVIDIA A100-SXM4-80GB" → "a100"."""
    words = re.split(r"[\s_-]+", name.lower())
    return "".join(word for word in words if not _MEANINGLESS.fullmatch(word))


GPU_NAMES: Mapping[str, int] = MappingProxyType(
    {name: number for number, names in _CARDS.items() for name in names}
)
"""Compute capabilities, 89 for 8.9, by name."""

_BY_KEY = {_key(name): (name, number) for name, number in GPU_NAMES.items()}


def gpu_capabilities(texts: Iterable[str]) -> tuple[int, ...]:
    """Compute capabilities of GPUs as people write them.

    Args:
        texts: names such as ``RTX 4090``, or what `parse_capabilities` takes; several with commas.

    Returns:
        Each once, ascending.

    Raises:
        EngineError: a name or number that is not known, or a GPU older than TensorRT goes.
    """
    return parse_capabilities(_as_number(part.strip()) for part in ",".join(texts).split(","))


def _as_number(text: str) -> str:
    """A name as a compute capability; what holds no name as it is."""
    if re.fullmatch(r"(sm_?)?(\d{0,3}|\d{1,2}\.\d)", text.lower()):
        return text
    for key in _keys(text):
        if key in _BY_KEY:
            return f"sm{_BY_KEY[key][1]}"
    near = " or ".join(f"'{_BY_KEY[key][0]}'" for key in _near(_key(text)))
    hint = f"did you mean {near}? Or " if near else ""
    raise EngineError(f"no GPU '{printable(text)}' is known; {hint}write sm89 or 8.9")


def _keys(text: str) -> Iterator[str]:
    key = _key(text)
    yield from (key, f"rtx{key}", f"gtx{key}")


def _near(key: str) -> list[str]:
    """Keys that hold this one, and those of nearly the same letters; a few."""
    holding = [known for known in _BY_KEY if len(key) > _SHORT and key in known]
    return list(dict.fromkeys([*holding, *get_close_matches(key, _BY_KEY, cutoff=0.75)]))[:4]
