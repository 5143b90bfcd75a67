"""Which weights of a network a LoRA means.

The names of a network are those its weights have: in a diffusers or transformers module before an
export, in a bundle after it. There attention projections may be one matrix, of which a LoRA on
``to_q`` means the first rows; or a list of three, ``to_qkv.0`` to ``to_qkv.2``.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, takewhile

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
"""What a LoRA can change."""

BIAS = ".bias"
"""Ends the path of a module whose bias is meant; paths have no other dots once canonical."""

_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
}
_LISTED = {"to_qkv": ("0", "1", "2")}
"""Where an export that does not fuse keeps them in a list: the text encoders."""
_KINDS = {("weight", 1), ("weight", 2), ("weight", 4), ("bias", 1)}
"""The last part of a tensor's name, and its dimensions."""


@dataclass(frozen=True)
class Slot:
    """Where a module's weight or bias is: rows ``first`` to ``last`` of the tensor ``weight``.

    ``module`` is its path in a network that was not exported, with dots and without ``unet.``.
    """

    weight: str
    first: int
    last: int
    module: str


def slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Every place a LoRA can mean, by :func:`canonical` path and by LDM's: matrices, convolutions,
    norms and biases.

    Args:
        shapes: the weights of one UNet or text encoder, by name. A common first part
            (``unet.``) is not part of a path.
    """
    found: dict[str, Slot] = {}
    modules: list[str] = []
    for name, shape in shapes.items():
        path, dot, last = name.removeprefix("unet.").rpartition(".")
        if not dot or (last, len(shape)) not in _KINDS:
            continue
        modules.append(path)
        kind = BIAS if last == "bias" else ""
        for module, first, end in _parts(path, shape[0]):
            found[canonical(module + kind)] = Slot(name, first, end, module)
    for ldm, module in _ldm_names(modules).items():
        for path, slot in list(found.items()):
            place, bias, _ = path.partition(BIAS)
            if place == module:
                found[ldm + bias] = slot
            elif place.startswith(module + "_"):
                layer = place.removeprefix(module + "_")
                found[f"{ldm}_{_LDM_LAYERS.get(layer, layer)}{bias}"] = slot
    return found


def canonical(module: str) -> str:
    """The one spelling of a module's path, dots or underscores: what varies is left out, and a
    :data:`BIAS` at its end stays.

    Text models are ``text_model.encoder.layers.0.self_attn.q_proj`` in transformers before version
    5, without the first part since, ``…to_q`` in old diffusers, and without ``self_attn`` here.
    """
    kind = BIAS if module.endswith(BIAS) else ""
    path = module.removesuffix(BIAS).replace(".", "_")
    for part in ("text_model_", "encoder_", "embeddings_"):
        path = path.removeprefix(part)
    if path.startswith("layers_"):
        path = path.replace("_self_attn_", "_")
        path = re.sub(r"_to_([qkv]|out)(?:_0)?$", r"_\1_proj", path)
    return re.sub(r"_to_out$", "_to_out_0", path) + kind


def _parts(module: str, rows: int) -> Iterator[tuple[str, int, int]]:
    """The modules before fusing that one module stands for, with their rows."""
    path, _, last = module.rpartition(".")
    parent, _, listed = path.rpartition(".")
    if last in _LISTED.get(listed, ()):
        path, last = parent, _FUSED[listed][int(last)]
    names = _FUSED.get(last, (last,))
    size = rows // len(names)
    for index, name in enumerate(names):
        yield f"{path}.{name}" if path else name, index * size, (index + 1) * size


_LDM_LAYERS = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
}
_LDM_MODULES = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "middle_block_0": "mid_block_resnets_0",
    "middle_block_1": "mid_block_attentions_0",
    "middle_block_2": "mid_block_resnets_1",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
}


def _ldm_names(modules: Iterable[str]) -> dict[str, str]:
    """LDM's names of a UNet's modules, and ours; paths inside a transformer are the same in both.

    LDM numbers in one row what diffusers nests: ``input_blocks_n`` is a resnet with the attention
    behind it, or a downsampler.
    """
    paths = {"_".join(parts[:n]) for m in modules for parts in [m.split(".")] for n in range(5)}
    if "down_blocks" not in paths:
        return {}
    names = dict(_LDM_MODULES)
    row = 1
    for block in _numbered("down_blocks", paths):
        for resnet in _numbered(f"{block}_resnets", paths):
            names[f"input_blocks_{row}_0"] = resnet
            names[f"input_blocks_{row}_1"] = resnet.replace("resnets", "attentions")
            row += 1
        if f"{block}_downsamplers_0" in paths:
            names[f"input_blocks_{row}_0_op"] = f"{block}_downsamplers_0_conv"
            row += 1
    row = 0
    for block in _numbered("up_blocks", paths):
        for resnet in _numbered(f"{block}_resnets", paths):
            names[f"output_blocks_{row}_0"] = resnet
            names[f"output_blocks_{row}_1"] = resnet.replace("resnets", "attentions")
            row += 1
        place = 2 if f"{block}_attentions_0" in paths else 1
        names[f"output_blocks_{row - 1}_{place}"] = f"{block}_upsamplers_0"
    return names


def _numbered(parent: str, paths: Container[str]) -> Iterator[str]:
    """``parent_0``, ``parent_1``, … as far as there are any."""
    return takewhile(paths.__contains__, (f"{parent}_{n}" for n in count()))
