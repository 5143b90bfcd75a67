"""The names of a LoRA's tensors: which network, which module of it, and which part.

kohya joins a path with the underscores that names are full of, so it cannot be taken apart again.
Therefore all spellings are brought to that form, and :mod:`kdrt.adapters.lora_names` compares it
with the names a network really has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from kdrt.adapters.lora_names import BIAS

Part = Literal[
    "down",
    "up",
    "mid",
    "up_bias",
    "alpha",
    "difference",
    "dora_scale",
    "magnitude",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "a1",
    "a2",
    "b1",
    "b2",
    "bm",
    "oft_blocks",
    "rescale",
    "oft_R.weight",
    "weight",
    "on_input",
    "ia3_l",
]
"""A part of a layer. Those of other kinds than plain LoRAs are called as their keys end;
``magnitude`` is peft's of DoRA, whose other one is ``dora_scale``."""

BUNDLED = "bundle_emb."
"""How the names of a textual inversion inside of a LoRA file begin (OneTrainer, the web UI)."""

_CLIP = {"clip_l": "text_encoder", "clip_h": "text_encoder", "clip_g": "text_encoder_2"}
"""ComfyUI's names; ``clip_h`` is Stable Diffusion 2's."""
_PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    **{
        f"{outer}{clip}.{inner}": network
        for clip, network in _CLIP.items()
        for outer in ("text_encoders.", "")
        for inner in ("transformer.", "")
    },
    "diffusion_model.": "unet",
    "model.diffusion_model.": "unet",
    "base_model.model.": "unet",
    "": "unet",
}
"""Which network a key is about, by the first that fits; the last is for the files of
``unet.save_attn_procs``."""

EITHER_ENCODER = "text_encoder or text_encoder_2"
"""The network of keys that are of a text encoder and do not say of which."""
_NAMELESS = ("lycoris_", "base_model.model.", "")
"""Prefixes of files of one network, whatever it is."""
_OF_ENCODERS = re.compile(
    r"(?:text_model|encoder[._]layers|embeddings|final_layer_norm)[._]|text_projection$"
)
"""How modules of text encoders begin, in transformers before version 5 and since."""

_PAIR = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)"
    r"(?P<part>down|up|mid|A|B)(?:\.(?!weight)\w+)?\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+?)(?:_lora|\.lora|\.lora_linear_layer)?\.alpha")
_PARTS: dict[str, Part] = {"down": "down", "A": "down", "up": "up", "B": "up", "mid": "mid"}
_DIFFERENCES = {".diff": "", ".w_norm": "", ".diff_b": BIAS, ".b_norm": BIAS}
"""What ComfyUI and LyCORIS add as it is, to a weight or a bias."""
_OTHERS = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<up_bias>lora_B(?:\.\w+)?\.bias)"
    r"|(?P<magnitude>lora_magnitude_vector(?:\.\w+)*)"
    r"|(?P<plain>dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale"
    r"|ia3_l|on_input|oft_R\.weight)"
    r"|(?P<glora>[ab][12]|bm)\.weight"
    r"|(?P<weight>weight))"
)
"""A weight alone is a part of LyCORIS' (IA)³, which ``on_input`` beside it tells."""


@dataclass(frozen=True)
class Key:
    """What one tensor of a LoRA is: a part of what is added to ``module`` of ``network``, which may
    be :data:`EITHER_ENCODER`; with :data:`kdrt.adapters.lora_names.BIAS` at its end, to the bias of
    it."""

    network: str
    module: str
    part: Part


def key_of(name: str) -> Key | None:
    """What a tensor of this name is; None if it belongs to no LoRA kdrt knows."""
    if (pair := _PAIR.fullmatch(name)) is not None:
        return Key(*_place(pair["module"]), _PARTS[pair["part"]])
    if (alpha := _ALPHA.fullmatch(name)) is not None:
        return Key(*_place(alpha["module"]), "alpha")
    for ending, kind in _DIFFERENCES.items():
        if name.endswith(ending):
            network, module = _place(name.removesuffix(ending))
            return Key(network, module + kind, "difference")
    if (other := _OTHERS.fullmatch(name)) is not None:
        part = other["plain"] or other["glora"] or other.lastgroup
        return Key(*_place(other["module"]), cast(Part, part))  # the pattern knows no others
    return None


def is_ldm(name: str) -> bool:
    """Whether a key has LDM's names for the blocks of a UNet."""
    return any(mark in name for mark in ("input_blocks", "middle_block", "output_blocks"))


def _place(module: str) -> tuple[str, str]:
    """The network and the underscored path of a module."""
    prefix = next(prefix for prefix in _PREFIXES if module.startswith(prefix))
    path = module.removeprefix(prefix).removeprefix("base_model.model.")
    network = _PREFIXES[prefix]
    if prefix in _NAMELESS and _OF_ENCODERS.match(path):
        network = EITHER_ENCODER
    return network, path.replace(".processor", "").replace(".", "_")
