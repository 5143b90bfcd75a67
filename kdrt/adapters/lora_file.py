"""LoRA files (Hu et al. 2021, arXiv:2106.09685), in every spelling diffusers and ComfyUI read.

A LoRA adds ``alpha / rank · up @ down`` to the weight of a layer. What trainers disagree on is how
to name the layer and the two matrices:

    lora_unet_down_blocks_0_…_to_q.lora_down.weight      kohya; also with LDM's block names
    unet.down_blocks.0.….to_q.lora_A.weight              diffusers with peft
    unet.down_blocks.0.….processor.to_q_lora.down.weight diffusers before peft
    diffusion_model.input_blocks.4.1.….lora_A.weight     LDM's names in peft's style
    text_encoders.clip_l.transformer.….lora_up.weight    ComfyUI

Norms and biases have no such product: there ComfyUI (``.diff``, ``.diff_b``) and LyCORIS
(``.w_norm``, ``.b_norm``) store the whole difference. :mod:`kdrt.adapters.lora_keys` reads names.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kdrt.adapters.lora_keys import BUNDLED, EITHER_ENCODER, Key, Part, is_ldm, key_of
from kdrt.adapters.lora_kinds import layers_of
from kdrt.adapters.lora_layer import Layer
from kdrt.adapters.lora_metadata import metadata_beside, peft_configs
from kdrt.adapters.lora_parts import LayerParts
from kdrt.adapters.tensor_file import (
    check_sizes,
    checked,
    existing,
    kind_of,
    read_pickle,
    read_safetensors,
)
from kdrt.bundle import sha256
from kdrt.errors import InvalidRequestError

_OTHER_METHODS = {
    "oft_diag": "OFT as LyCORIS wrote it before 2.1",
    "oft_r": "OFT as peft wrote it before 0.16",
    "boft_": "peft's BOFT",
    "oft_R.scaled_oft": "OneTrainer's scaled OFT",
    "initial_norm": "OneTrainer's DoRA of OFT",
    "dora_multiplier": "OneTrainer's DoRA of OFT",
    "lora_E": "AdaLoRA",
    "lora_embedding_": "a LoRA of embeddings",
    "lambda_layer": "T-LoRA",
    "q_layer": "T-LoRA",
    "p_layer": "T-LoRA",
    "up_list": "DyLoRA",
    "down_list": "DyLoRA",
    "vera_": "VeRA",
    "vblora_": "VB-LoRA",
    "randlora_": "RandLoRA",
    "fourierft_": "FourierFT",
    "hra_": "HRA",
    "c3a_": "C³A",
    "set_weight": "a whole weight in place of the model's",
    "reshape_weight": "a weight of another size",
    "modules_to_save": "a whole module in place of the model's",
}


Embedding = Mapping[str, Tensor]
"""A textual inversion as :func:`kdrt.adapters.textual_inversion.load` takes it."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it lies on disk.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        layers: for each of ``unet``, ``text_encoder`` and ``text_encoder_2`` that it touches, by
            the module's path with underscores for dots; a bias has ``.bias`` at the end.
        embeddings: textual inversions that belong to it, by their words.
        metadata: what its trainer wrote beside the tensors.
        encoder_unsaid: whether its layers of ``text_encoder`` may be of the second one as well,
            since neither their names nor metadata say of which they are.
    """

    path: Path
    sha256: str
    layers: Mapping[str, Mapping[str, Layer]]
    embeddings: Mapping[str, Embedding] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    encoder_unsaid: bool = False

    def changes_nothing(self) -> bool:
        """Whether all of its layers are zero, as before the first step of a training."""
        return all(
            layer.changes_nothing for layers in self.layers.values() for layer in layers.values()
        )

    def __len__(self) -> int:
        """How many layers it has, without those that a model may lack."""
        return sum(
            not layer.optional for layers in self.layers.values() for layer in layers.values()
        )


def check_effect(file: LoraFile) -> None:
    """Raises InvalidRequestError: the LoRA changes nothing, at any scale."""
    if file.changes_nothing():
        raise InvalidRequestError(
            f"{file.path.name} would change nothing: none of its layers changes a weight, "
            "at any scale, as before a training; use one that was saved after some steps"
        )


def read_lora(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> LoraFile:
    """Read a LoRA.

    Args:
        path: a safetensors file; with ``allow_pickle`` also one of PyTorch's, of which only
            tensors are loaded. The bytes tell which it is, not the suffix.

    Raises:
        InvalidRequestError: the file is missing or damaged, holds no LoRA, or one of another kind
            (AdaLoRA, VeRA, …), or numbers that are not finite.
    """
    file = existing(path, "LoRA file")
    tensors, metadata = _load(file, allow_pickle)
    metadata = metadata_beside(file) | dict(metadata or {})
    layers, unsaid = _parsed(tensors, metadata, file.name)
    embeddings = bundled_embeddings(tensors, file.name)
    return LoraFile(file, sha256(file), layers, embeddings, metadata, unsaid)


def lora_from_tensors(tensors: Mapping[str, Tensor], name: str = "LoRA") -> LoraFile:
    """A LoRA that is in memory already, as :func:`read_lora` would give it.

    Raises:
        InvalidRequestError: see :func:`read_lora`.
    """
    layers, unsaid = _parsed(tensors, None, name)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        raw = tensors[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(key.encode() + raw.numpy().tobytes())
    embeddings = bundled_embeddings(tensors, name)
    return LoraFile(Path(name), digest.hexdigest(), layers, embeddings, encoder_unsaid=unsaid)


def parse_lora(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = "the file"
) -> dict[str, dict[str, Layer]]:
    """The layers of a LoRA from its tensors; see :class:`LoraFile`. Those of a text encoder of
    which nothing says which it is are at the first.

    Every tensor is used or named in an error, but for two kinds: textual inversions, see
    :func:`bundled_embeddings`, and alphas of layers that were pruned from the file.

    Args:
        tensors: as in the file.
        metadata: of a safetensors file; diffusers writes peft's alphas there.
        name: of the file, for messages.

    Raises:
        InvalidRequestError: see :func:`read_lora`.
    """
    return _parsed(tensors, metadata, name)[0]


def _parsed(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, name: str
) -> tuple[dict[str, dict[str, Layer]], bool]:
    """The layers, and whether it is unsaid which text encoder they are of."""
    _check_names(tensors, name)
    found: dict[tuple[str, str], dict[Part, str]] = defaultdict(dict)
    strange = []
    # LDM's names first: where a file has both, the others take their place, as in diffusers.
    for key in sorted(tensors, key=is_ldm, reverse=True):
        if key.startswith(BUNDLED):
            continue
        place = key_of(key)
        if place is None:
            strange.append(key)
        else:
            _note(found[place.network, place.module], place, key, name)
    # A weight alone is a model's, not a LoRA's.
    strange += [
        keys["weight"] for keys in found.values() if "weight" in keys and "on_input" not in keys
    ]
    _refuse_other_methods(strange, name)
    configs = peft_configs(metadata, name)
    said = configs["text_encoder"].encoder if "text_encoder" in configs else None
    layers: dict[str, dict[str, Layer]] = defaultdict(dict)
    for (named, module), keys in found.items():
        network = (said or "text_encoder") if named == EITHER_ENCODER else named
        if keys.keys() != {"alpha"}:
            parts = LayerParts(tensors, keys, name, module)
            for path, layer in layers_of(parts, configs.get(network)).items():
                if path in layers[network]:
                    raise InvalidRequestError(
                        f"{name} has two changes of one place, {path} of the {network}; one of "
                        f"them is '{next(iter(keys.values()))}'"
                    )
                layers[network][path] = layer
    if not layers and any(key.startswith(BUNDLED) for key in tensors):
        raise InvalidRequestError(
            f"{name} holds a textual inversion and no LoRA: use load_textual_inversion"
        )
    if not layers:
        raise InvalidRequestError(
            f"{name} holds no LoRA kdrt knows; it reads kohya's, diffusers', peft's and ComfyUI's "
            "formats"
        )
    networks = {network for network, _ in found}
    unsaid = said is None and EITHER_ENCODER in networks and "text_encoder" not in networks
    return dict(layers), unsaid


def bundled_embeddings(tensors: Mapping[str, Tensor], name: str) -> dict[str, Embedding]:
    """The textual inversions inside of a LoRA file, by their words.

    Raises:
        InvalidRequestError: one is damaged.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith(BUNDLED):
            word, dot, part = key.removeprefix(BUNDLED).rpartition(".")
            # ``WORD.clip_l``, or as the web UI's own files ``WORD.string_to_param.*``
            word = word.removesuffix(".string_to_param")
            if not dot or not word:
                raise InvalidRequestError(f"{name}: '{key}' does not name its word")
            part = "emb_params" if part == "*" else part
            found[word][part] = checked(tensor, f"{name}: '{key}'")
    return dict(found)


