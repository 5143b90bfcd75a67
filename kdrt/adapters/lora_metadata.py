"""What stands beside the tensors of a LoRA: peft's configuration of each network.

diffusers writes it among the metadata of the file, peft as ``adapter_config.json`` beside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdrt.adapters.lora_names import NETWORKS
from kdrt.errors import InvalidRequestError

_METADATA = "lora_adapter_metadata"
"""Where diffusers writes it: one JSON, in which ``unet.`` and the like begin every key."""
_ALPHAS = ("lora_alpha", "alpha")
_LARGEST = 1 << 20
"""Bytes of an ``adapter_config.json``."""
_PATH = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class PeftAlphas:
    """How strong the layers of one network are.

    Attributes:
        usual: alpha of a layer that no pattern names; None is its rank.
        patterns: alphas by the end of a module's path, with underscores for dots.
        whole: alphas by a module's whole path.
        root: whether to divide by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        rank: the usual rank, where it is said.
        oft_terms: of peft's series for a rotation; None is Cayley's formula itself.
    """

    usual: float | None
    patterns: Mapping[str, tuple[int, float]]
    whole: Mapping[str, tuple[int, float]]
    root: bool
    rank: int | None = None
    oft_terms: int | None = 5

    def scale(self, module: str, rank: int) -> float:
        """alpha / rank of a module. Of several patterns the first counts, as in peft."""
        parts = module.split("_")
        ends = ["_".join(parts[first:]) for first in range(len(parts))]
        found = [self.patterns[end] for end in ends if end in self.patterns]
        found += [self.whole[module]] if module in self.whole else []
        alpha = min(found)[1] if found else self.usual
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.root else rank)


def peft_alphas(metadata: Mapping[str, str] | None, name: str) -> dict[str, PeftAlphas]:
    """The alphas of a file's networks, by network; of those that have a configuration.

    Raises:
        InvalidRequestError: the metadata are damaged, name layers by more than their names, or ask
            for what kdrt does not do.
    """
    text = (metadata or {}).get(_METADATA)
    if text is None:
        return {}
    try:
        values: dict[str, Any] = dict(json.loads(text))
        networks = {key.partition(".")[0] for key in values}
        return {network: _alphas(values, network, name) for network in networks}
    except InvalidRequestError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(f"{name}: its metadata are damaged; save it again") from error


def peft_config(file: Path) -> dict[str, str]:
    """The configuration that peft saved beside ``adapter_model.safetensors``, as diffusers would
    write it among the metadata; nothing for files of other names.

    Raises:
        InvalidRequestError: it cannot be read.
    """
    config = file.with_name("adapter_config.json")
    if file.stem != "adapter_model" or not config.is_file():
        return {}
    try:
        if config.stat().st_size > _LARGEST:
            raise InvalidRequestError(f"{config} is larger than any configuration of peft")
        values = dict(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(f"{config} is damaged; save the adapter again") from error
    # Which network it is for only the names of the tensors tell.
    return {
        _METADATA: json.dumps(
            {f"{network}.{key}": value for network in NETWORKS for key, value in values.items()}
        )
    }


def _alphas(values: Mapping[str, Any], network: str, name: str) -> PeftAlphas:
    patterns: dict[str, tuple[int, float]] = {}
    whole: dict[str, tuple[int, float]] = {}
    given = values.get(f"{network}.alpha_pattern") or {}
    for index, (pattern, alpha) in enumerate(given.items()):
        path = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        # peft takes any regular expression; a stranger's could run for years.
        if _PATH.fullmatch(path) is None:
            raise InvalidRequestError(
                f"{name} gives alphas by the pattern {pattern[:80]!r}; kdrt takes names of modules "
                "and ends of them: save it with those"
            )
        table = whole if pattern.startswith("^") else patterns
        table.setdefault(path.replace(".", "_"), (index, _finite(alpha)))
    given_alpha = next(
        (alpha for key in _ALPHAS if (alpha := values.get(f"{network}.{key}")) is not None), None
    )
    if values.get(f"{network}.coft"):
        raise InvalidRequestError(
            f"{name} is OFT with a constraint (coft), which kdrt does not read: merge it into a "
            "checkpoint and export that"
        )
    series = values.get(f"{network}.use_cayley_neumann", True)
    return PeftAlphas(
        None if given_alpha is None else _finite(given_alpha),
        patterns,
        whole,
        bool(values.get(f"{network}.use_rslora")),
        int(values.get(f"{network}.r") or 0) or None,
        int(values.get(f"{network}.num_cayley_neumann_terms", 5)) if series else None,
    )


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # what cannot be one is the caller's to catch
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number
