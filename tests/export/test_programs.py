"""Exported PyTorch programs compute what the network computes, at every size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdrt_engines.torch_eager import load_program
from kdrt_export.programs import program_from_component
from tests.support.components import COMPONENTS

TRACED = {"B": 2, "h": 8, "w": 12}
SMALL = [(1, 1, 1), (1, 1, 13), (2, 13, 1), (3, 2, 1), (1, 5, 4), (64, 1, 1)]


@pytest.mark.parametrize("name", ["vae decoder", "vae encoder"])
def test_sizes_that_tracing_guards_against(name: str, tmp_path: Path) -> None:
    """torch.export takes sides of 1, in any block, and large batches for special."""
    component = COMPONENTS[name]()
    component.rewrite()
    program_from_component(component, TRACED, tmp_path / "it.pt2")
    program = load_program(tmp_path / "it.pt2")
    for batch, height, width in SMALL:
        inputs = component.example_inputs({"B": batch, "h": height, "w": width})
        torch.testing.assert_close(program(*inputs), component(*inputs), rtol=1e-5, atol=1e-6)
