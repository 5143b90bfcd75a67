"""What a quantised bundle lost, as lines to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from kdrt.bundle import QuantizationFacts

_STEPS = 5
"""Noise levels that are shown."""

_LEFT = 12
"""Layers that are shown."""


def print_loss(facts: QuantizationFacts) -> None:
    """Print how a bundle was quantised, and what was measured."""
    from kdrt.cli.console import print_rows

    loss = facts.loss
    every = max(1, (len(loss.steps) - 1) // (_STEPS - 1))
    images = f"{loss.images} of the same seeds, {loss.width} x {loss.height} pixels"
    psnr = "equal" if loss.psnr is None else f"{loss.psnr:.1f} dB"
    rows = [
        ("format", facts.format),
        ("made from", facts.made_from),
        ("layers", f"{facts.layers}; {len(facts.left)} more are left as they were"),
        ("calibrated on", f"{facts.prompts} prompts, {facts.evaluations} evaluations"),
        (
            "error",
            f"{loss.error:.1e} of an evaluation, over all steps; chosen for {facts.max_error:g}",
        ),
        *[(f"at sigma {step.sigma:.3g}", f"{step.error:.1e}") for step in loss.steps[::every]],
        ("images", f"PSNR {psnr}, SSIM {loss.ssim:.4f}, {images}"),
    ]
    if loss.fidelity is not None and loss.fidelity_before is not None:
        rows.append(
            ("as asked", f"{loss.fidelity:.1%} of the prompts, {loss.fidelity_before:.1%} before")
        )
    print_rows("quantised", rows)
    if facts.left:
        more = len(facts.left) - _LEFT
        typer.echo()
        print_rows("left as they were", [(name, "") for name in facts.left[:_LEFT]])
        if more > 0:
            typer.echo(f"  and {more} more: quantization/layers.csv in the bundle has all")
