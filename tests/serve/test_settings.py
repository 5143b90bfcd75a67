"""What an operator may not choose."""

from __future__ import annotations

import pytest

from kdrt.errors import InvalidRequestError
from kdrt.serve.settings import ServiceSettings


@pytest.mark.parametrize("name", ["max_rows", "max_images", "threads", "memory", "max_waiting"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_are_checked(name: str, value: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"{name} must be a whole number of at least 1"):
        ServiceSettings(**{name: value})  # type: ignore[arg-type]
