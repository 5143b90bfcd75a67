"""diffusers' LoRA methods, on running engines.

What they mean is diffusers': loading makes the new adapter the only active one, ``fuse_lora``
survives ``unload_lora_weights``. What they do is :meth:`kdrt.Pipeline.set_loras`: every LoRA is
merged into the weights all the time, so fusing costs and changes nothing by itself. Two things
are mended: ``unfuse_lora`` also works after unloading, and so returns to the base model; and a
scale given to ``fuse_lora`` is not applied twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save_file
from torch import Tensor, nn

from kdrt.adapters.lora import NETWORKS, LoraSwap, Scale
from kdrt.adapters.lora_file import LoraFile, lora_from_tensors, read_lora
from kdrt.adapters.lora_merge import LayerScale
from kdrt.adapters.tensor_file import is_there
from kdrt.common.atomic_io import new_file
from kdrt.common.hub import hub_failure
from kdrt.common.paths import user_path
from kdrt.common.validation import check_texts, finite_or_none
from kdrt.compat.lora_blocks import block_scales
from kdrt.errors import InvalidRequestError, KdrtError, OutputError
from kdrt.pipeline.calls import one_call
from kdrt.pipeline.pipeline import Pipeline

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
_COMPONENTS = list(NETWORKS)
Source = str | os.PathLike[str] | Mapping[str, Tensor]
Weights = Mapping[str, Tensor | nn.Module]


@dataclass
class _Adapters:
    """What diffusers keeps beside the weights: who is active, how strong, and who is fused."""

    scales: dict[str, Scale] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    fused: dict[str, dict[str, LayerScale]] = field(default_factory=dict)
    enabled: bool = True


class LoraMixin:
    """For a class with a ``pipeline``."""

    pipeline: Pipeline

    @cached_property
    def _lora_state(self) -> _Adapters:
        return _Adapters()

    @one_call
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Source,
        adapter_name: str | None = None,
        hotswap: bool = False,
        **kwargs: Any,
    ) -> None:
        """Load a LoRA; it becomes the only active one, at scale 1.

        Args:
            pretrained_model_name_or_path_or_dict: a file, a folder, a hub id, or the tensors.
            adapter_name: None is ``default_0``, ``default_1``, …
            hotswap: take the place of the adapter of that name.
            kwargs: ``weight_name``, ``subfolder``, ``revision``, ``cache_dir``, ``token``,
                ``local_files_only``; ``use_safetensors=False`` accepts pickles.

        Raises:
            InvalidRequestError: it is no LoRA, or for another model, or the name is in use. The
                adapters are then those that there were.
            EngineError: the weights of this engine are fixed; the message says what to export.
        """
        state, loaded = self._lora_state, self.pipeline.loras
        name = adapter_name
        if name is None:
            numbered = map("default_{}".format, count(len(state.scales)))
            name = next(free for free in numbered if free not in loaded)
        if name in loaded and not hotswap:
            raise InvalidRequestError(
                f"Adapter name {name} already in use in the model - please select a new adapter "
                "name."
            )
        file = _open(pretrained_model_name_or_path_or_dict, kwargs)
        before = dict(state.scales), state.active
        if name in loaded:
            self.pipeline.unload_loras(name)
        try:
            self.pipeline.load_lora(file, name, scale=0.0)
            state.scales[name] = 1.0
            state.active = [name]
            self._apply_loras()
        except KdrtError:
            state.scales, state.active = before
            if name in self.pipeline.loras:
                self.pipeline.unload_loras(name)
            if name in loaded:
                self.pipeline.load_lora(loaded[name].file, name, scale=0.0)
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
        """Make these adapters the active ones, at these weights (1 where None). A dictionary gives
        ``unet``, ``text_encoder`` and ``text_encoder_2`` each their own weight, and the UNet also
        one by block; see :func:`kdrt.compat.lora_blocks.block_scales`.

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
        self._check_present(names)
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
        loras = self.pipeline.loras
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
        """Keep adapters at their present weight times ``lora_scale`` until :meth:`unfuse_lora`,
        whatever happens to them otherwise.

        Args:
            components: the networks to fuse in.
            lora_scale: multiplies the adapters' weights.
            safe_fusing: accepted: what is not finite is refused in any case.
            adapter_names: None fuses the active ones.

        Raises:
            InvalidRequestError: no adapter is active, one is not loaded, or a component is unknown.
        """
        state = self._lora_state
        names = state.active
        if adapter_names is not None:
            names = list(check_texts("adapter_names", adapter_names))
        self._check_present(names)
        if finite_or_none(lora_scale) is None:
            raise InvalidRequestError(f"lora_scale must be a finite number, not {lora_scale!r}")
        for component in check_texts("components", components):
            _check_network(component)
        if not names:
            raise InvalidRequestError("there is no active LoRA to fuse; load one first")
        before = {name: dict(scales) for name, scales in state.fused.items()}
        for name in names:
            fused = state.fused.setdefault(name, {})
            fused |= {c: _times(lora_scale, _scale_in(state.scales[name], c)) for c in components}
        try:
            self._apply_loras()
        except InvalidRequestError:
            state.fused = before
            raise

    @one_call
    def unfuse_lora(self, components: Sequence[str] = _COMPONENTS, **_: Any) -> None:
        """Undo :meth:`fuse_lora`: adapters still loaded have their own weights again, those that
        were unloaded since are gone."""
        state = self._lora_state
        for name, scales in list(state.fused.items()):
            state.fused[name] = {c: s for c, s in scales.items() if c not in components}
            if not state.fused[name]:
                del state.fused[name]
        self._forget(name for name in self.pipeline.loras if name not in state.scales)
        self._apply_loras()

    @property
    def num_fused_loras(self) -> int:
        return len(self._lora_state.fused)

    @property
    def fused_loras(self) -> set[str]:
        return set(self._lora_state.fused)

    @one_call
    def unload_lora_weights(self, **_: Any) -> None:
        """Remove all adapters; what was fused stays. Without that the weights are the base
        model's, bit for bit."""
        self.delete_adapters(list(self._lora_state.scales))
        self._lora_state.enabled = True

    @one_call
    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove adapters; what was fused stays.

        Raises:
            InvalidRequestError: one is not loaded.
        """
        names = list(check_texts("adapter_names", adapter_names)) if adapter_names else []
        self._check_present(names)
        state = self._lora_state
        for name in names:
            del state.scales[name]
        state.active = [name for name in state.active if name not in names]
        self._forget(names)
        self._apply_loras()

    @one_call
    def disable_lora(self) -> None:
        """Do without all adapters until :meth:`enable_lora`."""
        self._lora_state.enabled = False
        self._apply_loras()

    @one_call
    def enable_lora(self) -> None:
        """Undo :meth:`disable_lora`."""
        self._lora_state.enabled = True
        self._apply_loras()

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Weights | None = None,
        text_encoder_lora_layers: Weights | None = None,
        text_encoder_2_lora_layers: Weights | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Callable[[dict[str, Tensor], str], object] | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a LoRA of your own training in diffusers' format.

        Raises:
            InvalidRequestError: there are no layers, or a pickle is asked for.
            OutputError: the file cannot be written.
        """
        layers = dict(
            zip(
                NETWORKS,
                (unet_lora_layers, text_encoder_lora_layers, text_encoder_2_lora_layers),
                strict=True,
            )
        )
        told = (
            unet_lora_adapter_metadata,
            text_encoder_lora_adapter_metadata,
            text_encoder_2_lora_adapter_metadata,
        )
        if not any(layers.values()):
            raise InvalidRequestError("You must pass at least one of the LoRA layers to save.")
        if not safe_serialization:
            raise InvalidRequestError(
                "kdrt saves LoRAs as safetensors only; leave safe_serialization on"
            )
        if not is_main_process:
            return
        tensors = {
            f"{network}.{name}": tensor
            for network, weights in layers.items()
            for name, tensor in _tensors(weights or {}, network).items()
        }
        if weight_name is not None and not isinstance(weight_name, str):
            raise InvalidRequestError(f"weight_name must be a string, not {weight_name!r}")
        for network, values in zip(NETWORKS, told, strict=True):
            if not isinstance(values, Mapping | None):
                raise InvalidRequestError(
                    f"{network}_lora_adapter_metadata must be a dictionary, not {values!r}"
                )
        metadata = {
            f"{network}.{key}": sorted(value) if isinstance(value, set) else value
            for network, values in zip(NETWORKS, told, strict=True)
            for key, value in (values or {}).items()
        }
        header = {"format": "pt"}
        if metadata:
            try:
                header["lora_adapter_metadata"] = json.dumps(metadata, indent=2, sort_keys=True)
            except (TypeError, ValueError) as error:
                raise InvalidRequestError(f"these adapter metadata are no JSON: {error}") from error
        path = user_path(save_directory) / (weight_name or WEIGHT_NAME)
        if save_function is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write {path}: {error.strerror}") from error
            save_function(tensors, str(path))
            return
        with new_file(path) as partial:
            save_file(tensors, partial, header)

    @contextmanager
    def _text_scaled(self, lora_scale: float | None) -> Iterator[None]:
        """The text encoders with their adapters at ``lora_scale`` times their weights."""
        if lora_scale is not None and finite_or_none(lora_scale) is None:
            raise InvalidRequestError(f"lora_scale must be a finite number, not {lora_scale!r}")
        if lora_scale is None or lora_scale == 1 or not self.pipeline.loras:
            yield
            return
        present = self._wanted_scales()
        scaled = {
            name: {n: v if n == "unet" else _times(lora_scale, v) for n, v in scales.items()}
            for name, scales in present.items()
        }
        self.pipeline.set_loras(scaled)
        try:
            yield
        finally:
            self.pipeline.set_loras(present)

    def _apply_loras(self) -> LoraSwap:
        return self.pipeline.set_loras(self._wanted_scales())

    def _scale_of(self, weight: Any) -> Scale:
        """A weight of ``set_adapters`` as a scale; numbers are checked where they are used."""
        if weight is None:
            return 1.0
        if not isinstance(weight, Mapping):
            return cast(float, weight)
        for network in weight:
            _check_network(network)
        scales = {network: 1.0 if given is None else given for network, given in weight.items()}
        if isinstance(blocks := scales.get("unet"), Mapping):
            scales["unet"] = block_scales(blocks, self.pipeline._loras.modules("unet"))
        return scales

    def _wanted_scales(self) -> dict[str, dict[str, LayerScale]]:
        """Of every LoRA in every network: fused scales first, then those of the active ones."""
        state = self._lora_state
        if not state.enabled:
            return {}
        wanted = {}
        for name in self.pipeline.loras:
            own = state.scales.get(name, 0.0) if name in state.active else 0.0
            scales = {network: _scale_in(own, network) for network in NETWORKS}
            wanted[name] = scales | state.fused.get(name, {})
        return wanted

    def _forget(self, names: Any) -> None:
        fused = self._lora_state.fused
        gone = [name for name in names if name not in fused and name in self.pipeline.loras]
        if gone:
            self.pipeline.unload_loras(*gone)

    def _check_present(self, names: Sequence[str]) -> None:
        present = self._lora_state.scales
        missing = {name for name in names if name not in present}
        if missing:
            raise InvalidRequestError(
                f"Adapter name(s) {missing} not in the list of present adapters: {set(present)}."
            )


