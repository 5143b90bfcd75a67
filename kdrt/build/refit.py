"""Engines whose weights can change: which can be built where, and the check that they compute what
they should.

TensorRT compiles such an engine with the help of the GPU: on a machine without one the builder
aborts. The check needs that GPU too. So they are built for the GPU of this machine only.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdrt.adapters.lora_names import NETWORKS, slots
from kdrt.backends.commands import bundle_argument
from kdrt.bundle import Bundle
from kdrt.errors import EngineError, EngineUnavailableError
from kdrt_engines.keys import EngineKey
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.tensorrt import gpu
from kdrt_engines.tensorrt.flavour import FLAVOURS

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.gpu import Gpu
    from kdrt_engines.tensorrt.refit_result import RefitResult


def check_refittable(
    bundle: Bundle, components: Sequence[str] = (), capabilities: Sequence[int] = ()
) -> None:
    """Whether refittable engines of these components can be built on this machine.

    Args:
        bundle: an opened bundle.
        components: all of the bundle's if empty.
        capabilities: the GPUs to build for; empty is the one of this machine.

    Raises:
        EngineUnavailableError: this machine has no GPU.
        EngineError: the GPUs are others than this machine's, no LoRA can change a component, or
            nothing can be compared with the engines.
    """
    if components and not set(components) & set(NETWORKS):
        raise EngineError(
            f"no LoRA changes {', '.join(components)}, but {', '.join(NETWORKS)}; leave out "
            "--refittable"
        )
    quantized = bundle.manifest.quantization
    if quantized is not None and set(components or bundle.manifest.components) & {
        *quantized.components
    }:
        raise EngineError(
            f"LoRAs change no weights in {quantized.format}: leave out --refittable, and bake them "
            f"in before quantising, with `{bundle.manifest.export_command} --lora FILE` and `kdrt "
            f"quantize BUNDLE --format {quantized.format}`"
        )
    if bundle.manifest.precision == "bf16":
        raise EngineError(
            "a refittable engine is compared with ONNX Runtime, which has no bfloat16 on a CPU, "
            f"and this bundle is bf16: export it with --precision fp16, or {_bake(bundle)}"
        )
    here = _find_gpu(bundle).capability
    if set(capabilities) - {here}:
        raise EngineError(
            "a refittable engine is compared on the GPU it is built for, which has to be the one "
            f"of this machine, sm{here}; leave out --gpu"
        )


def changeable_weights(bundle: Bundle, component: str) -> tuple[str, ...]:
    """The weights that a LoRA can change, by the names of their initialisers; without norms and
    biases, which few LoRAs touch, and which TensorRT fuses with what stands around them."""
    onnx = bundle.file(bundle.manifest.components[component].onnx)
    shapes = {name: weight.shape for name, weight in stored_weights(onnx).items()}
    wanted = {slot.weight for slot in slots(shapes).values()}
    return tuple(sorted(name for name in wanted if len(shapes[name]) > 1))


def check_built_engine(bundle: Bundle, key: EngineKey, path: Path) -> RefitResult:
    """Load an engine that was just built, refit it, and compare it with ONNX Runtime; see
    :func:`kdrt_engines.tensorrt.refit_check.check_refit`.

    Raises:
        EngineError: it is wrong, or does not load; it must not be used.
    """
    # Both need ONNX Runtime, which other builds do not.
    from kdrt_engines.tensorrt.engine import TensorRTEngine
    from kdrt_engines.tensorrt.refit_check import check_refit
    from kdrt_engines.tensorrt.scratch import ScratchMemory

    component = bundle.manifest.components[key.component]
    network = bundle.file(component.onnx)
    here = _find_gpu(bundle)
    try:
        engine = TensorRTEngine(
            importlib.import_module(FLAVOURS[key.backend].module),
            path.read_bytes(),
            component.spec(),
            profiles=key.profiles,
            scratch=ScratchMemory(here.device),
            gpu=here,
            network=network,
        )
        return check_refit(engine, network, changeable_weights(bundle, key.component))
    except EngineError as error:
        raise EngineError(
            f"the refittable engine of {key.component} is not kept: {error}; build without "
            f"--refittable, and bake LoRAs in with `{bundle.manifest.export_command} --lora "
            "FILE`"
        ) from error


def _find_gpu(bundle: Bundle) -> Gpu:
    found = gpu.find_gpu()
    if found is None:
        raise EngineUnavailableError(
            "this machine has no GPU that CUDA sees, and without one TensorRT cannot build an "
            "engine whose weights can change: run "
            f"`kdrt build {bundle_argument(bundle)} --refittable` where the GPU is, or "
            f"{_bake(bundle)}"
        )
    return found


def _bake(bundle: Bundle) -> str:
    return f"bake LoRAs in with `{bundle.manifest.export_command} --lora FILE`"
