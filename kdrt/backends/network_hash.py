"""A hash that ties derived files to the network they were made from."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from kdrt.bundle import Manifest


def network_hash(manifest: Manifest, component: str) -> str:
    """A SHA-256 over the graphs and the weights of a component, without the graphs that others
    have beside them."""
    own = manifest.components[component]
    folder = PurePosixPath(own.onnx).parent
    others = {graph for each in manifest.components.values() for graph in each.graphs}
    others -= {*own.graphs}
    parts = [
        f"{PurePosixPath(name).relative_to(folder)}={digest}"
        for name, digest in sorted(manifest.files.items())
        if PurePosixPath(name).is_relative_to(folder) and name not in others
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
