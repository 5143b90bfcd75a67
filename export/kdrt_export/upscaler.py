"""Networks that enlarge images between two passes: from their files to components of a bundle.

Each is a component of its own, and takes pixels: it belongs to no model. So one is added to a
bundle that is there, or that an export has just written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdrt.bundle import MOST_UPSCALERS, Manifest, UpscalerFacts, sha256
from kdrt.bundle.components import UPSCALER_COMPONENT
from kdrt.errors import InvalidRequestError
from kdrt.images.upscaling import find_upscaler
from kdrt_export.component_export import export_component
from kdrt_export.components.upscaler import ExportUpscaler
from kdrt_export.errors import ExportError, UnsupportedModelError
from kdrt_export.options import PRECISIONS
from kdrt_export.report import Report
from kdrt_export.sources.names import default_name, split_name
from kdrt_export.sources.part import short_name
from kdrt_export.sources.reading import refused
from kdrt_export.sources.upscaler import UpscalerNetwork, find_upscaler_file, load_upscaler
from kdrt_export.walk import Part

TILE = 256
"""Pixels: at four times the size, ESRGAN's tensors of such a tile take 256 MB in float32."""

MARGIN = 16

_LARGEST_SCALE = 16
_TRACED = {"B": 2, "H": 20, "W": 18}
_VERIFIED = [{"B": 1, "H": 24, "W": 32}, {"B": 2, "H": 19, "W": 25}]


@dataclass(frozen=True)
class Upscaler:
    """One of them: its name in the bundle, the network, and what the manifest will say of it."""

    name: str
    network: UpscalerNetwork
    facts: UpscalerFacts


def open_upscalers(
    texts: Sequence[str], *, taken: Collection[str] = (), allow_pickle: bool = False
) -> list[Upscaler]:
    """Open all that shall be exported.

    Args:
        texts: each a file, as ``FILE`` or ``FILE:NAME``.
        taken: names that the bundle has already.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: see :func:`kdrt_export.sources.upscaler.load_upscaler`.
        ExportError: a name is taken, or none follows; or there are too many; or see there.
    """
    if len(taken) + len(texts) > MOST_UPSCALERS:
        raise ExportError(
            f"a bundle holds at most {MOST_UPSCALERS} upscalers, and these would be "
            f"{len(taken) + len(texts)}: leave some out"
        )
    names = list(taken)
    opened = []
    for text in texts:
        source, name = split_name(text)
        path = find_upscaler_file(source, allow_pickle=allow_pickle)
        name = name or default_name(source)
        if name in names or _is_built_in(name):
            raise ExportError(
                f"the name '{name}' is taken by another upscaler; give one with {source}:NAME"
            )
        names.append(name)
        opened.append(_opened(name, short_name(source), path))
    return opened


def _opened(name: str, source: str, path: Path) -> Upscaler:
    network = load_upscaler(path)
    if not 1 <= network.scale <= _LARGEST_SCALE:
        raise UnsupportedModelError(
            f"{path.name} enlarges images {network.scale} times, and at most {_LARGEST_SCALE} are "
            "possible"
        )
    facts = UpscalerFacts(
        scale=network.scale,
        architecture=network.architecture,
        source=source,
        sha256=sha256(path),
        tile=TILE,
        margin=MARGIN,
    )
    return Upscaler(name, network, facts)


def _is_built_in(name: str) -> bool:
    try:
        find_upscaler(name)
    except InvalidRequestError:
        return False
    return True


def add_upscalers(
    folder: Path,
    manifest: Manifest,
    upscalers: Sequence[Upscaler],
    targets: Sequence[str],
    report: Report,
) -> Manifest:
    """Export upscalers into the folder of a bundle.

    Args:
        folder: the bundle, which is being written.
        manifest: of what it holds so far.
        upscalers: to add.
        targets: see :func:`kdrt_export.stage.export`.
        report: told of every stage.

    Returns:
        The manifest with them, without the digests of their files.

    Raises:
        SourceError: a network does not run, or cannot be traced.
        VerificationError: one does not compute what it should.
    """
    components, facts = dict(manifest.components), dict(manifest.upscalers)
    for upscaler in upscalers:
        network = upscaler.network
        dtype = PRECISIONS[manifest.precision if network.halves else "fp32"]
        component = ExportUpscaler(network.network, scale=network.scale)
        name = UPSCALER_COMPONENT + upscaler.name
        part = Part(name, component, _TRACED, _VERIFIED, dtype)
        with refused(f"the upscaler '{upscaler.name}' cannot be exported"):
            components[name] = export_component(part, folder, targets, report)
        facts[upscaler.name] = upscaler.facts
    return manifest.model_copy(update={"components": components, "upscalers": facts})
