"""How OpenVINO runs a network: on which device, and in which precision. OpenVINO is not imported.

A precision is part of an engine's name, since it changes the images: ``openvino`` computes in
float32 whatever the processor could do, ``openvino:bf16`` in bfloat16.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field

from kdrt_engines.errors import EngineUnavailableError
from kdrt_engines.processors import cores

DEVICES = {"openvino": "CPU", "openvino-gpu": "GPU", "openvino-npu": "NPU"}
"""OpenVINO's name of the device, by engine."""

PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
"""What a network can be computed in, and the capability that a device needs for it."""


@dataclass(frozen=True)
class OpenVinoConfig:
    """Options of an :class:`~kdrt_engines.openvino.engine.OpenVinoEngine`.

    Attributes:
        device: a value of ``DEVICES``.
        precision: a key of ``PRECISIONS``.
        threads: CPU threads; one a core by default.
    """

    device: str = "CPU"
    precision: str = "f32"
    threads: int = field(default_factory=cores)

    def properties(self) -> dict[str, str]:
        """What a network is compiled with."""
        found = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        if self.device == "CPU":
            found |= {
                "NUM_STREAMS": "1",
                "INFERENCE_NUM_THREADS": str(self.threads),
                # Or it would round the activations that meet int8 weights, in any precision.
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            }
        return found


def split_name(engine: str) -> tuple[str, str | None]:
    """The engine and the precision that a name such as ``openvino:bf16`` asks for; None where it
    asks for none."""
    name, colon, precision = engine.partition(":")
    return name, precision if colon else None


def is_openvino(engine: str) -> bool:
    """Whether a name, with a precision or without, is one of OpenVINO's."""
    return split_name(engine)[0] in DEVICES


def config_of(engine: str, threads: int | None = None) -> OpenVinoConfig:
    """The options that an engine's name stands for.

    Raises:
        ValueError: it is none of OpenVINO's; the message says what is allowed.
    """
    name, precision = split_name(engine)
    if name not in DEVICES:
        raise ValueError(
            f"'{engine}' is no engine of OpenVINO; choose {', '.join(DEVICES)}, each with a "
            "precision or without (openvino:bf16)"
        )
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(
            f"'{precision}' is no precision of {name}; choose {', '.join(PRECISIONS)} "
            f"({name}:bf16), or none for f32"
        )
    return OpenVinoConfig(DEVICES[name], precision or "f32", threads or cores())


def check_installed() -> None:
    """Raises EngineUnavailableError: OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise EngineUnavailableError(
            "OpenVINO is not installed; pip install 'kdrt[openvino]', or choose another engine"
        )
