"""OpenVINO in tests: whether it is installed, and an engine of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kdrt_engines import EngineSpec

if TYPE_CHECKING:
    from kdrt_engines.openvino.engine import OpenVinoEngine

REASON = "OpenVINO is not installed: pip install 'kdrt[openvino]'"
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason=REASON)


def openvino_engine(path: Path, spec: EngineSpec) -> OpenVinoEngine:
    """An engine in float32 on the CPU, on one thread."""
    from kdrt_engines.openvino.config import OpenVinoConfig
    from kdrt_engines.openvino.engine import OpenVinoEngine

    return OpenVinoEngine(path, spec, OpenVinoConfig(threads=1))