def _note(keys: dict[Part, str], place: Key, key: str, name: str) -> None:
    if place.part in keys:
        raise InvalidRequestError(
            f"{name} has two tensors for one part of a layer: '{keys[place.part]}' and '{key}'"
        )
    keys[place.part] = key


def _check_names(tensors: Mapping[str, Tensor], name: str) -> None:
    if not all(isinstance(k, str) and isinstance(t, Tensor) for k, t in tensors.items()):
        raise InvalidRequestError(f"{name} must hold tensors by their names, and nothing else")
    check_sizes({key: tensor.shape for key, tensor in tensors.items()}, name)


def _refuse_other_methods(keys: list[str], name: str) -> None:
    for key in keys:
        for mark, method in _OTHER_METHODS.items():
            if f".{mark}" in key:
                raise InvalidRequestError(
                    f"{name} is {method} by '{key}', which kdrt does not read: merge it into a "
                    "checkpoint and export that"
                )
    if keys:
        raise InvalidRequestError(
            f"{name} has tensors that belong to no LoRA kdrt knows, such as '{keys[0]}'; it reads "
            "kohya's, diffusers', peft's and ComfyUI's formats"
        )


def _load(path: Path, allow_pickle: bool) -> tuple[Mapping[str, Tensor], Mapping[str, str] | None]:
    kind = kind_of(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "pickle":
        if not allow_pickle:
            raise InvalidRequestError(
                f"{path.name} is a pickle, which can run code when opened: get a .safetensors "
                "file, or allow it: Python's load_lora with allow_pickle=True and `kdrt export "
                "--allow-pickle` load its tensors, and nothing else; other commands take none"
            )
        state = read_pickle(path)
        state = state.get("state_dict", state) if isinstance(state, Mapping) else state
        if not isinstance(state, Mapping):
            raise InvalidRequestError(
                f"{path.name} must hold tensors by their names, and nothing else"
            )
        numbers = {key: torch.tensor(v) for key, v in state.items() if isinstance(v, (int, float))}
        return {**state, **numbers}, None
    what = "an image" if kind == "image" else "damaged or of another kind"
    raise InvalidRequestError(f"{path.name} is {what}; a .safetensors file is needed")
