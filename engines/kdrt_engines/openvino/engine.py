"""OpenVINO behind the engine contract.

Inputs and outputs are torch tensors in memory that OpenVINO reads and writes itself. A network is
compiled for each set of sizes that is bound: with the sizes known, OpenVINO lays out its memory
once, and a run allocates nothing. A device or precision that this machine does not have is an error
here; by itself OpenVINO might compute in another one.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from kdrt_engines.base import Binding, Engine
from kdrt_engines.errors import (
    EngineError,
    EngineUnavailableError,
    OutOfMemoryError,
    ShapeError,
    is_out_of_memory,
)
from kdrt_engines.openvino.config import PRECISIONS, OpenVinoConfig
from kdrt_engines.openvino.quiet import ov, replace_node
from kdrt_engines.openvino.tensors import shared, type_of
from kdrt_engines.profiles import sizes
from kdrt_engines.spec import EngineSpec
from kdrt_engines.torch_eager import allocate

_logger = logging.getLogger("kdrt.engines")

Sizes = Mapping[str, int]


def _none_kept(dims: Sizes) -> Path | None:
    return None


class OpenVinoEngine(Engine):
    """An ONNX file in standard operators, external weights beside it, on one device.

    Args:
        path: the file. Its weights are mapped, not read.
        spec: what the component takes and gives.
        config: options; by default float32 on the CPU.
        weights: replace the file's, by the name of the initialiser.
        kept: where the network is that :meth:`export` wrote for some sizes; None where there is
            none. It must be of this file, and a file to trust.
        check: called before a file is read, which can be long after the engine was made; raises
            if the files are no longer those that the rest was read from.

    Raises:
        EngineUnavailableError: OpenVINO does not have the device, or the device the precision.
        EngineError: the file cannot be loaded, or has no such weights.
    """

    capturable = False

    def __init__(
        self,
        path: Path,
        spec: EngineSpec,
        config: OpenVinoConfig | None = None,
        *,
        weights: Mapping[str, torch.Tensor] | None = None,
        kept: Callable[[Sizes], Path | None] = _none_kept,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.path, self.spec = path, spec
        self.config = config or OpenVinoConfig()
        # Whatever device computes, inputs and outputs are in the memory of the host.
        self.device = torch.device("cpu")
        check_device(self.config)
        self._kept, self._check = kept, check
        self._weights = {
            name: tensor.cpu().contiguous() for name, tensor in (weights or {}).items()
        }
        self._check()
        self._model = _model_from_onnx(path)
        _replace_weights(self._model, self._weights, path)
        # Bindings of the same sizes share a network, and the last of them takes it along.
        self._networks: weakref.WeakValueDictionary[tuple[tuple[str, int], ...], Network]
        self._networks = weakref.WeakValueDictionary()

    def bind(self, **dims: int) -> OpenVinoBinding:
        """See :meth:`Engine.bind`. Compiles the network for these sizes, unless it is bound to them
        already, or was kept."""
        key = tuple(sorted(dims.items()))
        network = self._networks.get(key)
        if network is None:
            network = self._networks[key] = self._imported(dims) or self._compile(dims)
        return OpenVinoBinding(network, self.spec, dims)

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> OpenVinoEngine:
        """A new engine, which compiles anew: a compiled network holds its weights as the kernels
        want them. This one stays usable, and both are in memory until one is dropped."""
        return OpenVinoEngine(
            self.path,
            self.spec,
            self.config,
            weights=weights,
            kept=self._kept,
            check=self._check,
        )

    def export(self, path: Path, **dims: int) -> None:
        """Write the network, compiled for these sizes, to a file that ``kept`` may name later.

        Raises:
            ShapeError, EngineError, OutOfMemoryError: as :meth:`bind`.
        """
        exported: BytesIO = self._compile(dims).compiled.export_model()
        path.write_bytes(exported.getbuffer())

    def _compile(self, dims: Sizes) -> Network:
        model = self._model.clone()
        shapes = {}
        for name in _inputs(model, self.spec):
            shapes[name] = ov.PartialShape(list(self.spec.input(name).resolve(dims)))
        try:
            model.reshape(shapes)
        except RuntimeError as error:
            raise ShapeError(
                f"OpenVINO rejected the sizes {sizes(dims)} of {self.path}: {error}"
            ) from error
        compiled = self._checked(
            lambda: core().compile_model(model, self.config.device, self.config.properties())
        )
        return Network(compiled, self._weights)

    def _imported(self, dims: Sizes) -> Network | None:
        # What was kept has the weights of the file.
        path = None if self._weights else self._kept(dims)
        if path is None:
            return None
        self._check()
        # Pages that nobody writes to are shared, but OpenVINO takes no memory that is read-only.
        mapped = np.memmap(path, np.uint8, "c")
        blob = ov.Tensor(mapped, shared_memory=True)
        try:
            compiled = self._checked(
                lambda: core().import_model(blob, self.config.device, self.config.properties())
            )
        except OutOfMemoryError:
            raise
        except EngineError as error:  # such as by another driver
            _logger.warning("%s is not used: %s", path, error)
            return None
        return Network(compiled, mapped)

    def _checked(self, make: Callable[[], ov.CompiledModel]) -> ov.CompiledModel:
        try:
            compiled = make()
        except Exception as error:  # OpenVINO raises bare RuntimeErrors of many kinds
            kind = OutOfMemoryError if is_out_of_memory(error) else EngineError
            raise kind(f"OpenVINO cannot load {self.path}: {error}") from error
        wanted = getattr(ov.Type, self.config.precision)
        used = compiled.get_property("INFERENCE_PRECISION_HINT")
        if used != wanted:
            raise EngineUnavailableError(
                f"OpenVINO would compute in {used.to_string()} on {self.config.device}, where "
                f"{wanted.to_string()} was asked for; choose another precision or engine"
            )
        return compiled


@dataclass(frozen=True, eq=False)
class Network:
    """A network compiled for one set of sizes, and the memory it may still read from."""

    compiled: ov.CompiledModel
    memory: object


class OpenVinoBinding(Binding):
    """One set of sizes, at fixed addresses.

    Attributes:
        network: what it runs, which other bindings of the same sizes may share.
        request: OpenVINO's side of the binding.
    """

    def __init__(self, network: Network, spec: EngineSpec, dims: dict[str, int]) -> None:
        self.network = network
        self.inputs = allocate(spec.inputs, dims, torch.device("cpu"))
        self.outputs = allocate(spec.outputs, dims, torch.device("cpu"))
        self.request = network.compiled.create_infer_request()
        # Inputs that the network does not read are left out: a UNet without time conditioning has
        # one too many.
        for name, port in _inputs(network.compiled, spec).items():
            self.request.set_tensor(port, shared(self.inputs[name]))
        for port, (name, tensor) in zip(
            network.compiled.outputs, self.outputs.items(), strict=True
        ):
            if name not in port.get_names():
                raise EngineError(f"the network has no output '{name}'; export the model again")
            self.request.set_tensor(port, shared(tensor))

    def run(self) -> None:
        try:
            # Otherwise it would copy what it returns.
            self.request.infer(share_outputs=True)
        except Exception as error:  # OpenVINO raises bare RuntimeErrors of many kinds
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"OpenVINO ran out of memory ({error}): make fewer or smaller images at a time"
                ) from error
            raise EngineError(f"OpenVINO failed: {error}") from error


@cache
def core() -> ov.Core:
    """OpenVINO itself: devices are opened once a process."""
    return ov.Core()


def _devices() -> set[str]:
    """The devices of this machine. Of several GPUs each has a number, which is left out here."""
    return {name.partition(".")[0] for name in core().available_devices}


def device_name(device: str) -> str | None:
    """What a device calls itself: a network is compiled for one kind of it. None if there is none
    on this machine."""
    if device not in _devices():
        return None
    return str(core().get_property(device, "FULL_DEVICE_NAME"))


def check_device(config: OpenVinoConfig) -> None:
    """Whether OpenVINO has the device, and that the precision.

    Raises:
        EngineUnavailableError: it has not.
    """
    device, precision = config.device, config.precision
    available = _devices()
    if device not in available:
        raise EngineUnavailableError(
            f"OpenVINO finds no {device} on this machine (it finds "
            f"{', '.join(sorted(available)) or 'nothing'}); install the device's driver, or choose "
            "another engine"
        )
    capabilities = core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    if PRECISIONS[precision] not in capabilities:
        possible = [name for name, needed in PRECISIONS.items() if needed in capabilities]
        raise EngineUnavailableError(
            f"the {device} of this machine does not compute in {precision} with OpenVINO, but in "
            f"{' or '.join(possible) or 'nothing that kdrt knows'}; name another precision, as in "
            "openvino:f32, or choose another engine"
        )


def _inputs(network: ov.Model | ov.CompiledModel, spec: EngineSpec) -> dict[str, ov.ConstOutput]:
    """The inputs of a network by the names of the spec. OpenVINO gives an input further names, of
    what is computed from it without a change."""
    known = {tensor.name for tensor in spec.inputs}
    return {name: port for port in network.inputs for name in port.get_names() & known}


def _model_from_onnx(path: Path) -> ov.Model:
    try:
        return core().read_model(str(path))
    except Exception as error:  # OpenVINO raises bare RuntimeErrors of many kinds
        kind = OutOfMemoryError if is_out_of_memory(error) else EngineError
        raise kind(f"OpenVINO cannot load {path}: {error}") from error


def _replace_weights(model: ov.Model, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    constants: dict[str, list[ov.Node]] = {}
    for node in model.get_ops() if weights else ():
        if node.get_type_name() == "Constant":
            constants.setdefault(node.get_friendly_name(), []).append(node)
    for name, tensor in weights.items():
        if name not in constants:
            raise EngineError(f"{path} has no weight {name}; export the model again")
        for node in constants[name]:
            old = node.get_output_element_type(0), tuple(node.get_output_shape(0))
            if old != (type_of(tensor.dtype), tuple(tensor.shape)):
                raise EngineError(
                    f"the weight {name} of {path} is {old[0].to_string()} {list(old[1])}, and "
                    f"{tensor.dtype} {list(tensor.shape)} cannot take its place"
                )
            new = ov.op.Constant(shared(tensor), True)
            new.set_friendly_name(name)
            replace_node(node, new)
