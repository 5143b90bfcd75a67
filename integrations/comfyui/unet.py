"""A kdrt engine in the place of ComfyUI's UNet.

ComfyUI's `BaseModel` scales the latents, chooses the timestep and reads the prediction. In between
it calls a module like its own `UNetModel`, with a row for every image and prompt: this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdrt import InvalidRequestError, Pipeline
from kdrt.adapters.unet_features import unet_with
from kdrt.bundle.components import DOWN_RESIDUAL, MID_RESIDUAL, is_residual
from kdrt.common.lru import LruCache
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.denoise.bound_unet import UNetRows
from kdrt.denoise.denoising import SIZES_KEPT
from kdrt.denoise.freeu import FREEU_OFF

_WRITTEN = {"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", "freeu"}
"""Inputs of a UNet that ComfyUI has something for, or that have a neutral value."""

_EMBEDDING = 256
"""Width of the sines and cosines that ComfyUI makes of each number of SDXL's size conditioning."""

_SLOWEST = 10_000.0 ** -((_EMBEDDING // 2 - 1) / (_EMBEDDING // 2))
"""Radians for each unit of the number, in the last of them."""


class _Sizes(NamedTuple):
    """What the buffers depend on."""

    component: str
    rows: int
    height: int
    width: int
    tokens: int


class EngineUNet(nn.Module):
    """The UNet of a pipeline, called as ComfyUI calls its `UNetModel`.

    It has no weights that ComfyUI could move, patch or save. Buffers are kept for the last sizes.

    Args:
        pipeline: an open one.

    Attributes:
        dtype: what ComfyUI hands over; the engine rounds to its own.

    Raises:
        InvalidRequestError: the UNet has an input that ComfyUI has nothing for.
    """

    dtype = torch.float32

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self._pipeline = pipeline
        self._bound: LruCache[_Sizes, UNetRows] = LruCache(SIZES_KEPT)
        inputs = {tensor.name for tensor in pipeline.engines["unet"].spec.inputs}
        if unknown := sorted(inputs - _WRITTEN):
            raise InvalidRequestError(
                f"'{self._name}' cannot be a MODEL: its UNet has the input '{unknown[0]}', which "
                "ComfyUI has nothing for; use the node 'kdrt image'"
            )

    @torch.no_grad()
    @in_neutral_modes
    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        control: Mapping[str, Sequence[Tensor | None]] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **others: object,
    ) -> Tensor:
        """The prediction for R rows.

        Args:
            x: ``[R, C, h, w]``, the scaled latents, and what inpainting models see besides.
            timesteps: ``[R]``.
            context: ``[R, L, D]``, the embeddings of the prompts.
            y: of SDXL ``[R, P + n·256]``: the pooled embedding, and n numbers as sines and cosines.
            control: residuals for the skip connections (``output``) and the middle (``middle``).
            transformer_options: patches, which must not be there.
            others: conditioning of other models, which `UNetModel` leaves unread too.

        Returns:
            float32 ``[R, C, h, w]``, on the device of ``x``.

        Raises:
            InvalidRequestError: something that an engine cannot do.
            ShapeError: the engine was not built for this size.
        """
        _refuse_patches(transformer_options or {})
        told = {"sample": x, "timestep": timesteps, "encoder_hidden_states": context}
        component = "unet"
        if control is not None and any(map(_given, control.values())):
            component = unet_with(self._pipeline.bundle.manifest, ["control"])
            told |= self._residuals(component, control)
        if y is not None:
            told |= self._size_conditioning(y)
        self._check(told)
        engine = self._pipeline.engines[component]
        most = engine.limits().get("B", (1, len(x)))[1]
        with self._pipeline.calls.exclusive(), self._pipeline.cuda_stream.active():
            made = [
                self._run(component, {name: part[i : i + most] for name, part in told.items()})
                for i in range(0, len(x), most)
            ]
            return torch.cat(made).to(x.device)

    @property
    def _name(self) -> str:
        return self._pipeline.bundle.manifest.name

    def _run(self, component: str, told: Mapping[str, Tensor]) -> Tensor:
        rows, _, height, width = told["sample"].shape
        sizes = _Sizes(component, rows, height, width, told["encoder_hidden_states"].shape[1])
        bound = self._bound.get(sizes, lambda: self._bind(sizes))
        for name, tensor in told.items():
            bound.inputs[name].copy_(tensor)
        for name in filter(is_residual, bound.inputs.keys() - told.keys()):
            bound.inputs[name].zero_()
        bound.run()
        return bound.prediction.clone()

    def _bind(self, sizes: _Sizes) -> UNetRows:
        component, rows, height, width, tokens = sizes
        engine = self._pipeline.engines[component]
        bound = UNetRows(engine, rows=rows, height=height, width=width, tokens=tokens)
        if "freeu" in bound.inputs:
            bound.inputs["freeu"].copy_(torch.tensor(FREEU_OFF))
        return bound

    def _check(self, told: Mapping[str, Tensor]) -> None:
        """Whether the conditioning is of this family of models."""
        spec = self._pipeline.engines["unet"].spec
        for tensor in spec.inputs:
            if tensor.name not in ("encoder_hidden_states", "text_embeds", "time_ids"):
                continue
            found, width = told.get(tensor.name), tensor.shape[-1]
            if found is None or found.shape[-1] != width:
                given = "nothing" if found is None else f"{found.shape[-1]} numbers"
                raise InvalidRequestError(
                    f"'{self._name}' takes {width} numbers as {tensor.name}, and the conditioning "
                    f"holds {given}: encode the prompts with the CLIP of this model"
                )

    def _size_conditioning(self, y: Tensor) -> dict[str, Tensor]:
        """SDXL's inputs from ComfyUI's one."""
        spec = self._pipeline.engines["unet"].spec
        if not spec.has_input("time_ids"):
            return {}
        ids = spec.input("time_ids").shape[-1]
        assert isinstance(ids, int)  # a bundle is checked for it
        numbers = ids * _EMBEDDING
        return {"text_embeds": y[:, :-numbers], "time_ids": embedded_numbers(y[:, -numbers:])}

    def _residuals(
        self, component: str, control: Mapping[str, Sequence[Tensor | None]]
    ) -> dict[str, Tensor]:
        """The inputs of a UNet with controls, where ComfyUI's ControlNets add something.

        Raises:
            InvalidRequestError: a residual that has no place in this UNet.
        """
        spec = self._pipeline.bundle.manifest.components[component].spec()
        skips = [name for t in spec.inputs if (name := t.name).startswith(DOWN_RESIDUAL)]
        if _given(control.get("input", ())):
            raise InvalidRequestError(
                "T2I-Adapters of ComfyUI do not work on a MODEL of kdrt, ControlNets do; use the "
                "node 'kdrt image' without it, or `kdrt generate --control`"
            )
        output, middle = control.get("output", ()), control.get("middle", ())
        if len(output) > len(skips) or len(middle) > 1:
            raise InvalidRequestError(
                f"this ControlNet adds to {len(output)} skip connections and '{self._name}' has "
                f"{len(skips)}: it is one of another family of models"
            )
        # ComfyUI takes them from the end, as the skip connections: the first may be missing.
        named = [*zip(skips[::-1], output[::-1], strict=False)]
        named += [(MID_RESIDUAL, residual) for residual in middle]
        return {name: residual for name, residual in named if residual is not None}


def embedded_numbers(embedding: Tensor) -> Tensor:
    """The numbers that ComfyUI embedded as sines and cosines: float32 ``[R, n]``.

    The slowest wave of each takes 58,000 units for a turn, so its angle tells the number, and
    float32 tells it to a thousandth.

    Args:
        embedding: ``[R, n·256]``; of each number 128 cosines, then 128 sines, the slowest last.
    """
    waves = embedding.double().view(len(embedding), -1, 2, _EMBEDDING // 2)
    cosines, sines = waves[..., -1].unbind(2)
    return torch.round(torch.atan2(sines, cosines) / _SLOWEST, decimals=2).float()


def _given(residuals: Sequence[Tensor | None]) -> bool:
    return any(residual is not None for residual in residuals)


def _refuse_patches(options: Mapping[str, Any]) -> None:
    """Raises InvalidRequestError: something wants to change the inside of the UNet."""
    for name in _patches(options):
        raise InvalidRequestError(
            f"a node wants to change the UNet's inside ('{name}'), which a built engine does not "
            "let it: take the node away from this MODEL; FreeU, PAG and IP-Adapters are in kdrt "
            "itself (`kdrt generate --help`)"
        )


def _patches(options: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("patches", "patches_replace"):
        yield from (name for name, given in options.get(kind, {}).items() if given)
    wrappers = options.get("wrappers", {}).get("diffusion_model", {})
    yield from (f"wrapper {name}" for name, given in wrappers.items() if given)
