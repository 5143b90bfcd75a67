"""The LoRAs of one pipeline: which are loaded, how strong each is, and what the engines hold.

A LoRA is added to the weights, not computed beside them: an image costs the same with ten of
them. The base weights are read from the bundle again at every change, so nothing accumulates, and
without LoRAs the engines are the bundle's, bit for bit.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from kdrt.adapters.lora_file import LoraFile, check_effect
from kdrt.adapters.lora_layer import Layer
from kdrt.adapters.lora_merge import (
    LayerScale,
    Scale,
    check_size,
    merged,
    place,
    scale_at,
    slot_shape,
    takes,
)
from kdrt.adapters.lora_names import NETWORKS, Slot, slots
from kdrt.adapters.warning import AdapterWarning
from kdrt.backends.commands import bundle_argument
from kdrt.bundle import Bundle
from kdrt.bundle.components import SHALLOW_UNET
from kdrt.common.validation import finite_or_none
from kdrt.errors import EngineError, InvalidRequestError
from kdrt_engines import Engine, FixedWeightsError
from kdrt_engines.onnx_weights import StoredWeight, stored_weights

__all__ = ["AdapterWarning", "Lora", "LoraStack", "LoraSwap"]

_COPIES = {SHALLOW_UNET: "unet"}
"""Components with copies of a network's weights: what a LoRA changes there, it changes here."""


@dataclass(frozen=True)
class Lora:
    """A loaded LoRA.

    Attributes:
        name: what it is called in this pipeline.
        scale: how strong it is; 0 is off.
        file: what was read.
        unmatched: its layers that have no effect, since this model does not have them or the file
            has them twice, by network and path.
    """

    name: str
    scale: Scale
    file: LoraFile
    unmatched: tuple[str, ...]

    def scale_of(self, network: str) -> LayerScale:
        """How strong it is in one network; 0 where it has no layers."""
        if network not in self.file.layers:
            return 0.0
        return self.scale.get(network, 1.0) if isinstance(self.scale, Mapping) else self.scale

    @property
    def is_active(self) -> bool:
        return any(self.scale_of(network) for network in NETWORKS)

    def scale_text(self) -> str:
        """The scale as text: ``0.8``, ``unet=0.8 text_encoder=0``, or with blocks
        ``unet=(1 mid_block=0.5)``."""
        return _told(self.scale)


@dataclass(frozen=True)
class LoraSwap:
    """What a change of LoRAs did.

    Attributes:
        seconds: how long it took.
        networks: those whose weights changed.
        weights: how many of their weights differ from the bundle's now.
    """

    seconds: float
    networks: tuple[str, ...]
    weights: int


_Recipe = tuple[tuple[str, LayerScale], ...]

Changed = tuple[dict[str, Engine], LoraSwap]
"""The engines to use from now on in place of others, by network, and a report."""


