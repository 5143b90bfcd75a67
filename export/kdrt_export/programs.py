"""Exported PyTorch programs: a component that runs without diffusers, for the torch engine."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import nn

from kdrt_engines.torch_eager import ALIGNMENT, PLACES
from kdrt_export.components import ExportComponent


def program_from_component(component: ExportComponent, dims: dict[str, int], path: Path) -> None:
    """Write ``component`` as a ``torch.export`` program with every symbol of its spec dynamic.

    ``dims`` are the sizes it is traced at; each must be at least 2, since torch.export takes 0
    and 1 for constants.

    Beside the weights goes how their addresses were aligned: matrix kernels on a CPU sum in an
    order that depends on it, and with the same alignment the same checkpoint gives the same bits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    dims = {symbol: max(size, 2) for symbol, size in dims.items()}
    shapes = tuple(
        {
            axis: torch.export.Dim.DYNAMIC
            for axis, size in enumerate(t.shape)
            if isinstance(size, str)
        }
        for t in component.spec.inputs
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            _Positional(component),
            component.example_inputs(dims),
            dynamic_shapes={"inputs": shapes},
            strict=False,
        )
    addresses = {
        name: parameter.data_ptr() % ALIGNMENT for name, parameter in program.named_parameters()
    }
    # It would be a pickle, and nobody needs it.
    program._example_inputs = None
    torch.export.save(program, path, extra_files={PLACES: json.dumps(addresses)})


class _Positional(nn.Module):
    """Takes the inputs in order and nothing else: one signature for every component."""

    def __init__(self, component: ExportComponent) -> None:
        super().__init__()
        self.component = component

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        result: torch.Tensor | tuple[torch.Tensor, ...] = self.component(*inputs)
        return result
