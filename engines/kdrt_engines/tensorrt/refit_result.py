"""What is recorded of the check that a refittable engine has passed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RefitResult:
    """What :func:`kdrt_engines.tensorrt.refit_check.check_refit` measured.

    Attributes:
        weights: how many can change of those that should.
        fixed: how many cannot.
        built: the greatest relative error of an output, as built.
        refitted: the same with all weights changed that can.
        restored: how far the engine, back at its base weights, is from itself before. 0 unless
            its kernels sum in random order.
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
