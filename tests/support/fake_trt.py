"""Doubles of the two Python modules, as far as a build touches them: what each has and lacks was
read off TensorRT 11.4 and TensorRT-RTX 1.7.1."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

LAYERS = """Layers:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], TacticName: , StreamId: 0
Name: _gemm_mha_v2_myl0_1, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [-1] }]
Name: a gemm, named oddly_2, LayerType: gemm, Inputs: [ { Name: _gemm_mha_v2, LayerType: x }]
Name: _gemm_mha_v2_myl0_3, LayerType: kgen, Inputs: []

I/O Tensors:
 Name: x, IOMode: Input, DataType: Half
"""


class Severity(Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class _Base:
    def __init__(self) -> None:
        pass


class Config:
    """``IBuilderConfig``: remembers what was set."""

    def __init__(self, rtx: bool) -> None:
        self.profiling_verbosity: Any = None
        self.progress_monitor: Any = None
        self.flags: dict[str, bool] = {"TF32": True}
        self.profiles: list[dict[str, Any]] = []
        if rtx:
            self.num_compute_capabilities = 0
            self.targets: dict[int, str] = {}
            self.set_compute_capability = self._set_compute_capability

    def _set_compute_capability(self, target: Enum, index: int) -> None:
        assert index < self.num_compute_capabilities
        self.targets[index] = target.name

    def set_flag(self, flag: Enum) -> None:
        self.flags[flag.name] = True

    def clear_flag(self, flag: Enum) -> None:
        self.flags[flag.name] = False

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class Network:
    inputs = ("sample", "freeu")
    softmaxes = 2
    weights = ("a.weight", "b.weight", "c.weight")

    def __init__(self, layer_type: Any) -> None:
        kinds = [layer_type.CONVOLUTION, *[layer_type.SOFTMAX] * self.softmaxes]
        self._layers = [SimpleNamespace(type=kind) for kind in kinds]
        self.num_layers = len(kinds)
        self.num_inputs = len(self.inputs)
        self.marked: list[str] = []

    def mark_weights_refittable(self, name: str) -> bool:
        known = name in self.weights
        self.marked += [name] * known
        return known

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    def get_input(self, index: int) -> Any:
        return SimpleNamespace(name=self.inputs[index])


ComputeCapability = Enum("ComputeCapability", ["SM75", "SM86", "SM89", "SM120"])


def fake(
    flavour: str,
    *,
    messages: tuple[tuple[str, str], ...] = (
        ("INFO", "Max Scratch Memory: 4096 bytes"),
        ("VERBOSE", LAYERS),
    ),
    content: bytes | None = b"engine",
    parses: bool = True,
    individual: bool = True,
    during: Callable[[], None] = lambda: None,
) -> Any:
    """A module like ``tensorrt`` or ``tensorrt_rtx`` whose builder logs ``messages``. Not
    ``individual``, a network leaves all of its weights open or none, as in older versions."""
    rtx = flavour == "tensorrt_rtx"
    refits = ["REFIT", *(["REFIT_INDIVIDUAL"] if individual else [])]
    flags = ["TF32", *refits, *(["REQUIRE_USER_ALLOCATION"] if rtx else [])]
    trt: Any = SimpleNamespace(
        __name__=flavour,
        __version__="1.7.1.116" if rtx else "11.4.0.106",
        ILogger=_Base,
        IProgressMonitor=_Base,
        NetworkDefinitionCreationFlag=IntEnum(
            "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1}
        ),
        ProfilingVerbosity=Enum("ProfilingVerbosity", ["DETAILED"]),
        BuilderFlag=Enum("BuilderFlag", flags),
        LayerType=Enum("LayerType", ["CONVOLUTION", "SOFTMAX"]),
        made=[],
    )
    if rtx:
        trt.ComputeCapability = ComputeCapability

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def create_network(self, flags: int) -> Network:
            trt.network_flags = flags
            trt.network = Network(trt.LayerType)
            return trt.network

        def create_builder_config(self) -> Config:
            trt.made.append(Config(rtx))
            return trt.made[-1]

        def create_optimization_profile(self) -> Any:
            shapes: dict[str, Any] = {}
            return SimpleNamespace(
                shapes=shapes, set_shape=lambda name, *three: shapes.update({name: three})
            )

        def build_serialized_network(self, _network: Network, config: Config) -> bytes | None:
            for severity, message in messages:
                self._logger.log(Severity[severity], message)
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            during()
            for step in range(2):
                if not monitor.step_complete("Building engine", step):
                    return None
            monitor.phase_finish("Building engine")
            return content

    class Parser:
        num_errors = 1

        def __init__(self, *_: Any) -> None:
            pass

        def parse_from_file(self, _path: str) -> bool:
            return parses

        def get_error(self, _index: int) -> str:
            return "no such operator"

    trt.Builder, trt.OnnxParser = Builder, Parser
    return trt
