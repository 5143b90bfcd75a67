"""torch.compile: TorchInductor on the untouched UNet and VAE."""

from __future__ import annotations

from kdrt_bench.peers.eager import Eager
from kdrt_engines import Engine
from kdrt_engines.torch_eager import TorchEngine

_WORTHWHILE = ("unet", "vae_decoder")
"""Text encoders run once an image; nobody compiles them."""


class Compiled(Eager):
    """Options: ``mode`` of torch.compile."""

    def engine(self, component: str) -> Engine:
        if component not in _WORTHWHILE:
            return super().engine(component)
        from torch._inductor import config

        # Weights become constants, which may then be packed for the processor beforehand.
        config.freezing = True
        network = self.network(component)
        # In place, so that it stays a module.
        network.compile(mode=self._mode, dynamic=False)
        return TorchEngine(network, self.spec(component), self.device)

    @property
    def _mode(self) -> str:
        return self.options.get("mode", "default")

    def settings(self) -> dict[str, str]:
        return {
            **super().settings(),
            "mode": self._mode,
            "freezing": "on",
            "dynamic": "no",
            "compiled": ", ".join(_WORTHWHILE),
        }
