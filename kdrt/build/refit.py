"""Engines whose weights can change: which can be built where, and the proof that they compute what
they should.

TensorRT compiles such an engine with the help of the GPU: on a machine without one the builder
aborts. The proof needs that GPU too. So they are built for the GPU of this machine and no other.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from kdrt.adapters.lora import NETWORKS
from kdrt.adapters.lora_names import slots
from kdrt.backends.files import handle
from kdrt.bundle import Bundle
from kdrt.errors import EngineError, EngineUnavailableError
from kdrt_engines.keys import EngineKey
from kdrt_engines.onnx_weights import stored_weights
from kdrt_engines.tensorrt.flavour import FLAVOURS

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.proof import RefitProof


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
    baked = f"bake LoRAs in with `{bundle.manifest.export_command} --lora FILE`"
    if components and not set(components) & set(NETWORKS):
        raise EngineError(
            f"no LoRA changes {', '.join(components)}, but {', '.join(NETWORKS)}; leave out "
            "--refittable"
        )
    if bundle.manifest.precision == "bf16":
        raise EngineError(
            "a refittable engine is compared with ONNX Runtime, which has no bfloat16 on a CPU, "
            f"and this bundle is bf16: export it with --precision fp16, or {baked}"
        )
    if not torch.cuda.is_available():
        raise EngineUnavailableError(
            "this machine has no GPU that CUDA sees, and without one TensorRT cannot build an "
            f"engine whose weights can change: run `kdrt build {handle(bundle)} --refittable` "
            f"where the GPU is, or {baked}"
        )
    major, minor = torch.cuda.get_device_capability()
    here = 10 * major + minor
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


def prove_plan(bundle: Bundle, key: EngineKey, plan: Path) -> RefitProof:
    """Run a plan that was just built, refit it, and compare; see
    :func:`kdrt_engines.tensorrt.gate.prove`.

    Raises:
        EngineError: it is off, or does not load; it must not be used.
    """
    from kdrt_engines.tensorrt.gate import prove
    from kdrt_engines.tensorrt.run import Scratch, TensorRTEngine

    component = bundle.manifest.components[key.component]
    network = bundle.file(component.onnx)
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        engine = TensorRTEngine(
            importlib.import_module(FLAVOURS[key.backend].module),
            plan.read_bytes(),
            component.spec(),
            profiles=key.profiles,
            scratch=Scratch(device),
            device=device,
            network=network,
        )
        return prove(engine, network, changeable_weights(bundle, key.component))
    except EngineError as error:
        raise EngineError(
            f"the refittable engine of {key.component} is not kept: {error}; build without "
            f"--refittable, and bake LoRAs in with `{bundle.manifest.export_command} --lora "
            "FILE`"
        ) from error
