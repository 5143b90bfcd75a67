"""LoRA files (Hu et al. 2021, arXiv:2106.09685), in every spelling diffusers reads.

A LoRA adds ``alpha / rank · up @ down`` to the weight of a layer. What trainers disagree on is how
to name the layer and the two matrices:

    lora_unet_down_blocks_0_…_to_q.lora_down.weight      kohya; also with LDM's block names
    unet.down_blocks.0.….to_q.lora_A.weight              diffusers with peft
    unet.down_blocks.0.….processor.to_q_lora.down.weight diffusers before peft
    diffusion_model.input_blocks.4.1.….lora_A.weight     LDM's names in peft's style

kohya joins a path with the underscores that names are full of, so it cannot be taken apart again.
Therefore all spellings are brought to that form, and :mod:`kdrt.adapters.lora_names` compares it
with the names a network really has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdrt.bundle import sha256
from kdrt.errors import InvalidRequest

_PICKLES = {".pt", ".pth", ".bin", ".ckpt"}

_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "diffusion_model.": "unet",
    "base_model.model.": "unet",
    "": "unet",
}
"""Which network a key is about; the last one fits the files of ``unet.save_attn_procs``."""

_PART = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)"
    r"(?P<part>down|up|mid|A|B)(?:\.(?!weight)\w+)?\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+?)(?:_lora|\.lora|\.lora_linear_layer)?\.alpha")
_PARTS = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}

_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "oft_": "OFT",
    "diff": "full differences",
    "lora_B.bias": "LoRA with biases",
}


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one layer, at scale 1.

    Attributes:
        down: ``[r, in]``, or ``[r, in, kh, kw]`` of a convolution.
        up: ``[out, r]``, or ``[out, r, 1, 1]``.
        mid: ``[r, r, kh, kw]``, for convolutions split in three (LoCon); ``down`` is 1 × 1 then.
        scale: alpha / rank.
    """

    down: Tensor
    up: Tensor
    mid: Tensor | None = None
    scale: float = 1.0

    def delta(self) -> Tensor:
        """The change of the layer's weight, float32 ``[out, in]`` or ``[out, in, kh, kw]``."""
        up, down = self.up.float().flatten(1), self.down.float()
        if self.mid is not None:
            delta = torch.einsum("or,rshw,si->oihw", up, self.mid.float(), down.flatten(1))
        else:
            delta = (up @ down.flatten(1)).reshape(len(up), *down.shape[1:])
        return delta * self.scale


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it lies on disk.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        layers: for each of ``unet``, ``text_encoder`` and ``text_encoder_2`` that it touches, by
            the module's path with underscores for dots.
    """

    path: Path
    sha256: str
    layers: Mapping[str, Mapping[str, LoraLayer]]

    def __len__(self) -> int:
        return sum(map(len, self.layers.values()))


def read_lora(path: Path, *, allow_pickle: bool = False) -> LoraFile:
    """Read a LoRA.

    Args:
        path: a ``.safetensors`` file; with ``allow_pickle`` also ``.pt``, ``.pth``, ``.bin`` and
            ``.ckpt``, of which only tensors are loaded.

    Raises:
        InvalidRequest: the file is missing or damaged, holds no LoRA, or one of another kind
            (DoRA, LoHa, LoKr, …).
    """
    path = path.expanduser()
    tensors, metadata = _load(path, allow_pickle)
    return LoraFile(path, sha256(path), parse_lora(tensors, metadata, path.name))


def lora_from_tensors(tensors: Mapping[str, Tensor], name: str = "LoRA") -> LoraFile:
    """A LoRA that is in memory already, as :func:`read_lora` would give it.

    Raises:
        InvalidRequest: see :func:`read_lora`.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        raw = tensors[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(key.encode() + raw.numpy().tobytes())
    return LoraFile(Path(name), digest.hexdigest(), parse_lora(tensors, None, name))


def lora_option(text: str) -> tuple[Path, float]:
    """``FILE[:SCALE]`` of the command line: the file, and its scale, by default 1."""
    path, colon, scale = text.rpartition(":")
    if colon and path:
        with contextlib.suppress(ValueError):  # a path with a colon of its own
            return Path(path), float(scale)
    return Path(text), 1.0


def parse_lora(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = "the file"
) -> dict[str, dict[str, LoraLayer]]:
    """The layers of a LoRA from its tensors; see :class:`LoraFile`.

    Args:
        tensors: as in the file.
        metadata: of a safetensors file; diffusers writes peft's alphas there.
        name: of the file, for messages.

    Raises:
        InvalidRequest: see :func:`read_lora`.
    """
    found: dict[tuple[str, str], _Parts] = defaultdict(_Parts)
    strange = []
    for key in sorted(tensors, key=_is_sgm, reverse=True):  # LDM's names give way, as in diffusers
        part, alpha = _PART.fullmatch(key), _ALPHA.fullmatch(key)
        if part is not None:
            found[_place(part["module"])].tensors[_PARTS[part["part"]]] = tensors[key]
        elif alpha is not None:
            found[_place(alpha["module"])].alpha = float(tensors[key])
        else:
            strange.append(key)
    _refuse_other_methods(strange, name)
    configs = _peft_configs(metadata)
    layers: dict[str, dict[str, LoraLayer]] = defaultdict(dict)
    for (component, module), parts in found.items():
        layer = parts.layer(configs.get(component), module, name)
        if layer is not None:
            layers[component][module] = layer
    if not layers:
        raise InvalidRequest(
            f"{name} holds no LoRA kdrt knows; it reads kohya's, diffusers' and peft's formats"
        )
    return dict(layers)


@dataclass
class _Parts:
    tensors: dict[str, Tensor] = field(default_factory=dict)
    alpha: float | None = None

    def layer(self, config: _PeftConfig | None, module: str, name: str) -> LoraLayer | None:
        if not self.tensors:
            return None  # an alpha alone: of a layer that was pruned from the file
        if "down" not in self.tensors or "up" not in self.tensors:
            raise InvalidRequest(f"{name} is damaged: its layer {module} has only half of a LoRA")
        down, up = self.tensors["down"], self.tensors["up"]
        rank = len(down)
        if self.alpha is not None:
            scale = self.alpha / rank
        else:
            scale = 1.0 if config is None else config.scale(module, rank)
        return LoraLayer(down, up, self.tensors.get("mid"), scale)


@dataclass(frozen=True)
class _PeftConfig:
    """The part of a peft configuration that numbers depend on."""

    alpha: float
    pattern: Mapping[str, float]
    root: bool

    def scale(self, module: str, rank: int) -> float:
        alpha = self.alpha
        for key, value in self.pattern.items():
            if re.fullmatch(rf"(.*_)?({key.replace('.', '_')})", module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.root else rank)


def _peft_configs(metadata: Mapping[str, str] | None) -> dict[str, _PeftConfig]:
    text = (metadata or {}).get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        values: dict[str, Any] = dict(json.loads(text))
        return {
            component: _PeftConfig(
                float(values[f"{component}.lora_alpha"]),
                values.get(f"{component}.alpha_pattern") or {},
                bool(values.get(f"{component}.use_rslora")),
            )
            for component in ("unet", "text_encoder", "text_encoder_2")
            if f"{component}.lora_alpha" in values
        }
    except (ValueError, TypeError) as error:
        raise InvalidRequest("the LoRA's metadata are damaged; save it again") from error


def _place(module: str) -> tuple[str, str]:
    """The network and the underscored path of a module."""
    prefix = next(prefix for prefix in _PREFIXES if module.startswith(prefix))
    component = _PREFIXES[prefix]
    path = module.removeprefix(prefix)
    if path.startswith("base_model.model."):
        path = path.removeprefix("base_model.model.")
    return component, path.replace(".processor", "").replace(".", "_")


def _is_sgm(key: str) -> bool:
    return any(mark in key for mark in ("input_blocks", "middle_block", "output_blocks"))


def _refuse_other_methods(keys: list[str], name: str) -> None:
    for key in keys:
        for mark, method in _OTHER_METHODS.items():
            if f".{mark}" in key:
                raise InvalidRequest(
                    f"{name} is no plain LoRA but {method}, which kdrt does not read: merge it "
                    "into a checkpoint and export that"
                )
    if keys:
        raise InvalidRequest(
            f"{name} has tensors that belong to no LoRA kdrt knows, such as '{keys[0]}'; it reads "
            "kohya's, diffusers' and peft's formats"
        )


def _load(path: Path, allow_pickle: bool) -> tuple[Mapping[str, Tensor], Mapping[str, str] | None]:
    if not path.is_file():
        raise InvalidRequest(f"there is no LoRA file {path}")
    suffix = path.suffix.lower()
    if suffix in _PICKLES and not allow_pickle:
        raise InvalidRequest(
            f"{path.name} is a pickle, which can run code when opened: get a .safetensors file, or "
            "allow it (allow_pickle=True; only tensors are loaded)"
        )
    if suffix not in {".safetensors", *_PICKLES}:
        raise InvalidRequest(f"{path.name} is no LoRA file; a .safetensors file is needed")
    try:
        if suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {key: torch.as_tensor(v) for key, v in state.get("state_dict", state).items()}, None
    except Exception as error:  # a damaged file raises one of many types
        raise InvalidRequest(f"{path.name} is damaged or holds more than tensors") from error
