"""Which networks are measured: those of a bundle, or an architecture with random weights."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from kdrt.bundle import open_bundle
from kdrt.common.home import home
from kdrt.common.paths import user_path
from kdrt_bench.experiment import RealSize
from kdrt_bench.jobs import Model

_RANDOM = re.compile(r"(?P<source>.+) with random weights, seed 0")


def cache() -> Path:
    """Where peers keep what they make of networks; may be deleted at any time."""
    return home() / "bench"


def model_of(bundle: str) -> Model:
    """The model of a bundle.

    Raises:
        BundleError: there is no such bundle.
    """
    opened = open_bundle(bundle)
    manifest = opened.manifest
    random = _RANDOM.fullmatch(manifest.source)
    # What a peer keeps is of these weights, whatever the bundle is called.
    files = hashlib.sha256(repr(sorted(manifest.files.items())).encode()).hexdigest()
    return Model(
        name=manifest.name,
        bundle=opened.path.resolve(),
        source=random["source"] if random else manifest.source,
        random_weights=random is not None,
        cache=(cache() / f"{manifest.name.replace('/', '--')}-{files[:12]}").resolve(),
    )


def real_size(source: str, side: int | None = None) -> RealSize:
    """An architecture with random weights, exported once and kept.

    Args:
        source: a short name or a diffusers folder; see ``kdrt export --random-weights``.
        side: of the latents; None is the architecture's own.

    Raises:
        SourceError: there is no such architecture.
    """
    path = user_path(source).resolve()
    name = path.name
    if path.is_dir():
        name += f"-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    folder = cache() / "bundles" / f"{name}-random"
    if not (folder / "manifest.json").is_file():
        from kdrt_export.stage import export

        export(source, folder, precision="fp32", random_weights=True, safety_checker=False)
    model = model_of(str(folder)).model_copy(
        update={"name": f"{path.name}, random weights", "source": source, "random_weights": True}
    )
    manifest = open_bundle(str(folder)).manifest
    own = manifest.latents.default_width // manifest.latents.scale
    return RealSize(
        model, tokens=manifest.text_encoders[0].max_length, side=own if side is None else side
    )
