"""Bundles of the demo model under other names and with other weights, made without an export."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from kdrt.bundle import new_bundle, read_manifest, write_manifest

_WEIGHTS = Path("onnx/unet/weights.bin")


def named_bundle(source: Path, target: Path, *, scale: float = 1.0) -> Path:
    """A bundle that is called as its folder is, in the place of what is there, as an export puts it
    there.

    Args:
        source: the bundle to copy.
        target: its folder.
        scale: of the weights of the UNet; the images are others where it is not 1.
    """
    with new_bundle(target) as partial:
        shutil.copytree(
            source,
            partial,
            dirs_exist_ok=True,
            copy_function=os.link,
            ignore=shutil.ignore_patterns("engines"),
        )
        if scale != 1.0:
            weights = np.fromfile(partial / _WEIGHTS, np.float32) * np.float32(scale)
            (partial / _WEIGHTS).unlink()  # it is a link to that of the source
            weights.tofile(partial / _WEIGHTS)
        manifest = read_manifest(partial).model_copy(update={"name": target.name})
        (partial / "manifest.json").unlink()
        write_manifest(partial, manifest)
    return target
