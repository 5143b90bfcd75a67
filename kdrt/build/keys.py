"""Which engines a build makes: one key for each component and group of GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from kdrt.adapters.lora_names import NETWORKS
from kdrt.backends.network_hash import network_hash
from kdrt.backends.profiles import component_profiles
from kdrt.bundle import Manifest
from kdrt.errors import EngineError
from kdrt_engines.keys import REFIT, EngineKey
from kdrt_engines.tensorrt.flavour import Flavour, split_targets


def engine_keys(
    manifest: Manifest,
    flavour: Flavour,
    components: Sequence[str],
    capabilities: Sequence[int],
    names: Sequence[str],
    *,
    refittable: bool = False,
) -> list[EngineKey]:
    """The keys of the engines of these components.

    Args:
        manifest: of the bundle.
        flavour: of TensorRT, as it is installed.
        components: names in the manifest.
        capabilities: of the GPUs, 89 for 8.9.
        names: of the optimization profiles.
        refittable: those that a LoRA can change are to be refittable.

    Raises:
        EngineError: an unknown profile, or a network that one of the GPUs cannot run.
        EngineUnavailableError: the flavour is not installed.
    """
    keys = [
        _key(manifest, flavour, component, group, names, refittable and component in NETWORKS)
        for group in split_targets(capabilities)
        for component in components
    ]
    for key in keys:
        _check_turing(key)
    return keys


def title(key: EngineKey) -> str:
    """What to call an engine in a progress report: ``unet: sm86, sm89``."""
    kind = ", refittable" if key.refittable else ""
    targets = ", ".join(f"sm{number}" for number in key.compute_capabilities)
    return f"{key.component}: {targets}{kind}"


def _key(
    manifest: Manifest,
    flavour: Flavour,
    component: str,
    capabilities: tuple[int, ...],
    names: Sequence[str],
    refittable: bool,
) -> EngineKey:
    # A float32 network in a float16 bundle is there for its range, not for its precision.
    flags = {"TF32": manifest.precision != "fp32"} | dict.fromkeys(flavour.flags, True)
    return EngineKey(
        component=component,
        network=network_hash(manifest, component),
        backend=flavour.name,
        backend_version=flavour.version(),
        compute_capabilities=capabilities,
        profiles=component_profiles(manifest, component, names),
        dtype=manifest.components[component].inputs[0].dtype,
        flags=flags | {REFIT: True} if refittable else flags,
    )


def _check_turing(key: EngineKey) -> None:
    if 75 not in key.compute_capabilities:
        return
    reason = {
        "float32": "it is float32, and TensorRT-RTX has no float32 matrix products there",
        "bfloat16": "it is bfloat16, which these GPUs do not have",
    }.get(key.dtype)
    if reason is not None:
        raise EngineError(
            f"{key.component} cannot be built for sm75 (Turing): {reason}; leave sm75 out, or "
            "choose other networks with --component"
        )
