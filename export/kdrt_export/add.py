"""Adding to a bundle that is there, without exporting the model again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from kdrt.backends.choice import torch_program
from kdrt.backends.ort_cache import keep_optimized, optimized
from kdrt.backends.torch_programs import trust_program
from kdrt.bundle import Bundle, changed_bundle, check_new_bundle, open_bundle, write_manifest
from kdrt.common.home import check_home
from kdrt_export.control import (
    Control,
    add_controls,
    find_controls,
    unet_facts,
    with_own_weights,
)
from kdrt_export.report import Report, Silent
from kdrt_export.upscaler import add_upscalers, open_upscalers


def add(
    bundle: str | os.PathLike[str],
    *,
    controlnets: Sequence[str] = (),
    t2i_adapters: Sequence[str] = (),
    upscalers: Sequence[str] = (),
    allow_pickle: bool = False,
    report: Report | None = None,
) -> Path:
    """Add ControlNets, T2I-Adapters and upscalers to a bundle.

    The bundle changes at once or not at all. What was built from it stays as good as it was;
    programs for PyTorch and graphs for this processor are made for what is new if there are any.

    Args:
        bundle: its folder or name.
        controlnets, t2i_adapters, upscalers: see :func:`kdrt_export.stage.export`.
        allow_pickle: accept pickled weights.
        report: told of every stage.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        ExportError: it cannot take any; or see :func:`kdrt_export.control.find_controls` and
            :func:`kdrt_export.upscaler.open_upscalers`.
        SourceError: one is damaged, or does not fit the model.
        VerificationError: a network does not compute what it should.
        OutputError: the bundle cannot be written. In every case the old bundle stays.
    """
    report = report or Silent()
    report.start(f"open {bundle}")
    opened = open_bundle(bundle)
    old = opened.manifest
    check_new_bundle(opened.path)
    check_home()
    controls: list[Control] = []
    if controlnets or t2i_adapters:
        unet = unet_facts(opened.path, old)
        sources = find_controls(
            controlnets, t2i_adapters, taken=old.controls, allow_pickle=allow_pickle
        )
        controls = [Control(source, unet, allow_pickle=allow_pickle) for source in sources]
    enlarging = open_upscalers(upscalers, taken=old.upscalers, allow_pickle=allow_pickle)
    targets = ("torch",) if torch_program(opened, "unet").is_file() else ()
    is_optimized = optimized(opened, "unet") is not None
    report.done(f"{old.name}, {old.precision}")
    with changed_bundle(opened) as partial:
        manifest = add_controls(partial, old, controls, targets, report) if controls else old
        manifest = add_upscalers(partial, manifest, enlarging, targets, report)
        manifest = write_manifest(partial, manifest, known=old.files)
        changed = Bundle(partial, manifest)
        new = [name for name in manifest.components if name not in old.components]
        for component in new:
            trust_program(changed, component)
        if is_optimized:
            keep_optimized(changed, with_own_weights(manifest, new), report)
    return opened.path
