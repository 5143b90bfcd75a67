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
from kdrt.common.validation import check_bool, check_finite, check_int, check_mapping
from kdrt.errors import InvalidRequestError

_METADATA = "lora_adapter_metadata"
"""Where diffusers writes it: one JSON, in which ``unet.`` and the like begin every key."""
_ALPHAS = ("lora_alpha", "alpha")
_LARGEST = 1 << 20
"""Bytes of an ``adapter_config.json``."""
_ENCODERS = {"CLIPTextModel": "text_encoder", "CLIPTextModelWithProjection": "text_encoder_2"}
"""By the classes that peft adapted."""
_MOST_RANK = 1_000_000
"""Where both matrices of a LoKr are whole, the rank is any number beyond their size."""
_MOST_TERMS = 64
"""Of peft's series, which has 5 by default; each is a product of matrices."""
_PATH = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class PeftConfig:
    """What peft says of one network: how strong its layers are, and how they are computed.

    Attributes:
        usual: alpha of a layer that no pattern names; None is its rank.
        patterns: alphas by the end of a module's path, with underscores for dots.
        whole: alphas by a module's whole path.
        root: whether to divide by the root of the rank (Kalajdzievski 2023, arXiv:2312.03732).
        rank: the usual rank, where it is said.
        oft_terms: of peft's series for a rotation; None is Cayley's formula itself.
        encoder: which text encoder the adapted network is, where it is said.
    """

    usual: float | None
    patterns: Mapping[str, tuple[int, float]]
    whole: Mapping[str, tuple[int, float]]
    root: bool
    rank: int | None = None
    oft_terms: int | None = 5
    encoder: str | None = None

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


def peft_configs(metadata: Mapping[str, str] | None, name: str) -> dict[str, PeftConfig]:
    """What peft says of a file's networks, by network; of those that have a configuration.

    Raises:
        InvalidRequestError: the metadata are damaged, name layers by more than their names, or ask
            for what kdrt does not do.
    """
    text = (metadata or {}).get(_METADATA)
    if text is None:
        return {}
    try:
        values: dict[str, Any] = dict(json.loads(text))
        given = {network: _values_of(network, values) for network in NETWORKS}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(f"{name}: its metadata are damaged; save it again") from error
    return {network: _config(own, name) for network, own in given.items() if own}


def metadata_beside(file: Path) -> dict[str, str]:
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
        # Which network it is for only the names of the tensors tell.
        return {
            _METADATA: json.dumps(
                {f"{network}.{key}": value for network in NETWORKS for key, value in values.items()}
            )
        }
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InvalidRequestError(f"{config} is damaged; save the adapter again") from error


def _values_of(network: str, values: Mapping[str, Any]) -> dict[str, Any]:
    beginning = f"{network}."
    return {
        key.removeprefix(beginning): value
        for key, value in values.items()
        if key.startswith(beginning)
    }


def _config(given: Mapping[str, Any], name: str) -> PeftConfig:
    what = f"{name}: {{}} in its metadata".format
    if check_bool(what("coft"), given.get("coft") or False):
        raise InvalidRequestError(
            f"{name} is OFT with a constraint (coft), which kdrt does not read: merge it into a "
            "checkpoint and export that"
        )
    usual = next((key for key in _ALPHAS if given.get(key) is not None), None)
    patterns, whole = _patterns(given.get("alpha_pattern"), name)
    series = check_bool(what("use_cayley_neumann"), given.get("use_cayley_neumann", True) or False)
    terms = given.get("num_cayley_neumann_terms", 5)
    return PeftConfig(
        None if usual is None else check_finite(what(usual), given[usual]),
        patterns,
        whole,
        check_bool(what("use_rslora"), given.get("use_rslora") or False),
        # OFT has a rank of 0 where it has the size of its blocks.
        check_int(what("r"), given.get("r") or 0, 0, _MOST_RANK) or None,
        check_int(what("num_cayley_neumann_terms"), terms, 1, _MOST_TERMS) if series else None,
        _encoder(given),
    )


def _encoder(given: Mapping[str, Any]) -> str | None:
    """By the class of the network, or by the folder it was loaded from."""
    mapping, folder = given.get("auto_mapping"), given.get("base_model_name_or_path")
    said = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    if isinstance(said, str) and said in _ENCODERS:
        return _ENCODERS[said]
    last = re.split(r"[/\\]", folder.rstrip("/\\"))[-1] if isinstance(folder, str) else ""
    return last if last in _ENCODERS.values() else None


_Alphas = dict[str, tuple[int, float]]
"""Alphas by module, each with its place among all, since the first that fits counts."""


def _patterns(given: object, name: str) -> tuple[_Alphas, _Alphas]:
    """Alphas by the ends of modules' paths, and by whole paths."""
    patterns: _Alphas = {}
    whole: _Alphas = {}
    alphas = check_mapping(f"{name}: alpha_pattern in its metadata", given or {})
    for index, (pattern, alpha) in enumerate(alphas.items()):
        path = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        # peft takes any regular expression; a stranger's could run for years.
        if _PATH.fullmatch(path) is None:
            raise InvalidRequestError(
                f"{name} gives alphas by the pattern {pattern[:80]!r}; kdrt takes names of modules "
                "and ends of them: save it with those"
            )
        table = whole if pattern.startswith("^") else patterns
        number = check_finite(f"{name}: the alpha of {path[:80]} in its metadata", alpha)
        table.setdefault(path.replace(".", "_"), (index, number))
    return patterns, whole