class LoraStack:
    """The LoRAs of a pipeline. A change that is refused changes nothing.

    Args:
        bundle: holds the base weights.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._loras: dict[str, Lora] = {}
        self._components = {
            name: name for name in (*NETWORKS, *_COPIES) if name in bundle.manifest.components
        }
        self._networks: dict[str, _Network] = {}
        self._applied: dict[str, _Recipe] = {}

    @property
    def loras(self) -> dict[str, Lora]:
        """Every loaded LoRA by name, those at scale 0 too."""
        return dict(self._loras)

    def load(
        self,
        engines: Mapping[str, Engine],
        file: LoraFile,
        name: str | None = None,
        scale: Scale = 1.0,
        *,
        strict: bool = False,
    ) -> Changed:
        """Add a LoRA to those at work.

        Raises:
            InvalidRequestError: it is for another model, or the name is taken; with ``strict`` also
                if any of its layers has no effect.
            EngineError: the weights of an engine are fixed.

        Warns:
            AdapterWarning: some of its layers have no effect.
        """
        started = time.perf_counter()
        self.check_base()
        name = self._free_name(file) if name is None else name
        if not isinstance(name, str):
            raise InvalidRequestError(f"the name of a LoRA must be a string, not {name!r}")
        if name in self._loras:
            raise InvalidRequestError(
                f"a LoRA called '{name}' is loaded already; give this one another name, or unload "
                "that one first"
            )
        lora = self._matched(file, name, self._scale(name, scale), strict=strict)
        changed = self._apply(engines, {**self._loras, name: lora}, started)
        if lora.unmatched:
            warnings.warn(_without_effect(lora), AdapterWarning, stacklevel=3)
        return changed

    def check(self, file: LoraFile, scale: Scale = 1.0, *, strict: bool = False) -> None:
        """Refuse a LoRA that :meth:`load` would refuse, without any engine.

        Raises:
            InvalidRequestError: see :meth:`load`.
        """
        self.check_base()
        name = file.path.stem
        lora = self._matched(file, name, self._scale(name, scale), strict=strict)
        for network in lora.file.layers.keys() & self._components.keys():
            self._network(network).check_sizes(
                lora.file.layers[network], lora.scale_of(network), name
            )

    def _free_name(self, file: LoraFile) -> str:
        """The file's name without its suffix, with as many of its folders before it as tell it
        from other files that are loaded: ``style``, or ``b/style``."""
        path = file.path.resolve()
        *folders, name = path.with_suffix("").parts
        while folders and name in self._loras and self._loras[name].file.path.resolve() != path:
            name = f"{folders.pop()}/{name}"
        return name

    def set(self, engines: Mapping[str, Engine], scales: Mapping[str, Scale]) -> Changed:
        """Use exactly these LoRAs, at these scales; the others stay loaded, at 0.

        Raises:
            InvalidRequestError: a name is not loaded, or a scale is no finite number.
            EngineError: the weights of an engine are fixed.
        """
        started = time.perf_counter()
        used = self.checked(scales)
        loras = {
            name: Lora(name, used.get(name, 0.0), lora.file, lora.unmatched)
            for name, lora in self._loras.items()
        }
        return self._apply(engines, loras, started)

    def checked(self, scales: object) -> dict[str, Scale]:
        """The scales by name with Python's own numbers, as :meth:`set` would use them.

        Raises:
            InvalidRequestError: a name is not loaded, or a scale is no finite number.
        """
        if not isinstance(scales, Mapping):
            raise InvalidRequestError(f"give LoRAs' scales by their names, not {scales!r}")
        self._check_loaded(scales)
        return {name: self._scale(name, scale) for name, scale in scales.items()}

    def unload(self, engines: Mapping[str, Engine], names: Sequence[str]) -> Changed:
        """Forget LoRAs.

        Raises:
            InvalidRequestError: a name is not loaded.
        """
        started = time.perf_counter()
        self._check_loaded(names)
        kept = {name: lora for name, lora in self._loras.items() if name not in names}
        return self._apply(engines, kept, started)

    def move(self, components: Mapping[str, str], engines: Mapping[str, Engine]) -> Changed:
        """Other components play the parts of networks: put the LoRAs on their untouched engines.

        Args:
            components: by network, those that change.
            engines: the new engines, as they come from the bundle.

        Raises:
            InvalidRequestError: a LoRA does not fit the new component.
            EngineError: the weights of an engine are fixed.
        """
        started = time.perf_counter()
        before = self._components, self._networks, self._applied
        moved = {name: c for name, c in components.items() if name in NETWORKS}
        self._components = self._components | moved
        self._networks = {k: v for k, v in self._networks.items() if k not in moved}
        self._applied = {k: v for k, v in self._applied.items() if k not in moved}
        try:
            return self._apply(engines, self._loras, started)
        except (InvalidRequestError, EngineError):
            self._components, self._networks, self._applied = before
            raise

    def misfits(self, file: LoraFile) -> tuple[str, ...]:
        """The layers of a LoRA that have no effect on the model, or another size than its weights,
        by network and path.

        Raises:
            InvalidRequestError: it is not said which text encoder they are for.
        """
        file = self.resolved(file)
        return self._unmatched(file) + tuple(
            f"{network}.{path}"
            for network, layers in file.layers.items()
            if network in self._components
            for path in self._network(network).of_other_sizes(layers)
        )

    def _unmatched(self, file: LoraFile) -> tuple[str, ...]:
        """The layers of a LoRA that the model does not have, or that are there twice, by network
        and path."""
        return tuple(
            f"{network}.{path}"
            for network, layers in file.layers.items()
            for path in (
                place(layers, self._network(network).slots).unmatched
                if network in self._components
                else (path for path, layer in layers.items() if not layer.optional)
            )
        )

    def resolved(self, file: LoraFile) -> LoraFile:
        """The file with its layers at the text encoder that they fit, where it does not say at
        which.

        Raises:
            InvalidRequestError: they fit both.
        """
        if not file.encoder_unsaid:
            return file
        encoders = [name for name in NETWORKS if name != "unet" and name in self._components]
        layers = file.layers["text_encoder"]
        fitting = [name for name in encoders if self._network(name).takes(layers)]
        if len(fitting) > 1:
            raise encoder_unsaid(file, self._bundle.manifest.name)
        of = next(iter(fitting or encoders), "text_encoder")
        others = {name: found for name, found in file.layers.items() if name != "text_encoder"}
        return replace(file, layers={**others, of: layers}, encoder_unsaid=False)

    def _matched(self, file: LoraFile, name: str, scale: Scale, *, strict: bool) -> Lora:
        file = self.resolved(file)
        unmatched = self._unmatched(file)
        if len(unmatched) == len(file):
            model = self._bundle.manifest
            raise InvalidRequestError(
                f"no layer of {file.path.name} exists in '{model.name}' (family {model.family}): "
                f"it is made for another kind of model; it has {some(unmatched)}"
            )
        check_effect(file)
        if not any(
            network in self._components and self._network(network).changes(layers)
            for network, layers in file.layers.items()
        ):
            raise InvalidRequestError(
                f"{file.path.name} would change nothing in '{self._bundle.manifest.name}': its "
                "layers that exist there change no weight"
                + (f", and others do not exist: {some(unmatched)}" if unmatched else "")
            )
        lora = Lora(name, scale, file, unmatched)
        if unmatched and strict:
            raise InvalidRequestError(
                f"{_without_effect(lora)}; leave out strict (--strict-lora) to go on without"
            )
        return lora

    def _apply(
        self, engines: Mapping[str, Engine], loras: dict[str, Lora], started: float
    ) -> Changed:
        """Compute all weights before any engine is touched."""
        wanted = {network: _recipe(network, loras) for network in self._components}
        weights = {
            network: self._merge(network, loras)
            for network, recipe in wanted.items()
            if recipe != self._applied.get(network, ())
        }
        changed: dict[str, Engine] = {}
        try:
            for network, tensors in weights.items():
                changed[network] = engines[network]
                changed[network] = self._changed(engines[network], network, tensors, loras)
        except BaseException:
            self._put_back(engines, changed)
            raise
        self._loras, self._applied = loras, wanted
        seconds = time.perf_counter() - started
        return changed, LoraSwap(seconds, tuple(changed), sum(map(len, weights.values())))

    def _changed(
        self,
        engine: Engine,
        network: str,
        weights: Mapping[str, Tensor],
        loras: Mapping[str, Lora],
    ) -> Engine:
        try:
            return engine.with_weights(weights)
        except FixedWeightsError as error:
            raise EngineError(
                f"LoRAs cannot be put on the running {network}, {error}: bake them in with "
                f"`{self._bundle.manifest.export_command} {_export_options(loras)}`, build an "
                "engine that takes them with "
                f"`kdrt build {bundle_argument(self._bundle)} --refittable "
                "--here`, or choose the engine onnxruntime or torch"
            ) from error

    def _put_back(self, engines: Mapping[str, Engine], networks: Iterable[str]) -> None:
        """Give engines that change in place what they held before a change that was refused."""
        for network in networks:
            if engines[network].in_place:
                held = self._applied.get(network, ())
                weights = self._merge(network, self._loras) if held else {}
                try:
                    engines[network].with_weights(weights)
                except FixedWeightsError:
                    continue  # nothing had changed
                except EngineError as error:
                    raise EngineError(
                        f"the LoRAs that were at work cannot be put back on the {network}, "
                        f"{error}; load the model again"
                    ) from error

    def _merge(self, network: str, loras: Mapping[str, Lora]) -> dict[str, Tensor]:
        source = _COPIES.get(network, network)
        active = [
            (place(lora.file.layers[source], self._network(network).slots), lora.scale_of(source))
            for lora in loras.values()
            if lora.scale_of(source)
        ]
        return merged(active, self._network(network).read, " or ".join(loras))

    def modules(self, network: str) -> frozenset[str]:
        """The modules of a network that a LoRA can change, by their paths with dots."""
        if network not in self._components:
            return frozenset()
        return frozenset(slot.module for slot in self._network(network).slots.values())

    def _scale(self, name: str, value: object) -> Scale:
        if not isinstance(value, Mapping):
            return _number(name, value)
        unknown = [network for network in value if network not in NETWORKS]
        if unknown:
            raise InvalidRequestError(
                f"the scale of LoRA '{name}' names {unknown[0]!r}; the networks are "
                f"{', '.join(NETWORKS)}"
            )
        return {
            network: self._blocks(name, network, scale)
            if isinstance(scale, Mapping)
            else _number(name, scale)
            for network, scale in value.items()
        }

    def _blocks(self, name: str, network: str, scales: Mapping[object, object]) -> LayerScale:
        """Scales by block, of blocks that there are. Where the network is absent all will do."""
        modules = self.modules(network)
        for block in scales if modules else ():
            if not isinstance(block, str) or not any(
                f"{module}.".startswith(f"{block}.") for module in ("", *modules)
            ):
                raise InvalidRequestError(
                    f"the scale of LoRA '{name}' names {block!r}, which the {network} does not "
                    "have; name modules or blocks of it, such as 'mid_block', or a network: "
                    f"{', '.join(NETWORKS)}"
                )
        return {"": 1.0} | {str(block): _number(name, scale) for block, scale in scales.items()}

    def _network(self, network: str) -> _Network:
        if network not in self._networks:
            self._networks[network] = _Network(self._bundle, self._components[network])
        return self._networks[network]

    def check_base(self) -> None:
        """Raises InvalidRequestError: the bundle has no weights that a LoRA can be added to."""
        manifest = self._bundle.manifest
        if manifest.quantization is not None:
            quantized = manifest.quantization
            raise InvalidRequestError(
                f"LoRAs are added to the base weights, and '{manifest.name}' is quantised: bake "
                f"them in first with `{manifest.export_command} --lora FILE:SCALE`, then `kdrt "
                f"quantize BUNDLE --format {quantized.format}`; or use them with "
                f"'{quantized.made_from}', which it was made from"
            )
        if manifest.baked.weights == "int8":
            raise InvalidRequestError(
                f"LoRAs are added to the base weights, and '{manifest.name}' has them as int8 "
                f"only: bake them in with `{manifest.export_command} --weights int8 --lora "
                "FILE:SCALE`, or export without --weights"
            )

    def _check_loaded(self, names: Mapping[str, object] | Sequence[str]) -> None:
        for name in names:
            if not isinstance(name, str) or name not in self._loras:
                raise InvalidRequestError(
                    f"no LoRA called '{name}' is loaded; loaded: {', '.join(self._loras) or 'none'}"
                )


class _Network:
    """A network as a bundle stores it: its weights, and where LoRAs fit."""

    def __init__(self, bundle: Bundle, component: str) -> None:
        def weights(of: str) -> dict[str, StoredWeight]:
            return stored_weights(bundle.file(bundle.manifest.components[of].onnx))

        self._weights = weights(component)
        # Some names number the blocks of a whole network, which a copy of its layers does not show.
        whole = weights(_COPIES[component]) if component in _COPIES else self._weights
        places = slots({name: weight.shape for name, weight in whole.items()})
        self.slots = {path: slot for path, slot in places.items() if slot.weight in self._weights}

    def fits(self, slot: Slot, layer: Layer) -> bool:
        return layer.fits(self._shape(slot))

    def _shape(self, slot: Slot) -> tuple[int, ...]:
        return slot_shape(slot, self._weights[slot.weight].shape)

    def check_sizes(self, layers: Mapping[str, Layer], scale: LayerScale, name: str) -> None:
        """Raises InvalidRequestError: a layer that is not off has another size than its weight."""
        for slot, layer in place(layers, self.slots).layers:
            if scale_at(scale, slot.module):
                check_size(layer, self._shape(slot), slot.weight, name)

    def takes(self, layers: Mapping[str, Layer]) -> bool:
        """Whether all of a LoRA's layers exist here, in their sizes."""
        return takes(
            layers, self.slots, {name: weight.shape for name, weight in self._weights.items()}
        )

    def of_other_sizes(self, layers: Mapping[str, Layer]) -> tuple[str, ...]:
        """The layers of a LoRA that exist here in another size, by path."""
        wrong = {
            id(layer)
            for slot, layer in place(layers, self.slots).layers
            if not self.fits(slot, layer)
        }
        return tuple(path for path, layer in layers.items() if id(layer) in wrong)

    def changes(self, layers: Mapping[str, Layer]) -> bool:
        """Whether any of a LoRA's layers that exist here has an effect."""
        return any(not layer.changes_nothing for _, layer in place(layers, self.slots).layers)

    def read(self, name: str) -> Tensor:
        return self._weights[name].read()


