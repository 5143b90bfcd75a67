"""diffusers' LoRA methods, on running engines.

They mean what they mean in diffusers: loading makes the new adapter the only active one, and
``fuse_lora`` survives ``unload_lora_weights``. All of them end in
:meth:`kdrt.pipeline.adapters.Adapters.set_loras`: every LoRA is merged into the weights at all
times, so fusing costs and changes nothing by itself. Two things are fixed: ``unfuse_lora`` also
works after unloading, and so returns to the base model; and a scale given to ``fuse_lora`` is not
applied twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from typing import Any, cast

from kdrt.adapters.lora import LoraSwap
from kdrt.adapters.lora_merge import LayerScale, Scale
from kdrt.adapters.lora_names import NETWORKS
from kdrt.common.validation import check_texts, finite_or_none
from kdrt.compat.lora_blocks import block_scales
from kdrt.compat.lora_saving import LoraSavingMixin
from kdrt.compat.lora_source import LoraSource, open_lora
from kdrt.compat.lora_state import LoraState, check_network, scale_in, times
from kdrt.errors import InvalidRequestError, KdrtError
from kdrt.pipeline.calls import one_call
from kdrt.pipeline.pipeline import Pipeline

_COMPONENTS = list(NETWORKS)


class LoraMixin(LoraSavingMixin):
    """For a class with a ``pipeline``."""

    pipeline: Pipeline

    @cached_property
    def _lora_state(self) -> LoraState:
        return LoraState()

    @one_call
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: LoraSource,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA. It becomes the only active one, at scale 1.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder, a hub id, or the tensors.
            adapter_name: its name; None is ``default_0``, ``default_1``, …
            hotswap: replace the adapter of that name.
            kwargs: ``weight_name``, ``subfolder``, ``revision``, ``cache_dir``, ``token``,
                ``local_files_only``; ``use_safetensors=False`` accepts pickles.

        Raises:
            InvalidRequestError: it is no LoRA or is for another model, or the name is in use. The
                adapters then stay as they were.
            EngineError: the weights of this engine are fixed; the message says what to export.
        """
        state, loaded = self._lora_state, self.pipeline.adapters.loras
        name = adapter_name
        if name is None:
            numbered = map("default_{}".format, count(len(state.scales)))
            name = next(free for free in numbered if free not in loaded)
        if name in loaded and not hotswap:
            raise InvalidRequestError(
                f"Adapter name {name} already in use in the model - please select a new adapter "
                "name."
            )
        file = open_lora(pretrained_model_name_or_path_or_dict, kwargs)
        before = dict(state.scales), state.active
        if name in loaded:
            self.pipeline.adapters.unload_loras(name)
        try:
            self.pipeline.adapters.load_lora(file, name, scale=0.0)
            state.scales[name] = 1.0
            state.active = [name]
            self._apply_loras()
        except KdrtError:
            state.scales, state.active = before
            if name in self.pipeline.adapters.loras:
                self.pipeline.adapters.unload_loras(name)
            if name in loaded:
                self.pipeline.adapters.load_lora(loaded[name].file, name, scale=0.0)
            self._apply_loras()
            raise

    @one_call
    def set_adapters(
        self,
        adapter_names: list[str] | str,
        adapter_weights: float
        | dict[str, Any]
        | Sequence[float | dict[str, Any] | None]
        | None = None,
    ) -> None:
        """Make these adapters the active ones, at these weights; None is a weight of 1. A
        dictionary gives ``unet``, ``text_encoder`` and ``text_encoder_2`` a weight each; the UNet
        may also have one for each block, see :func:`kdrt.compat.lora_blocks.block_scales`.

        Raises:
            InvalidRequestError: an adapter or a block does not exist, or the numbers of names and
                weights differ.
        """
        names = list(check_texts("adapter_names", adapter_names)) if adapter_names else []
        if isinstance(adapter_weights, str) or not isinstance(adapter_weights, Sequence):
            adapter_weights = [adapter_weights] * len(names)
        if len(names) != len(adapter_weights):
            raise InvalidRequestError(
                f"Length of adapter names {len(names)} is not equal to the length of the weights "
                f"{len(adapter_weights)}"
            )
        state = self._lora_state
        self._lora_state.check_present(names)
        scales = [self._scale_of(weight) for weight in adapter_weights]
        before = dict(state.scales), state.active
        state.scales |= dict(zip(names, scales, strict=True))
        state.active = names
        try:
            self._apply_loras()
        except InvalidRequestError:
            state.scales, state.active = before
            raise

    def get_active_adapters(self) -> list[str]:
        """The names of the active adapters."""
        return list(self._lora_state.active)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The loaded adapters of every network."""
        loras = self.pipeline.adapters.loras
        found = {
            network: [
                name for name in self._lora_state.scales if network in loras[name].file.layers
            ]
            for network in NETWORKS
        }
        return {network: names for network, names in found.items() if names}

    @one_call
    def fuse_lora(
        self,
        components: Sequence[str] = _COMPONENTS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        """Fix adapters at their present weight times ``lora_scale`` until :meth:`unfuse_lora`.
        Deleting or deactivating them in between changes nothing.

        Args:
            components: the networks to fuse in.
            lora_scale: multiplies the weights of the adapters.
            safe_fusing: has no effect: weights that are not finite are always refused.
            adapter_names: the adapters to fuse; None fuses the active ones.

        Raises:
            InvalidRequestError: no adapter is active, one is not loaded, or a component is unknown.
        """
        state = self._lora_state
        names = state.active
        if adapter_names is not None:
            names = list(check_texts("adapter_names", adapter_names))
        self._lora_state.check_present(names)
        if finite_or_none(lora_scale) is None:
            raise InvalidRequestError(f"lora_scale must be a finite number, not {lora_scale!r}")
        for component in check_texts("components", components):
            check_network(component)
        if not names:
            raise InvalidRequestError("there is no active LoRA to fuse; load one first")
        before = {name: dict(scales) for name, scales in state.fused.items()}
        for name in names:
            fused = state.fused.setdefault(name, {})
            fused |= {c: times(lora_scale, scale_in(state.scales[name], c)) for c in components}
        try:
            self._apply_loras()
        except InvalidRequestError:
            state.fused = before
            raise

    @one_call
    def unfuse_lora(self, components: Sequence[str] = _COMPONENTS, **_: Any) -> None:
        """Undo :meth:`fuse_lora`. Adapters that are still loaded return to their own weights;
        those that were unloaded in between are removed."""
        state = self._lora_state
        for name, scales in list(state.fused.items()):
            state.fused[name] = {c: s for c, s in scales.items() if c not in components}
            if not state.fused[name]:
                del state.fused[name]
        self._forget(name for name in self.pipeline.adapters.loras if name not in state.scales)
        self._apply_loras()

    @property
    def num_fused_loras(self) -> int:
        return len(self._lora_state.fused)

    @property
    def fused_loras(self) -> set[str]:
        return set(self._lora_state.fused)

    @one_call
    def unload_lora_weights(self, **_: Any) -> None:
        """Remove all adapters except the fused ones. If none is fused, the weights are then those
        of the base model, bit for bit."""
        self.delete_adapters(list(self._lora_state.scales))
        self._lora_state.enabled = True

    @one_call
    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove adapters; fused ones keep their effect.

        Raises:
            InvalidRequestError: one is not loaded.
        """
        names = list(check_texts("adapter_names", adapter_names)) if adapter_names else []
        self._lora_state.check_present(names)
        state = self._lora_state
        for name in names:
            del state.scales[name]
        state.active = [name for name in state.active if name not in names]
        self._forget(names)
        self._apply_loras()

    @one_call
    def disable_lora(self) -> None:
        """Turn all adapters off until :meth:`enable_lora`."""
        self._lora_state.enabled = False
        self._apply_loras()

    @one_call
    def enable_lora(self) -> None:
        """Undo :meth:`disable_lora`."""
        self._lora_state.enabled = True
        self._apply_loras()

    @contextmanager
    def _text_scaled(self, lora_scale: float | None) -> Iterator[None]:
        """The text encoders with their adapters at ``lora_scale`` times their weights."""
        if lora_scale is not None and finite_or_none(lora_scale) is None:
            raise InvalidRequestError(f"lora_scale must be a finite number, not {lora_scale!r}")
        if lora_scale is None or lora_scale == 1 or not self.pipeline.adapters.loras:
            yield
            return
        present = self._wanted_scales()
        scaled = {
            name: {n: v if n == "unet" else times(lora_scale, v) for n, v in scales.items()}
            for name, scales in present.items()
        }
        self.pipeline.adapters.set_loras(scaled)
        try:
            yield
        finally:
            self.pipeline.adapters.set_loras(present)

    def _wanted_scales(self) -> dict[str, dict[str, LayerScale]]:
        return self._lora_state.wanted_scales(self.pipeline.adapters.loras)

    def _apply_loras(self) -> LoraSwap:
        return self.pipeline.adapters.set_loras(self._wanted_scales())

    def _scale_of(self, weight: Any) -> Scale:
        """A weight of ``set_adapters`` as a scale; numbers are checked where they are used."""
        if weight is None:
            return 1.0
        if not isinstance(weight, Mapping):
            return cast(float, weight)
        for network in weight:
            check_network(network)
        scales = {network: 1.0 if given is None else given for network, given in weight.items()}
        if isinstance(blocks := scales.get("unet"), Mapping):
            scales["unet"] = block_scales(blocks, self.pipeline.adapters.lora_modules("unet"))
        return scales

    def _forget(self, names: Iterable[str]) -> None:
        """Unload these LoRAs, but for those that are fused."""
        fused, loaded = self._lora_state.fused, self.pipeline.adapters.loras
        gone = [name for name in names if name not in fused and name in loaded]
        if gone:
            self.pipeline.adapters.unload_loras(*gone)
