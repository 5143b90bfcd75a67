"""What a client is told of an error, and what not."""

from __future__ import annotations

import pytest

from kdrt.errors import (
    BundleError,
    CancelledError,
    EngineError,
    InvalidRequestError,
    NonFiniteError,
    OutOfMemoryError,
    ShapeError,
)
from kdrt.serve.errors import (
    ClientGoneError,
    DeadlineError,
    NotReadyError,
    QueueFullError,
    ReplicaLostError,
    RequestError,
    ShuttingDownError,
    UnknownModelError,
    fault_of,
)

SECRET = "/home/someone/models/secret.onnx"


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequestError("steps must be less"), 400, "invalid_request"),
        (RequestError("no", "steps"), 400, "invalid_request"),
        (UnknownModelError("no", "model"), 404, "model_not_found"),
        (ShapeError("the engine takes 512"), 400, "unsupported_size"),
        (QueueFullError("full", 7), 429, "queue_full"),
        (NotReadyError("loading"), 503, "not_ready"),
        (ShuttingDownError("ending"), 503, "shutting_down"),
        (DeadlineError("late"), 504, "deadline_exceeded"),
        (ClientGoneError("gone"), 499, "client_gone"),
    ],
)
def test_what_a_client_can_put_right_is_told(error: Exception, status: int, kind: str) -> None:
    fault = fault_of(error)
    assert (fault.status, fault.kind, fault.message) == (status, kind, str(error))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OutOfMemoryError(SECRET), 503),
        (NonFiniteError(SECRET), 500),
        (EngineError(SECRET), 500),
        (BundleError(SECRET), 500),
        (CancelledError(SECRET), 500),
        (ReplicaLostError(SECRET), 500),
        (FileNotFoundError(2, "No such file", SECRET), 500),
        (ZeroDivisionError(SECRET), 500),
    ],
)
def test_nothing_of_the_machine_is_told(error: Exception, status: int) -> None:
    fault = fault_of(error)
    assert fault.status == status
    assert SECRET not in fault.message


def test_a_client_is_told_whether_and_when_to_come_again() -> None:
    assert fault_of(QueueFullError("full", 7)).headers == {"retry-after": "7"}
    assert "retry-after" in fault_of(ShuttingDownError("ending")).headers
    assert fault_of(InvalidRequestError("no")).headers == {}


@pytest.mark.parametrize(
    "error",
    [DeadlineError("late"), OutOfMemoryError("no"), ReplicaLostError("no"), ValueError("no")],
)
def test_an_expensive_failure_is_not_tried_again(error: Exception) -> None:
    assert fault_of(error).headers == {"x-should-retry": "false"}


def test_a_message_is_one_line() -> None:
    assert fault_of(InvalidRequestError("a\nb\r\n c")).message == "a b c"
