"""What diffusers writes beside the tensors of a LoRA: the alphas of its peft configurations."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdrt.errors import InvalidRequestError

_ALPHA = ".lora_alpha"
_PATH = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class PeftAlphas:
    """How strong the layers of one network are.

    Attributes:
        usual: alpha of a layer that no pattern names.
        patterns: alphas by the end of a module's path, with underscores for dots.
        whole: alphas by a module's whole path.
        root: whether to divide by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        rank: the usual rank, where it is said.
        oft_terms: of peft's series for a rotation; None is Cayley's formula itself.
    """

    usual: float
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
        return alpha / (math.sqrt(rank) if self.root else rank)


def peft_alphas(metadata: Mapping[str, str] | None, name: str) -> dict[str, PeftAlphas]:
    """The alphas of a file's networks, by network; of those that have any.

    Raises:
        InvalidRequestError: the metadata are damaged, or name layers by more than their names.
    """
    text = (metadata or {}).get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        values: dict[str, Any] = dict(json.loads(text))
        networks = [key.removesuffix(_ALPHA) for key in values if key.endswith(_ALPHA)]
        return {network: _alphas(values, network, name) for network in networks}
    except InvalidRequestError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidRequestError(f"{name}: its metadata are damaged; save it again") from error


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
    usual = _finite(values[network + _ALPHA])
    return PeftAlphas(usual, patterns, whole, bool(values.get(f"{network}.use_rslora")))


def _finite(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]  # what cannot be one is the caller's to catch
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number
