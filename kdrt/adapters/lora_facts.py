"""What a LoRA file is, without a model: kinds, ranks, what it touches, which base it fits."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kdrt.adapters.lora_changes import DoraLayer
from kdrt.adapters.lora_file import LoraFile
from kdrt.adapters.lora_layer import Addition, Layer

_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
"""Bases by what their UNets' cross-attention takes, the width of their text encoders' states."""
_SAID = {
    "sd_v1": "Stable Diffusion 1.x",
    "sd_v2": "Stable Diffusion 2.x",
    "sdxl": "SDXL",
    "sd_xl": "SDXL",
    "stable-diffusion-v1": "Stable Diffusion 1.x",
    "stable-diffusion-v2": "Stable Diffusion 2.x",
    "stable-diffusion-xl": "SDXL",
}
"""Bases by how trainers' names of them begin."""
_BLOCK = re.compile(
    r"(?:down|up|input|output)_blocks_\d+|(?:mid|middle)_block|(?:.*_)?layers_\d+(?=_)"
)
_WORDS = 20
"""Trained words that are told at most."""


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a file.

    Attributes:
        network: ``unet``, ``text_encoder`` or ``text_encoder_2``.
        module: the path of the module, with underscores; a bias has ``.bias`` at the end.
        kind: of the method.
        rank: of its matrices; None where it has none.
        strength: alpha / rank; None where there is no such factor.
    """

    network: str
    module: str
    kind: str
    rank: int | None
    strength: float | None

    @property
    def block(self) -> str:
        """The first part of the path that numbers a block, or the module."""
        found = _BLOCK.match(self.module)
        return found[0] if found else self.module


@dataclass(frozen=True)
class LoraFacts:
    """What a file is.

    Attributes:
        base: the family of models it was made for; None if nothing tells.
        evidence: what tells the base.
        layers: every layer, by network and path.
        changes_nothing: whether all of them are zero.
        words: trained words, the most frequent first.
        embeddings: words of textual inversions inside of the file.
        metadata: what the trainer wrote.
    """

    base: str | None
    evidence: str
    layers: tuple[LayerFacts, ...]
    changes_nothing: bool
    words: tuple[str, ...]
    embeddings: tuple[str, ...]
    metadata: Mapping[str, str]

    def kinds(self) -> dict[str, int]:
        """How many layers there are of each kind, the most frequent first."""
        counts = Counter(layer.kind for layer in self.layers)
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def ranks(self) -> dict[int, int]:
        """How many layers there are of each rank."""
        ranks = Counter(layer.rank for layer in self.layers if layer.rank is not None)
        return dict(sorted(ranks.items()))

    def blocks(self, network: str) -> dict[str, int]:
        """How many layers each block of a network has."""
        return dict(Counter(layer.block for layer in self.layers if layer.network == network))


def facts_of(file: LoraFile) -> LoraFacts:
    """What a file is."""
    layers = [
        (n, m, layer) for n, found in file.layers.items() for m, layer in sorted(found.items())
    ]
    base, evidence = _base(file)
    return LoraFacts(
        base,
        evidence,
        tuple(
            LayerFacts(network, module, layer.kind, layer.rank, layer.strength)
            for network, module, layer in layers
        ),
        file.changes_nothing(),
        tuple(_words(file.metadata)),
        tuple(file.embeddings),
        file.metadata,
    )


def _base(file: LoraFile) -> tuple[str | None, str]:
    """The base, by sizes first: metadata are often those of another file."""
    widths = {
        columns
        for module, layer in file.layers.get("unet", {}).items()
        if module.endswith(("attn2_to_k", "attn2_to_v")) and (columns := _columns(layer))
    }
    if len(widths) == 1 and (width := widths.pop()) in _WIDTHS:
        return _WIDTHS[width], f"its cross-attention takes vectors of {width} numbers"
    if "text_encoder_2" in file.layers:
        return "SDXL", "it has layers of a second text encoder"
    for key in ("ss_base_model_version", "modelspec.architecture"):
        said = file.metadata.get(key, "")
        for beginning, base in _SAID.items():
            if said.lower().startswith(beginning):
                return base, f"its metadata say so ({key})"
    return None, "neither sizes nor metadata tell"


def _columns(layer: Layer) -> int | None:
    """The inputs of a linear layer that it is made for, if it says."""
    inner = layer.inner if isinstance(layer, DoraLayer) else layer
    return inner.shape[1] if isinstance(inner, Addition) and len(inner.shape) > 1 else None


def _words(metadata: Mapping[str, str]) -> Iterator[str]:
    """Trigger phrases, then kohya's tags by how often they were trained."""
    phrase = metadata.get("modelspec.trigger_phrase")
    if phrase:
        yield phrase
    try:
        folders = dict(json.loads(metadata.get("ss_tag_frequency", "{}")))
        counts: Counter[str] = Counter()
        for tags in folders.values():
            counts.update({_text(tag): int(count) for tag, count in dict(tags).items()})
    except (ValueError, TypeError, OverflowError, RecursionError):
        return  # what trainers write here is a courtesy
    for tag, _ in counts.most_common(_WORDS):
        if tag:
            yield tag


def _text(tag: object) -> str:
    # JSON can hold halves of characters, which no terminal can be given.
    return str(tag).encode(errors="replace").decode().strip()
