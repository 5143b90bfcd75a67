"""The sentence that says how to export a model again, with what its bundle lacks."""

from __future__ import annotations

import shlex

from kdrt.backends.choice import torch_program
from kdrt.bundle import Bundle


def export_again(bundle: Bundle, source: str | None, *options: str) -> str:
    """Tell the user to export the model with ``options`` too, and to open the new bundle.

    Args:
        bundle: the one that lacks something.
        source: what it was exported from; None is what its manifest says.
        options: of ``kdrt export``.
    """
    manifest = bundle.manifest
    name = f"{manifest.name}-2".replace("/", "--")
    command = ["kdrt", "export", source or manifest.source, "--name", name]
    command += ["--precision", manifest.precision]
    if torch_program(bundle, "unet").is_file():
        command += ["--target", "onnxruntime", "--target", "torch"]
    return (
        f"export the model with `{shlex.join((*command, *options))}`, and open that bundle with "
        f"from_pretrained({name!r})"
    )
