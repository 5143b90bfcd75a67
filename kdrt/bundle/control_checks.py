"""Whether ControlNets and T2I-Adapters fit the UNet of their bundle, by the shapes they state."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kdrt.bundle.manifest import Component, ControlFacts, Manifest, TensorInfo

_RESIDUAL = re.compile(r"(down_residual|adapter_residual)_\d+|mid_residual")
_SIDE = re.compile(r"h|ceil\(h/\d+\)")


def control_faults(manifest: Manifest) -> Iterator[str]:
    """What does not fit, as ends of a sentence."""
    names = {parts.get("unet") for parts in manifest.variants.values()}
    unets = {n: c for n, c in manifest.components.items() if n in names}
    for name, unet in unets.items():
        for tensor in _residuals(unet.inputs).values():
            if not _is_residual(tensor):
                yield f"'{tensor.name}' of {name} is {tensor.dtype} {[*tensor.shape]}"
    taken = unets.get(manifest.variants.get("control", {}).get("unet", ""))
    for name, facts in manifest.controls.items():
        if taken is None:
            yield f"there is no UNet for the control '{name}'"
            return
        yield from _faults(manifest, name, facts, _residuals(taken.inputs))


def _faults(
    manifest: Manifest, name: str, facts: ControlFacts, taken: Mapping[str, TensorInfo]
) -> Iterator[str]:
    """What of one of them does not fit."""
    component = f"{facts.kind}-{name}"
    is_controlnet = facts.kind == "controlnet"
    image = f"{component}-hint" if is_controlnet else component
    missing = [each for each in (component, image) if each not in manifest.components]
    if missing:
        yield f"the control '{name}' has no component {missing[0]}"
        return
    scale = manifest.latents.scale
    shape = ("B", facts.channels, f"{scale}*h", f"{scale}*w")
    looking, giving = manifest.components[image], manifest.components[component]
    if [(t.name, t.shape) for t in looking.inputs] != [("image", shape)]:
        yield f"{image} takes no image of {scale} pixels for a latent"
    given = _residuals(giving.outputs)
    if len(given) != len(giving.outputs) or any(
        n not in taken or taken[n].shape != tensor.shape for n, tensor in given.items()
    ):
        yield f"{component} gives what the UNet does not take"
    if is_controlnet:
        wanted = {n for n in taken if not n.startswith("adapter")}
        if wanted != given.keys():
            yield f"{component} does not give all that the UNet takes"
        yield from _step_faults(manifest, component, giving, looking)


def _step_faults(manifest: Manifest, name: str, step: Component, hint: Component) -> Iterator[str]:
    """What a ControlNet takes at every step and could not be given."""
    plain = {t.name: t.shape for t in manifest.components["unet"].inputs}
    known = {
        **{n: plain.get(n) for n in ("timestep", "encoder_hidden_states", "text_embeds")},
        "time_ids": plain.get("time_ids"),
        "sample": ("B", manifest.latents.channels, "h", "w"),
        "scales": ("B", len(step.outputs)),
        **{tensor.name: tensor.shape for tensor in hint.outputs},
    }
    if [tensor.name for tensor in hint.outputs] != ["hint"]:
        yield f"{name}-hint gives no hint"
    for tensor in step.inputs:
        if known.get(tensor.name) != tensor.shape or tensor.dtype in ("int32", "int64"):
            yield f"'{tensor.name}' of {name} is {tensor.dtype} {[*tensor.shape]}"


def _residuals(tensors: tuple[TensorInfo, ...]) -> dict[str, TensorInfo]:
    return {tensor.name: tensor for tensor in tensors if _RESIDUAL.fullmatch(tensor.name)}


def _is_residual(tensor: TensorInfo) -> bool:
    """Whether it has the sides of latents that were halved some times."""
    if len(tensor.shape) != 4 or tensor.dtype in ("int32", "int64"):
        return False
    rows, channels, height, width = tensor.shape
    return (
        rows == "B"
        and isinstance(channels, int)
        and isinstance(height, str)
        and bool(_SIDE.fullmatch(height))
        and width == height.replace("h", "w")
    )
