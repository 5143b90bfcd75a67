"""Intel GPUs and NPUs of this machine, as Linux lists them. OpenVINO is not imported: that would
cost more than everything else that looks for engines."""

from __future__ import annotations

from pathlib import Path

_INTEL = "0x8086"
_CLASSES = {"GPU": "drm/renderD*", "NPU": "accel/accel*"}


def has_device(kind: str, classes: Path = Path("/sys/class")) -> bool:
    """Whether there is an Intel device of this kind, ``GPU`` or ``NPU``. That OpenVINO can use it
    is only known when it has tried: it needs a driver too.

    Args:
        kind: which.
        classes: where Linux lists devices by class.
    """
    return any(_vendor(device) == _INTEL for device in classes.glob(_CLASSES[kind]))


def _vendor(device: Path) -> str | None:
    try:
        return (device / "device" / "vendor").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
