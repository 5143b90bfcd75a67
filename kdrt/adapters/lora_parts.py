"""From the tensors of one layer of a file to what they do, each checked before it is computed with.

What kind a layer is of shows in its parts; see :mod:`kdrt.adapters.lora_keys`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
from kdrt.adapters.lora_metadata import PeftAlphas
from kdrt.adapters.lora_names import BIAS
from kdrt.adapters.lora_rotations import BoftLayer, InputOftLayer, OftLayer, block_size
from kdrt.adapters.tensor_file import checked
from kdrt.errors import InvalidRequestError

MAX_RANK = 8192
"""Far beyond what the widest layer can use: it bounds what is computed of a layer that fits."""


def _of(beginning: str, endings: str) -> list[Part]:
    return [beginning + ending for ending in endings.split()]


_DORA = {"dora_scale", "magnitude"}
_PARTS: dict[str, frozenset[Part]] = {
    "LoRA": frozenset({"down", "up", "mid", "up_bias", "alpha", *_DORA}),
    "whole difference": frozenset({"difference", "alpha"}),
    "LoHa": frozenset({*_of("hada_", "w1_a w1_b w2_a w2_b t1 t2"), "alpha", *_DORA}),
    "LoKr": frozenset({*_of("lokr_", "w1 w1_a w1_b w2 w2_a w2_b t2"), "alpha", *_DORA}),
    "GLoRA": frozenset({"a1", "a2", "b1", "b2", "bm", "alpha"}),
    "OFT": frozenset({"oft_blocks", "rescale", "alpha"}),
    "OFT of inputs": frozenset({"oft_R.weight", "alpha"}),
    "(IA)³": frozenset({"weight", "on_input"}),
    "peft's (IA)³": frozenset({"ia3_l"}),
}
"""What a layer of each kind may have."""
_SHARED = {"alpha", "rescale", *_DORA}
"""Parts that do not show the kind."""


@dataclass(frozen=True)
class LayerParts:
    """The tensors of one layer as a file has them; ``keys`` names its parts among ``tensors``."""

    tensors: Mapping[str, Tensor]
    keys: Mapping[Part, str]
    file: str
    module: str

    @property
    def name(self) -> str:
        return f"{self.file}: layer {self.module}"

    def layers(self, alphas: PeftAlphas | None) -> dict[str, Layer]:
        """What they do, by the module's path; with ``.bias`` at its end, to the bias of it.

        Raises:
            InvalidRequestError: a part is missing, does not fit the others, belongs to another
                kind, or has numbers that are not finite.
        """
        kind = self._kind()
        if "alpha" in self.keys:
            self._alpha()  # of some kinds it means nothing; damaged it is damaged
        found = self._found(kind, alphas)
        return {self.module + bias: self._decomposed(layer) for bias, layer in found.items()}

    def _found(self, kind: str, alphas: PeftAlphas | None) -> dict[str, Layer]:
        """By what follows the module's path, which is ``.bias`` or nothing."""
        match kind:
            case "LoRA":
                return self._lora(alphas)
            case "LoHa":
                return {"": self._loha(alphas)}
            case "LoKr":
                return {"": self._lokr(alphas)}
            case "GLoRA":
                return {"": self._glora(alphas)}
            case "OFT":
                return {"": self._oft()}
            case "OFT of inputs":
                return {"": self._oft_of_inputs(alphas)}
            case "(IA)³":
                return {"": self._ia3()}
            case "peft's (IA)³":
                return self._ia3_of_peft()
            case _:
                return {"": Difference(self._tensor("difference"))}

    def _kind(self) -> str:
        telling = next((part for part in self.keys if part not in _SHARED), None)
        if telling is None:
            key = next(iter(self.keys.values()))
            raise InvalidRequestError(
                f"{self.name} has only half of a layer, the file is damaged: there is nothing "
                f"beside '{key}'"
            )
        kind = next(kind for kind, parts in _PARTS.items() if telling in parts)
        other = next((part for part in self.keys if part not in _PARTS[kind]), None)
        if other is not None:
            raise InvalidRequestError(
                f"{self.name} is of two kinds at once: it is {kind} by '{self.keys[telling]}', to "
                f"which '{self.keys[other]}' does not belong"
            )
        return kind

    def _lora(self, alphas: PeftAlphas | None) -> dict[str, Layer]:
        down, up = self._need("LoRA", "down", "up")
        mid = self._tensor("mid") if "mid" in self.keys else None
        shapes = {"down": down, "up": up} | ({} if mid is None else {"mid": mid})
        fits = _is_matrix(up) and down.ndim in (2, 4) and down.numel() > 0
        if mid is None:
            fits = fits and up.shape[1] == down.shape[0]
        else:
            fits = fits and _is_core(mid, up.shape[1], len(down)) and _is_matrix(down)
        self._check(fits, shapes, "up must be [out, rank] and down [rank, in]")
        self._check_rank(max(down.shape[0], up.shape[1]))
        scale = self._scale(len(down), alphas)
        layers: dict[str, Layer] = {"": LoraLayer(down, up, mid, scale)}
        if "up_bias" in self.keys:
            bias = self._tensor("up_bias")
            self._check(bias.shape == (len(up),), {"up": up, "bias": bias}, "bias must be [out]")
            layers[BIAS] = Difference(bias, scale)
        return layers

    def _loha(self, alphas: PeftAlphas | None) -> Layer:
        a1, b1, a2, b2 = self._need("LoHa", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        shapes = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2}
        rule = "both halves must be of one size, a [out, rank] and b [rank, in]"
        fits = (
            _is_matrix(a1)  # OneTrainer keeps it as a 1 x 1 kernel
            and b1.ndim in (2, 4)
            and (a1.shape, b1.shape) == (a2.shape, b2.shape)
            and a1.numel() * b1.numel() > 0
        )
        t = None
        if "hada_t1" in self.keys or "hada_t2" in self.keys:
            t = (self._need("LoHa", "hada_t1")[0], self._need("LoHa", "hada_t2")[0])
            shapes |= {"hada_t1": t[0], "hada_t2": t[1]}
            rule = "with t, a must be [rank, out], b [rank, in] and t [rank, rank, h, w]"
            fits = fits and b1.ndim == 2 and t[0].shape == t[1].shape
            fits = fits and _is_core(t[0], len(a1), len(b1))
        else:
            fits = fits and a1.shape[1] == len(b1)
        self._check(fits, shapes, rule)
        self._check_rank(len(b1))
        a1, a2 = a1.flatten(1), a2.flatten(1)
        return LohaLayer((a1, a2), (b1, b2), t, self._scale(len(b1), alphas))

    def _lokr(self, alphas: PeftAlphas | None) -> Layer:
        first, second = self._factor("lokr_w1"), self._factor("lokr_w2")
        t = self._tensor("lokr_t2") if "lokr_t2" in self.keys else None
        shapes = {part: self.tensors[key] for part, key in self.keys.items() if part != "alpha"}
        rule = "a must be [rows, rank] and b [rank, columns], of one rank"
        fits = _is_factor(first) and _is_factor(second, t)
        fits = fits and (first[1] if isinstance(first, tuple) else first).ndim == 2
        fits = fits and (t is None or isinstance(second, tuple))
        self._check(fits, shapes, rule)
        ranks = {len(factor[1]) for factor in (first, second) if isinstance(factor, tuple)}
        self._check(len(ranks) < 2, shapes, rule)
        for rank in ranks:
            self._check_rank(rank)
        if ranks:
            scale = self._scale(ranks.pop(), alphas)
        else:  # LyCORIS' alpha means nothing then; peft's does
            scale = alphas.scale(self.module, alphas.rank) if alphas and alphas.rank else 1.0
        return LokrLayer(first, second, t, scale)

    def _factor(self, part: Part) -> Tensor | tuple[Tensor, Tensor]:
        """One matrix of a Kronecker product."""
        halves = [f"{part}_a", f"{part}_b"]
        if part in self.keys:
            extra = next((half for half in halves if half in self.keys), None)
            if extra is not None:
                raise InvalidRequestError(
                    f"{self.name} has one matrix twice, as '{self.keys[part]}' and as "
                    f"'{self.keys[extra]}'"
                )
            return self._tensor(part)
        if not any(half in self.keys for half in halves):
            self._need("LoKr", part)
        a, b = self._need("LoKr", *halves)
        return a, b

    def _glora(self, alphas: PeftAlphas | None) -> Layer:
        a1, a2, b1, b2 = self._need("GLoRA", "a1", "a2", "b1", "b2")
        if "bm" in self.keys:
            raise InvalidRequestError(
                f"{self.name} is GLoRA with a part in the middle, '{self.keys['bm']}', which no "
                "trainer writes and kdrt does not read"
            )
        shapes = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
        matrices = all(map(_is_matrix, (a1, a2, b1))) and b2.ndim in (2, 4) and b2.numel() > 0
        if matrices and not _is_glora(a1, a2, b1, b2) and b2.ndim == 2:
            # LyCORIS before 2.0 called the halves the other way round.
            a1, a2, b1, b2 = a2, a1, b2, b1
        self._check(
            matrices and _is_glora(a1, a2, b1, b2),
            shapes,
            "a1 must be [in, rank], a2 and b2 [rank, in], and b1 [out, rank]",
        )
        self._check_rank(len(b2))
        return GloraLayer(a1, a2, b1, b2, self._scale(len(b2), alphas))

    def _oft(self) -> Layer:
        (blocks,) = self._need("OFT", "oft_blocks")
        rescale = self._tensor("rescale") if "rescale" in self.keys else None
        rows = blocks.shape[-3:-1].numel() if blocks.ndim > 2 else 0
        self._check(
            blocks.ndim in (3, 4)
            and blocks.numel() > 0
            and blocks.shape[-1] == blocks.shape[-2]
            and (blocks.ndim == 3 or (blocks.shape[-1] % 2 == 0 and len(blocks) < 32))
            and (rescale is None or (_is_vector(rescale) and len(rescale) == rows)),
            {"oft_blocks": blocks} | ({} if rescale is None else {"rescale": rescale}),
            "blocks must be square, [count, size, size] for OFT and [stages, count, size, size] "
            "with an even size for BOFT, and rescale has a factor for each of their rows",
        )
        limit = self._alpha() * rows if "alpha" in self.keys else 0.0
        rescale = None if rescale is None else rescale.flatten()
        return (OftLayer if blocks.ndim == 3 else BoftLayer)(blocks, rescale, limit)

    def _oft_of_inputs(self, config: PeftAlphas | None) -> Layer:
        (generators,) = self._need("OFT", "oft_R.weight")
        self._check(
            generators.ndim == 2 and generators.numel() > 0 and block_size(generators.shape[1]) > 0,
            {"oft_R": generators},
            "it must be [blocks, size · (size - 1) / 2]",
        )
        onetrainers = self.keys["oft_R.weight"].startswith("lora_")
        return InputOftLayer(generators, config.oft_terms if config else 5, onetrainers)

    def _ia3(self) -> Layer:
        (factor,) = self._need("(IA)³", "weight")
        if "on_input" not in self.keys:
            self._need("(IA)³", "on_input")
        self._check(
            _is_vector(factor),
            {"weight": factor},
            "it must have one number for each row or column",
        )
        return Ia3Layer(factor.flatten(), by_row=not self._number("on_input"))

    def _ia3_of_peft(self) -> dict[str, Layer]:
        (factor,) = self._need("(IA)³", "ia3_l")
        by_row = factor.ndim == 2 and factor.shape[1] == 1
        self._check(
            factor.ndim == 2 and _is_vector(factor),
            {"ia3_l": factor},
            "of a linear layer it must be [out, 1] or [1, in]; those of convolutions do not say "
            "which, and are not read",
        )
        added = factor.float().flatten() - 1
        layers: dict[str, Layer] = {"": Ia3Layer(added, by_row)}
        if by_row:  # peft multiplies what comes out of the layer, its bias too
            layers[BIAS] = Ia3Layer(added, by_row, optional=True)
        return layers

    def _decomposed(self, layer: Layer) -> Layer:
        """The layer with DoRA's magnitudes, if there are any."""
        part = next((part for part in self.keys if part in _DORA), None)
        if part is None or not isinstance(layer, Addition) or isinstance(layer, Difference):
            return layer
        lengths = self._tensor(part)
        # peft's are of rows in any shape; LyCORIS' tell by their shape, [out, 1] or [1, in].
        by_row = part == "magnitude" or lengths.shape[:1].numel() == lengths.numel()
        fits = _is_vector(lengths) and lengths.numel() == (
            layer.shape[0] if by_row else lengths.shape[1]
        )
        self._check(
            fits,
            {part: lengths},
            f"a magnitude is needed for each of {layer.shape[0]} rows, as [out, 1], or for each "
            "column, as [1, in]",
        )
        return DoraLayer(layer, lengths.flatten(), by_row)

    def _need(self, kind: str, *parts: Part) -> list[Tensor]:
        for part in parts:
            if part not in self.keys:
                key = next(iter(self.keys.values()))
                raise InvalidRequestError(
                    f"{self.name} has only half of a {kind}, the file is damaged: '{key}' is "
                    f"without its {part}"
                )
        return [self._tensor(part) for part in parts]

    def _check(self, fits: bool, shapes: Mapping[str, Tensor], rule: str) -> None:
        if not fits:
            found = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in shapes.items())
            raise InvalidRequestError(
                f"{self.name} has matrices that do not belong together: {found}; {rule}"
            )

    def _check_rank(self, rank: int) -> None:
        if rank > MAX_RANK:
            raise InvalidRequestError(f"{self.name} has rank {rank}; at most {MAX_RANK} is read")

    def _scale(self, rank: int, alphas: PeftAlphas | None) -> float:
        """alpha / rank."""
        if "alpha" in self.keys:
            return self._alpha() / rank
        return 1.0 if alphas is None else alphas.scale(self.module, rank)

    def _tensor(self, part: Part) -> Tensor:
        return checked(self.tensors[self.keys[part]], f"{self.file}: '{self.keys[part]}'")

    def _alpha(self) -> float:
        return self._number("alpha")

    def _number(self, part: Part) -> float:
        number, key = self.tensors[self.keys[part]], self.keys[part]
        if (
            number.numel() != 1
            or number.dtype is torch.bool
            or number.is_complex()
            or number.is_meta
        ):
            raise InvalidRequestError(
                f"{self.file}: '{key}' must be one number, not {number.dtype} of shape "
                f"{list(number.shape)}"
            )
        return float(checked(number.detach().double(), f"{self.file}: '{key}'"))


