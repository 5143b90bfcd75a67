from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from kdrt.sampling import NoiseSchedule

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from oracles import kdiffusion


@pytest.fixture(scope="session")
def kd() -> ModuleType:
    """k-diffusion's sampling module."""
    try:
        return kdiffusion.load("sampling")
    except kdiffusion.OracleUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kd_external() -> ModuleType:
    """k-diffusion's model wrappers."""
    try:
        return kdiffusion.load("external")
    except kdiffusion.OracleUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sd() -> NoiseSchedule:
    """The schedule of Stable Diffusion 1.5 and SDXL."""
    return NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are too small to share: more threads only cost time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
