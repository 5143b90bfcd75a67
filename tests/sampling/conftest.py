from __future__ import annotations

import pytest

from kdrt.sampling import NoiseSchedule


@pytest.fixture(scope="session")
def sd() -> NoiseSchedule:
    """The schedule of Stable Diffusion 1.5 and SDXL."""
    return NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
