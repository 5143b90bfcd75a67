"""Loading a bundle's torch programs with the code that Inductor compiled of them."""

from __future__ import annotations

import shlex
from functools import partial

import torch

from kdrt.backends.commands import bundle_argument
from kdrt.backends.fallback import warn_of_fallback
from kdrt.backends.inductor_cache import ENGINE, INDUCTOR
from kdrt.backends.torch_programs import TorchLoader
from kdrt.bundle import Bundle
from kdrt.errors import EngineUnavailableError, ShapeError
from kdrt_engines.inductor.engine import InductorEngine, Sizes
from kdrt_engines.profiles import sizes


class InductorLoader:
    """See :class:`kdrt.backends.loader.Loader`. At sizes that were not compiled a component runs as
    with the engine ``torch``, and a warning says so.

    Args:
        bundle: an opened bundle.
        device: where the programs run.
        threads: CPU threads of this whole process; None leaves them as they are.
    """

    def __init__(self, bundle: Bundle, device: torch.device, threads: int | None = None) -> None:
        self._bundle, self.device = bundle, device
        self._programs = TorchLoader(bundle, device, threads)

    def load(self, component: str) -> InductorEngine:
        self._programs.check(component)
        # Before the program is loaded, which may be gigabytes.
        if all(each.record.component != component for each in INDUCTOR.all(self._bundle)):
            raise EngineUnavailableError(
                f"{component} is not compiled by Inductor, or not by you, with this version of "
                f"PyTorch and for this {self.device.type}; run `{self._command()}`, or choose "
                "another engine"
            )
        engine = self._programs.load(component)
        return InductorEngine(
            engine.module,
            engine.spec,
            self.device,
            kept=partial(INDUCTOR.find, self._bundle, component, ENGINE),
            missing=partial(self._warn, component),
        )

    def _warn(self, component: str, dims: Sizes) -> None:
        reason = ShapeError(
            f"it is not compiled for {sizes(dims)}; `{self._command()}` compiles the sizes of a "
            "--profile"
        )
        warn_of_fallback(component, "torch", reason)

    def _command(self) -> str:
        return f"kdrt build {shlex.quote(bundle_argument(self._bundle))} --engine {ENGINE}"