def encoder_unsaid(file: LoraFile, model: str) -> InvalidRequestError:
    """The error of a LoRA that fits several text encoders of a model."""
    return InvalidRequestError(
        f"{file.path.name} is for a text encoder and does not say for which of '{model}': keep it "
        "as adapter_model.safetensors beside peft's adapter_config.json, or let its keys begin "
        "with 'text_encoder.' or 'text_encoder_2.'"
    )


def _recipe(network: str, loras: Mapping[str, Lora]) -> _Recipe:
    """What the weights of a network are made of: equal recipes, equal weights."""
    source = _COPIES.get(network, network)
    return tuple(
        (lora.file.sha256, lora.scale_of(source))
        for lora in loras.values()
        if lora.scale_of(source)
    )


def _number(name: str, value: object) -> float:
    number = finite_or_none(value)
    if number is None:
        raise InvalidRequestError(
            f"the scale of LoRA '{name}' must be a finite number, not {value!r}"
        )
    return number


def _export_options(loras: Mapping[str, Lora]) -> str:
    # A bundle keeps one number: of several the user has to choose.
    return " ".join(
        f"--lora {lora.file.path}:"
        + ("SCALE" if isinstance(lora.scale, Mapping) else lora.scale_text())
        for lora in loras.values()
    )


def _without_effect(lora: Lora) -> str:
    return (
        f"{len(lora.unmatched)} of {len(lora.file)} layers of {lora.file.path.name} do not exist "
        f"in this model, or are there twice, and have no effect: {some(lora.unmatched)}"
    )


def _told(scale: Scale | LayerScale) -> str:
    if not isinstance(scale, Mapping):
        return f"{scale:g}"
    parts = {
        name: f"({_told(inner)})" if isinstance(inner, Mapping) else _told(inner)
        for name, inner in scale.items()
    }
    return " ".join(f"{name}={text}" if name else text for name, text in parts.items())


def some(names: Sequence[str]) -> str:
    """The first few of many names, for a message."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
