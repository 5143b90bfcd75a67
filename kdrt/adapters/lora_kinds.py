"""The kinds of LoRAs: which a layer is of, and what its parts make, checked against each other.

The kind shows in the parts; see :mod:`kdrt.adapters.lora_keys`.
"""

from __future__ import annotations

from torch import Tensor

from kdrt.adapters.lora_changes import DoraLayer, GloraLayer, Ia3Layer
from kdrt.adapters.lora_keys import Part
from kdrt.adapters.lora_layer import (
    Addition,
    Difference,
    Layer,
    LohaLayer,
    LokrLayer,
    LoraLayer,
)
from kdrt.adapters.lora_metadata import PeftConfig
from kdrt.adapters.lora_names import BIAS
from kdrt.adapters.lora_parts import LayerParts, is_core, is_matrix, is_vector
from kdrt.adapters.lora_rotations import BoftLayer, InputOftLayer, OftLayer, block_size
from kdrt.errors import InvalidRequestError

_DORA: frozenset[Part] = frozenset({"dora_scale", "magnitude"})
_LOHA: frozenset[Part] = frozenset(
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"}
)
_LOKR: frozenset[Part] = frozenset(
    {"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}
)
_KINDS: dict[str, frozenset[Part]] = {
    "LoRA": frozenset({"down", "up", "mid", "up_bias", "alpha", *_DORA}),
    "whole difference": frozenset({"difference", "alpha"}),
    "LoHa": frozenset({*_LOHA, "alpha", *_DORA}),
    "LoKr": frozenset({*_LOKR, "alpha", *_DORA}),
    "GLoRA": frozenset({"a1", "a2", "b1", "b2", "bm", "alpha"}),
    "OFT": frozenset({"oft_blocks", "rescale", "alpha"}),
    "OFT of inputs": frozenset({"oft_R.weight", "alpha"}),
    "(IA)³": frozenset({"weight", "on_input"}),
    "peft's (IA)³": frozenset({"ia3_l"}),
}
"""What a layer of each kind may have."""
_SHARED: frozenset[Part] = frozenset({"alpha", "rescale", *_DORA})
"""Parts that do not show the kind."""


def layers_of(parts: LayerParts, config: PeftConfig | None) -> dict[str, Layer]:
    """What the parts of a layer do, by the module's path; with ``.bias`` at its end, to the bias of
    it.

    Args:
        parts: of one layer.
        config: what peft says of its network, if it does.

    Raises:
        InvalidRequestError: a part is missing, does not fit the others, belongs to another kind, or
            has numbers that are not finite.
    """
    kind = _kind(parts)
    if "alpha" in parts.keys:
        parts.number("alpha")  # of some kinds it means nothing; damaged it is damaged
    found = _found(kind, parts, config)
    return {parts.module + bias: _decomposed(parts, layer) for bias, layer in found.items()}


def _found(kind: str, parts: LayerParts, config: PeftConfig | None) -> dict[str, Layer]:
    """By what follows the module's path, which is ``.bias`` or nothing."""
    match kind:
        case "LoRA":
            return _lora(parts, config)
        case "LoHa":
            return {"": _loha(parts, config)}
        case "LoKr":
            return {"": _lokr(parts, config)}
        case "GLoRA":
            return {"": _glora(parts, config)}
        case "OFT":
            return {"": _oft(parts)}
        case "OFT of inputs":
            return {"": _oft_of_inputs(parts, config)}
        case "(IA)³":
            return {"": _ia3(parts)}
        case "peft's (IA)³":
            return _ia3_of_peft(parts)
        case _:
            return {"": Difference(parts.tensor("difference"))}


def _kind(parts: LayerParts) -> str:
    telling = next((part for part in parts.keys if part not in _SHARED), None)
    if telling is None:
        key = next(iter(parts.keys.values()))
        raise InvalidRequestError(
            f"{parts.name} has only half of a layer, the file is damaged: there is nothing "
            f"beside '{key}'"
        )
    kind = next(kind for kind, own in _KINDS.items() if telling in own)
    other = next((part for part in parts.keys if part not in _KINDS[kind]), None)
    if other is not None:
        raise InvalidRequestError(
            f"{parts.name} is of two kinds at once: it is {kind} by '{parts.keys[telling]}', to "
            f"which '{parts.keys[other]}' does not belong"
        )
    return kind


def _lora(parts: LayerParts, config: PeftConfig | None) -> dict[str, Layer]:
    down, up = parts.need("LoRA", "down", "up")
    mid = parts.tensor("mid") if "mid" in parts.keys else None
    shapes = {"down": down, "up": up} | ({} if mid is None else {"mid": mid})
    fits = is_matrix(up) and down.ndim in (2, 4) and down.numel() > 0
    if mid is None:
        fits = fits and up.shape[1] == down.shape[0]
    else:
        fits = fits and is_core(mid, up.shape[1], len(down)) and is_matrix(down)
    parts.check(fits, shapes, "up must be [out, rank] and down [rank, in]")
    parts.check_rank(max(down.shape[0], up.shape[1]))
    scale = parts.scale(len(down), config)
    layers: dict[str, Layer] = {"": LoraLayer(down, up, mid, scale)}
    if "up_bias" in parts.keys:
        bias = parts.tensor("up_bias")
        parts.check(bias.shape == (len(up),), {"up": up, "bias": bias}, "bias must be [out]")
        layers[BIAS] = Difference(bias, scale)
    return layers


def _loha(parts: LayerParts, config: PeftConfig | None) -> Layer:
    a1, b1, a2, b2 = parts.need("LoHa", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    shapes = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
    rule = "both halves must be of one size, a [out, rank] and b [rank, in]"
    fits = (
        is_matrix(a1)  # OneTrainer keeps it as a 1 x 1 kernel
        and b1.ndim in (2, 4)
        and (a1.shape, b1.shape) == (a2.shape, b2.shape)
        and a1.numel() * b1.numel() > 0
    )
    t = None
    if "hada_t1" in parts.keys or "hada_t2" in parts.keys:
        t = (parts.need("LoHa", "hada_t1")[0], parts.need("LoHa", "hada_t2")[0])
        shapes |= {"hada_t1": t[0], "hada_t2": t[1]}
        rule = "with t, a must be [rank, out], b [rank, in] and t [rank, rank, h, w]"
        fits = fits and b1.ndim == 2 and t[0].shape == t[1].shape
        fits = fits and is_core(t[0], len(a1), len(b1))
    else:
        fits = fits and a1.shape[1] == len(b1)
    parts.check(fits, shapes, rule)
    parts.check_rank(len(b1))
    a1, a2 = a1.flatten(1), a2.flatten(1)
    return LohaLayer((a1, a2), (b1, b2), t, parts.scale(len(b1), config))


def _lokr(parts: LayerParts, config: PeftConfig | None) -> Layer:
    first = _factor(parts, "lokr_w1", "lokr_w1_a", "lokr_w1_b")
    second = _factor(parts, "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    t = parts.tensor("lokr_t2") if "lokr_t2" in parts.keys else None
    shapes: dict[str, Tensor] = {
        part: parts.tensors[key] for part, key in parts.keys.items() if part != "alpha"
    }
    rule = "a must be [rows, rank] and b [rank, columns], of one rank"
    fits = _is_factor(first) and _is_factor(second, t)
    fits = fits and (first[1] if isinstance(first, tuple) else first).ndim == 2
    fits = fits and (t is None or isinstance(second, tuple))
    parts.check(fits, shapes, rule)
    ranks = {len(factor[1]) for factor in (first, second) if isinstance(factor, tuple)}
    parts.check(len(ranks) < 2, shapes, rule)
    for rank in ranks:
        parts.check_rank(rank)
    if ranks:
        scale = parts.scale(ranks.pop(), config)
    else:  # LyCORIS' alpha means nothing then; peft's does
        scale = config.scale(parts.module, config.rank) if config and config.rank else 1.0
    return LokrLayer(first, second, t, scale)


def _factor(parts: LayerParts, whole: Part, a: Part, b: Part) -> Tensor | tuple[Tensor, Tensor]:
    """One matrix of a Kronecker product."""
    half = next((half for half in (a, b) if half in parts.keys), None)
    if whole in parts.keys:
        if half is not None:
            raise InvalidRequestError(
                f"{parts.name} has one matrix twice, as '{parts.keys[whole]}' and as "
                f"'{parts.keys[half]}'"
            )
        return parts.tensor(whole)
    if half is None:
        parts.need("LoKr", whole)
    left, right = parts.need("LoKr", a, b)
    return left, right


def _glora(parts: LayerParts, config: PeftConfig | None) -> Layer:
    a1, a2, b1, b2 = parts.need("GLoRA", "a1", "a2", "b1", "b2")
    if "bm" in parts.keys:
        raise InvalidRequestError(
            f"{parts.name} is GLoRA with a part in the middle, '{parts.keys['bm']}', which no "
            "trainer writes and kdrt does not read"
        )
    shapes = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    matrices = all(map(is_matrix, (a1, a2, b1))) and b2.ndim in (2, 4) and b2.numel() > 0
    if matrices and not _is_glora(a1, a2, b1, b2) and b2.ndim == 2:
        # LyCORIS before 2.0 called the halves the other way round.
        a1, a2, b1, b2 = a2, a1, b2, b1
    parts.check(
        matrices and _is_glora(a1, a2, b1, b2),
        shapes,
        "a1 must be [in, rank], a2 and b2 [rank, in], and b1 [out, rank]",
    )
    parts.check_rank(len(b2))
    return GloraLayer(a1, a2, b1, b2, parts.scale(len(b2), config))


def _oft(parts: LayerParts) -> Layer:
    (blocks,) = parts.need("OFT", "oft_blocks")
    rescale = parts.tensor("rescale") if "rescale" in parts.keys else None
    rows = blocks.shape[-3:-1].numel() if blocks.ndim > 2 else 0
    parts.check(
        blocks.ndim in (3, 4)
        and blocks.numel() > 0
        and blocks.shape[-1] == blocks.shape[-2]
        and (blocks.ndim == 3 or (blocks.shape[-1] % 2 == 0 and len(blocks) < 32))
        and (rescale is None or (is_vector(rescale) and len(rescale) == rows)),
        {"oft_blocks": blocks} | ({} if rescale is None else {"rescale": rescale}),
        "blocks must be square, [count, size, size] for OFT and [stages, count, size, size] "
        "with an even size for BOFT, and rescale has a factor for each of their rows",
    )
    limit = parts.number("alpha") * rows if "alpha" in parts.keys else 0.0
    rescale = None if rescale is None else rescale.flatten()
    return (OftLayer if blocks.ndim == 3 else BoftLayer)(blocks, rescale, limit)


def _oft_of_inputs(parts: LayerParts, config: PeftConfig | None) -> Layer:
    (generators,) = parts.need("OFT", "oft_R.weight")
    parts.check(
        generators.ndim == 2 and generators.numel() > 0 and block_size(generators.shape[1]) > 0,
        {"oft_R": generators},
        "it must be [blocks, size · (size - 1) / 2]",
    )
    onetrainers = parts.keys["oft_R.weight"].startswith("lora_")
    return InputOftLayer(generators, config.oft_terms if config else 5, onetrainers)


def _ia3(parts: LayerParts) -> Layer:
    (factor,) = parts.need("(IA)³", "weight")
    if "on_input" not in parts.keys:
        parts.need("(IA)³", "on_input")
    parts.check(
        is_vector(factor),
        {"weight": factor},
        "it must have one number for each row or column",
    )
    return Ia3Layer(factor.flatten(), by_row=not parts.number("on_input"))


def _ia3_of_peft(parts: LayerParts) -> dict[str, Layer]:
    (factor,) = parts.need("(IA)³", "ia3_l")
    by_row = factor.ndim == 2 and factor.shape[1] == 1
    parts.check(
        factor.ndim == 2 and is_vector(factor),
        {"ia3_l": factor},
        "of a linear layer it must be [out, 1] or [1, in]; those of convolutions do not say "
        "which, and are not read",
    )
    added = factor.float().flatten() - 1
    layers: dict[str, Layer] = {"": Ia3Layer(added, by_row)}
    if by_row:  # peft multiplies what comes out of the layer, its bias too
        layers[BIAS] = Ia3Layer(added, by_row, optional=True)
    return layers


def _decomposed(parts: LayerParts, layer: Layer) -> Layer:
    """The layer with DoRA's magnitudes, if there are any."""
    found = [part for part in parts.keys if part in _DORA]
    if not found or not isinstance(layer, Addition) or isinstance(layer, Difference):
        return layer
    if len(found) > 1:
        raise InvalidRequestError(
            f"{parts.name} has its magnitudes twice, as '{parts.keys[found[0]]}' and as "
            f"'{parts.keys[found[1]]}'"
        )
    part = found[0]
    lengths = parts.tensor(part)
    # peft's are of rows in any shape; LyCORIS' tell by their shape, [out, 1] or [1, in].
    by_row = part == "magnitude" or lengths.shape[:1].numel() == lengths.numel()
    fits = is_vector(lengths) and lengths.numel() == (
        layer.shape[0] if by_row else lengths.shape[1]
    )
    parts.check(
        fits,
        {part: lengths},
        f"a magnitude is needed for each of {layer.shape[0]} rows, as [out, 1], or for each "
        "column, as [1, in]",
    )
    return DoraLayer(layer, lengths.flatten(), by_row)


def _is_factor(factor: Tensor | tuple[Tensor, Tensor], core: Tensor | None = None) -> bool:
    """Whether it is a matrix or kernel, or two that make one."""
    if not isinstance(factor, tuple):
        return factor.ndim in (2, 4) and factor.numel() > 0
    a, b = factor
    if a.ndim != 2 or b.ndim not in (2, 4) or not a.numel() * b.numel():
        return False
    if core is None:
        return a.shape[1] == len(b)
    return b.ndim == 2 and is_core(core, len(a), len(b))


def _is_glora(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool:
    rank = len(b2)
    inputs = b2.shape[1]
    return (a1.shape[:2], a2.shape[:2], b1.shape[1]) == ((inputs, rank), (rank, inputs), rank)
