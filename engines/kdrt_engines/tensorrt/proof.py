"""What is written down of the comparison that a refittable engine has passed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefitProof:
    """What :func:`kdrt_engines.tensorrt.gate.prove` found.

    ``weights``: how many can change of those that should, and ``fixed``, how many cannot.
    ``built``, ``refitted``: the greatest relative error of an output, as built and with all of them
    changed. ``restored``: how far the engine, back at its base, was from itself before; 0 unless
    its kernels sum in an order of chance.
    """

    weights: int
    fixed: int
    built: float
    refitted: float
    restored: float

    def __str__(self) -> str:
        return (
            f"{self.weights} of {self.weights + self.fixed} weights can change; relative error "
            f"{self.built:.1e} as built, {self.refitted:.1e} refitted, {self.restored:.1e} restored"
        )
