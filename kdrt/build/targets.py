"""Which flavour of TensorRT builds for which GPUs, and the way out where the two do not match."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kdrt.backends.commands import build_command
from kdrt.errors import EngineError, EngineUnavailableError
from kdrt_engines.tensorrt.flavour import (
    DEFAULT_TARGETS,
    RTX_TARGETS,
    TENSORRT,
    TENSORRT_RTX,
    Flavour,
    flavour_for,
)


def resolve_targets(
    bundle: str,
    flavour: Flavour | None,
    capabilities: Sequence[int],
    *,
    here: bool,
    first: int = 0,
) -> tuple[Flavour, tuple[int, ...]]:
    """Resolve which flavour builds for which GPUs. Exactly one flavour supports each GPU.

    Args:
        bundle: its name or folder, for the commands in messages.
        flavour: the requested flavour; None takes the one that supports the GPUs.
        capabilities: the compute capabilities of the requested GPUs. Empty means the GPU of this
            machine if ``here`` is set or the flavour needs it, otherwise the usual ones.
        here: build for the GPU of this machine.
        first: the lowest of the usual compute capabilities that the bundle can be built for.

    Returns:
        The flavour, and the compute capabilities in ascending order.

    Raises:
        EngineUnavailableError: this machine has no GPU, and one is needed.
        EngineError: the flavour does not support a GPU, or the GPUs need two flavours.
    """
    if here and capabilities:
        raise EngineError("--here and --gpu both say which GPU; give one of them")
    if here or (flavour is TENSORRT and not capabilities):
        capabilities = (_this_gpu(bundle),)
    elif not capabilities:
        capabilities = [number for number in DEFAULT_TARGETS if number >= first]
    serving = {number: flavour_for(number) for number in capabilities}
    flavours = list(dict.fromkeys(serving.values()))
    if flavour is None:
        if len(flavours) > 1:
            raise EngineError(
                "these GPUs need two builds: "
                + " and ".join(f"`{_suggestion(bundle, f, serving)}`" for f in flavours)
            )
        (flavour,) = flavours
    wrong = [number for number in capabilities if serving[number] is not flavour]
    if wrong:
        other = serving[wrong[0]]
        raise EngineError(
            f"{_why_not(flavour, wrong[0])}; run `{_suggestion(bundle, other, serving)}`"
        )
    if not flavour.builds_anywhere and tuple(capabilities) != (_this_gpu(bundle),):
        raise EngineError(
            f"{flavour.title} builds only for the GPU it runs on, which is sm{_this_gpu(bundle)}; "
            "run the same command with --here on the machine with the other GPU"
        )
    return flavour, tuple(sorted(set(capabilities)))


def _this_gpu(bundle: str) -> int:
    if not torch.cuda.is_available():
        command = build_command(bundle, TENSORRT_RTX, (89,))
        raise EngineUnavailableError(
            "this machine has no GPU that CUDA sees: TensorRT builds only on the GPU it builds "
            f"for, and TensorRT-RTX needs to be told which, as in `{command}`"
        )
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _suggestion(bundle: str, flavour: Flavour, serving: dict[int, Flavour]) -> str:
    return build_command(bundle, flavour, [n for n, f in serving.items() if f is flavour])


def _why_not(flavour: Flavour, capability: int) -> str:
    if flavour is TENSORRT_RTX:
        targets = ", ".join(f"sm{number}" for number in RTX_TARGETS)
        return (
            f"TensorRT-RTX has no kernels for sm{capability} (it has {targets}); "
            "that GPU is served by TensorRT, on the machine it is in"
        )
    return f"sm{capability} is served by TensorRT-RTX, which also builds without the GPU"
