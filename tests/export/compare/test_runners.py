"""Polygraphy's side of a comparison: what TensorRT-RTX is given to build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kdrt_export.compare.cutting import cut
from kdrt_export.compare.layers import element_types, layers_of
from kdrt_export.compare.runners import polygraphy_for, tensorrt_plan
from tests.support.planted import exported_planted

pytest.importorskip("polygraphy")
pytest.importorskip("tensorrt_rtx", reason="pip install 'kdrt[tensorrt-rtx]'")


def test_a_group_of_layers_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really, without a GPU, with layers as outputs and the weights where the bundle has them."""
    import polygraphy.config

    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    monkeypatch.setattr(polygraphy.config, "USE_TENSORRT_RTX", True)
    polygraphy_for(["onnxruntime", "tensorrt-rtx"])
    path = exported_planted(torch.float16, tmp_path).standard
    model = onnx.load(path, load_external_data=False)
    results = [layer.tensor for layer in layers_of(model.graph)][2:5]
    group = cut(model, results, element_types(model))
    plan = bytes(tensorrt_plan(group, path, {"latents": np.ones((1, 4, 8, 8), np.float16)})())
    assert plan[:4] == b"vtrt"
    assert all(name.encode() in plan for name in results)
