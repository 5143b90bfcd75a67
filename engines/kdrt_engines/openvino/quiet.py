"""OpenVINO, imported without its telemetry: ``from kdrt_engines.openvino.quiet import ov``.

By itself, ``import openvino`` reports every import to Google Analytics, under an identifier that it
keeps in the home folder, unless the user has opted out. Where it cannot import the package that
does so, it uses an empty stand-in of its own.
"""

from __future__ import annotations

import sys
from typing import Any

_TELEMETRY = "openvino_telemetry"

_before = sys.modules.get(_TELEMETRY)
_modules: dict[str, Any] = sys.modules
_modules[_TELEMETRY] = None  # what is None there cannot be imported
try:
    import openvino as ov
    from openvino.utils import replace_node
finally:
    # Other programs in this process may have their own reasons to import it.
    del _modules[_TELEMETRY]
    if _before is not None:
        _modules[_TELEMETRY] = _before

__all__ = ["ov", "replace_node"]
