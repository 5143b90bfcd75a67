"""How often engines are compared after a refit, as the environment says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.refit_check import RefitGate, When


VARIABLE = "KDRT_REFIT_CHECK"
"""The environment variable that says which refits are compared; see
:class:`kdrt_engines.tensorrt.refit_check.RefitGate`."""


def refit_gate(network: Path) -> RefitGate:
    """The gate for engines of ``network``, which compares as often as ``KDRT_REFIT_CHECK`` says.

    Raises:
        InvalidRequestError: the variable has another value than ``first``, ``every`` and ``never``.
    """
    from kdrt_engines.tensorrt.refit_check import WHEN, RefitGate

    when = os.environ.get(VARIABLE) or "first"
    if when not in WHEN:
        raise InvalidRequestError(f"{VARIABLE} must be {', '.join(WHEN)} or unset, not {when!r}")
    return RefitGate(network, cast("When", when))