def _check_network(name: object) -> None:
    if name not in NETWORKS:
        raise InvalidRequestError(
            f"{name!r} has no LoRA; networks with one are {', '.join(NETWORKS)}"
        )


def _scale_in(scale: Scale, network: str) -> LayerScale:
    return scale.get(network, 1.0) if isinstance(scale, Mapping) else scale


def _times(factor: float, scale: LayerScale) -> LayerScale:
    if isinstance(scale, Mapping):
        return {path: factor * number for path, number in scale.items()}
    return factor * scale


def _tensors(weights: object, network: str) -> dict[str, Tensor]:
    """The tensors of a network's layers, or of a module that holds them."""
    found = weights.state_dict() if isinstance(weights, nn.Module) else weights
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise InvalidRequestError(f"{network}_lora_layers must be tensors by their names")
    return {name: tensor.detach().contiguous() for name, tensor in found.items()}


def _open(source: Source, options: dict[str, Any]) -> LoraFile:
    if isinstance(source, Mapping):
        return lora_from_tensors(source)
    known = ("weight_name", "subfolder", "revision", "cache_dir", "token", "local_files_only")
    ignored = (
        *("use_safetensors", "low_cpu_mem_usage", "force_download", "proxies", "torch_dtype"),
        *("dtype", "user_agent"),
    )
    unknown = [name for name in options if name not in known + ignored]
    if unknown:
        raise InvalidRequestError(
            f"load_lora_weights does not take {unknown[0]!r}; it takes {', '.join(known)}"
        )
    for name in ("weight_name", "subfolder", "revision"):
        if not isinstance(options.get(name), str | None):
            raise InvalidRequestError(f"{name} must be a string, not {options[name]!r}")
    allow_pickle = options.get("use_safetensors") is False
    path = user_path(source)
    if not is_there(path):
        path = _download(str(source), options)
    if path.is_dir():
        path = _in_folder(path / (options.get("subfolder") or ""), options.get("weight_name"))
    return read_lora(path, allow_pickle=allow_pickle)


