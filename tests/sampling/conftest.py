from __future__ import annotations

from types import ModuleType

import pytest

from kdrt.sampling import NoiseSchedule
from tests.oracles import kdiffusion


@pytest.fixture(scope="session")
def kd() -> ModuleType:
    """k-diffusion's sampling module."""
    try:
        return kdiffusion.load("sampling")
    except kdiffusion.OracleUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kd_external() -> ModuleType:
    """k-diffusion's model wrappers."""
    try:
        return kdiffusion.load("external")
    except kdiffusion.OracleUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def sd() -> NoiseSchedule:
    """The schedule of Stable Diffusion 1.5 and SDXL."""
    return NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
