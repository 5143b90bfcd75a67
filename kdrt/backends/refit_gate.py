"""When engines are compared after a refit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kdrt.errors import InvalidRequestError

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.gate import RefitGate, When


SWITCH = "KDRT_REFIT_CHECK"
"""The environment variable that says which refits are compared; see
:class:`kdrt_engines.tensorrt.gate.RefitGate`."""


def refit_gate(network: Path) -> RefitGate:
    """What compares an engine of ``network`` after a refit, as often as ``KDRT_REFIT_CHECK`` says.

    Raises:
        InvalidRequestError: the variable has another value than ``first``, ``every`` and ``never``.
    """
    from kdrt_engines.tensorrt.gate import WHEN, RefitGate

    when = os.environ.get(SWITCH) or "first"
    if when not in WHEN:
        raise InvalidRequestError(f"{SWITCH} must be {', '.join(WHEN)} or unset, not {when!r}")
    return RefitGate(network, cast("When", when))