def _in_folder(folder: Path, name: str | None) -> Path:
    if name is not None:
        return folder / name
    if (folder / WEIGHT_NAME).is_file():
        return folder / WEIGHT_NAME
    files = sorted(f for f in folder.glob("*") if f.suffix.lower() == ".safetensors")
    if len(files) == 1:
        return files[0]
    found = ", ".join(file.name for file in files) or "no .safetensors file"
    raise InvalidRequestError(f"which LoRA in {folder} is meant? Say weight_name; it holds {found}")


def _download(repo: str, options: dict[str, Any]) -> Path:
    name = options.get("weight_name")
    repo, _, revision = repo.partition("@")
    if repo.count("/") != 1 or repo.lower().endswith(".safetensors"):
        raise InvalidRequestError(f"there is no LoRA file or folder {repo}")
    if revision:
        options = {"revision": revision, **options}
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InvalidRequestError(
            f"there is no folder {repo}, and fetching it from the hub needs "
            "`pip install huggingface-hub`"
        ) from error
    subfolder = options.get("subfolder")
    pattern = f"{subfolder}/{name or '*.safetensors'}" if subfolder else name or "*.safetensors"
    kept = {
        k: options[k]
        for k in ("revision", "cache_dir", "token", "local_files_only")
        if k in options
    }
    try:
        return Path(snapshot_download(repo, allow_patterns=[pattern], **kept))
    except Exception as error:  # of the hub's many kinds
        raise InvalidRequestError(hub_failure(error, repo, options.get("revision"))) from error
