"""Joules, where the card or the processor tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

_RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Reads a counter of energy: the GPU's if torch sees one, else the processor package's.

    Attributes:
        source: what is read; None where nothing can be.
    """

    def __init__(self) -> None:
        self.source: str | None = None
        self._card: object = None
        self._zones: list[Path] = []
        if torch.cuda.is_available():
            self._open_card()
        else:
            self._open_package()

    def joules(self) -> float | None:
        """The counter now; only differences mean anything. None where there is none."""
        if self._card is not None:
            import pynvml

            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._card)) / 1000
        if not self._zones:
            return None
        try:
            return sum(int(zone.read_text()) for zone in self._zones) / 1e6
        except (OSError, ValueError):
            return None

    def _open_card(self) -> None:
        with contextlib.suppress(Exception):  # a card or driver that does not tell
            import pynvml

            pynvml.nvmlInit()
            card = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
            pynvml.nvmlDeviceGetTotalEnergyConsumption(card)
            self._card, self.source = card, "GPU (NVML)"

    def _open_package(self) -> None:
        zones = sorted(_RAPL.glob("intel-rapl:[0-9]*/energy_uj"))
        packages = [zone for zone in zones if zone.parent.name.count(":") == 1]
        with contextlib.suppress(OSError, ValueError):
            for zone in packages:
                int(zone.read_text())
            if packages:
                self._zones, self.source = packages, "processor package (RAPL)"