def _is_matrix(tensor: Tensor) -> bool:
    """Whether it is a matrix, or a 1 x 1 kernel in its place."""
    return tensor.ndim in (2, 4) and tensor.shape[2:].numel() == 1 and tensor.numel() > 0


def _is_factor(factor: Tensor | tuple[Tensor, Tensor], core: Tensor | None = None) -> bool:
    """Whether it is a matrix or kernel, or two that make one."""
    if not isinstance(factor, tuple):
        return factor.ndim in (2, 4) and factor.numel() > 0
    a, b = factor
    if a.ndim != 2 or b.ndim not in (2, 4) or not a.numel() * b.numel():
        return False
    if core is None:
        return a.shape[1] == len(b)
    return b.ndim == 2 and _is_core(core, len(a), len(b))


def _is_vector(tensor: Tensor) -> bool:
    """Whether all its numbers are along one axis."""
    return tensor.ndim > 0 and tensor.numel() > 0 and tensor.numel() == max(tensor.shape)


def _is_core(tensor: Tensor, rows: int, columns: int) -> bool:
    """Whether it is a kernel between matrices of these ranks."""
    return tensor.ndim == 4 and tensor.shape[:2] == (rows, columns) and tensor.numel() > 0


def _is_glora(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> bool:
    rank = len(b2)
    inputs = b2.shape[1]
    return (a1.shape[:2], a2.shape[:2], b1.shape[1]) == ((inputs, rank), (rank, inputs), rank)
