"""How long a model stays loaded for a request."""

from __future__ import annotations

from typing import Any, cast

import pytest

import kdrt
from kdrt.errors import InvalidRequestError
from kdrt.serve.queue import Place
from kdrt.serve.turn import Turn
from kdrt.serve.version import ModelVersion

SHORT = kdrt.Request(prompt="a red circle")


class Model:
    """In place of a model: every request is over at once, or refused."""

    def __init__(self, *, refuses: bool = False) -> None:
        self._refuses = refuses

    def submit(self, *_: object, on_end: Any, **__: object) -> None:
        if self._refuses:
            raise InvalidRequestError("no")
        on_end()


def test_a_model_stays_until_its_unfinished_images_were_looked_at() -> None:
    ended: list[int] = []
    turn = Turn(cast(ModelVersion, Model()), Place(1, 0.0), lambda: ended.append(1))
    turn.submit(SHORT, None, watch=True, on_end=lambda: None)
    assert ended == []
    turn.was_read()
    turn.was_read()
    assert ended == [1]


def test_a_refused_request_gives_it_back_too() -> None:
    ended: list[int] = []
    model = cast(ModelVersion, Model(refuses=True))
    turn = Turn(model, Place(1, 0.0), lambda: ended.append(1))
    turn.was_read()
    with pytest.raises(InvalidRequestError):
        turn.submit(SHORT, None, watch=False, on_end=lambda: None)
    assert ended == [1]
