"""The commands that messages tell users to run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from kdrt.bundle import Bundle, bundle_path
from kdrt_engines.keys import EngineKey
from kdrt_engines.tensorrt.flavour import FLAVOURS, Flavour


def build_command(
    bundle: str,
    flavour: Flavour,
    capabilities: Sequence[int],
    *,
    names: Sequence[str] = (),
    components: Sequence[str] = (),
    refittable: bool = False,
) -> str:
    """The command that builds these engines, ready to be pasted into a shell.

    Args:
        bundle: see :func:`bundle_argument`.
        flavour: of TensorRT.
        capabilities: of the GPUs, 89 for 8.9.
        names: of optimization profiles; the default ones if empty.
        components: all if empty.
        refittable: build engines whose weights can change.
    """
    words = ["kdrt", "build", bundle, "--engine", flavour.name]
    if refittable:
        words += ["--refittable", "--here"]
    elif flavour.builds_anywhere:
        words += ["--gpu", ",".join(f"sm{number}" for number in capabilities)]
    else:
        words += ["--here"]
    for name in names:
        words += ["--profile", name]
    for component in components:
        words += ["--component", component]
    return shlex.join(words)


def rebuild_command(
    bundle: Bundle,
    key: EngineKey,
    names: Sequence[str],
    *,
    capabilities: Sequence[int] | None = None,
) -> str:
    """The command that builds an engine again, perhaps for other GPUs; ``names`` are those of its
    optimization profiles."""
    return build_command(
        bundle_argument(bundle),
        FLAVOURS[key.backend],
        capabilities or key.compute_capabilities,
        names=names,
        components=(key.component,),
        refittable=key.refittable,
    )


def bundle_argument(bundle: Bundle) -> str:
    """How to name the bundle on a command line: its name if that finds it, else its folder."""
    name = bundle.manifest.name
    return name if bundle_path(name) == bundle.path else str(bundle.path)
