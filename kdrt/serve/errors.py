"""What goes wrong in a service, and what a client is told of it.

A `Fault` is the same for all interfaces; each writes it down in its own dialect. Nothing of the
machine leaves it: of errors that are not the client's to put right, only the kind is told, and the
log has the rest under the request's id.
"""

from __future__ import annotations

from dataclasses import dataclass

from kdrt.errors import (
    CancelledError,
    InvalidRequestError,
    KdrtError,
    NonFiniteError,
    OutOfMemoryError,
    PipelineClosedError,
    ShapeError,
    UnknownFieldError,
)


class RequestError(InvalidRequestError):
    """A request that is refused, with the field that it is refused for.

    Attributes:
        field: its name in the interface that was used; None where it is not one field.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class LimitError(RequestError):
    """It asks for more than this server makes for anyone."""


class UnknownModelError(RequestError):
    """No model of that name is served."""


class UnknownNameError(RequestError, UnknownFieldError):
    """The interface has no field of that name."""


class UnsupportedError(RequestError):
    """It asks, by a field of the interface, for what this server does not do."""


class BodyTooLargeError(KdrtError):
    """The body has more bytes than this server reads."""


class MediaTypeError(KdrtError):
    """The body is of a kind that is not read here."""


class UnauthorizedError(KdrtError):
    """There is no key, or a wrong one."""


class ForbiddenError(KdrtError):
    """It comes from a page of another site, or by another name than the server's."""


class QueueFullError(KdrtError):
    """Too many images wait.

    Attributes:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReadyError(KdrtError):
    """The models are still being loaded."""


class LoadFailedError(KdrtError):
    """The model could not be loaded."""


class ShuttingDownError(KdrtError):
    """The server is about to end."""


SHUTTING_DOWN = "the server is shutting down; ask another, or try again later"
"""What a `ShuttingDownError` says of a request that was not accepted."""


class ReplicaLostError(KdrtError):
    """The process that was making the images has ended."""


class DeadlineError(KdrtError):
    """An image was not made in time."""


class InterruptedRequestError(KdrtError):
    """A client has interrupted what it had asked for."""


class ClientGoneError(KdrtError):
    """The client closed its connection, so nobody waits for the answer."""


class StalledError(KdrtError):
    """The client neither sent nor took anything for too long."""


@dataclass(frozen=True)
class Fault:
    """An error as a client is told of it.

    Attributes:
        status: of the HTTP response.
        kind: a word for programs, and the label of the metric.
        message: a sentence for people.
        field: of the request that it is about; None if it is about none.
        retry_after: seconds after which to try again; None where nobody knows.
        is_retryable: whether the same request may succeed if it is sent again. False also after
            an expensive failure: clients that try again by themselves would have it made anew.
    """

    status: int
    kind: str
    message: str
    field: str | None = None
    retry_after: int | None = None
    is_retryable: bool = False

    @property
    def headers(self) -> dict[str, str]:
        """Of the response. ``x-should-retry`` is what OpenAI's clients look for."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        if self.status >= 500 and not self.is_retryable:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


_KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (LimitError, 400, "limit_exceeded"),
    (UnknownModelError, 404, "model_not_found"),
    (UnsupportedError, 400, "unsupported"),
    (UnknownFieldError, 400, "unknown_field"),
    (InvalidRequestError, 400, "invalid_request"),
    (ShapeError, 400, "unsupported_size"),
    (UnauthorizedError, 401, "invalid_api_key"),
    (ForbiddenError, 403, "forbidden"),
    (StalledError, 408, "stalled"),
    (InterruptedRequestError, 409, "interrupted"),
    (BodyTooLargeError, 413, "body_too_large"),
    (MediaTypeError, 415, "unsupported_media_type"),
    (QueueFullError, 429, "queue_full"),
    (ClientGoneError, 499, "client_gone"),
    (NotReadyError, 503, "not_ready"),
    (LoadFailedError, 503, "load_failed"),
    (ShuttingDownError, 503, "shutting_down"),
    (DeadlineError, 504, "deadline_exceeded"),
)
"""Those whose message is for the client; the first that fits counts."""

_OURS: tuple[tuple[type[Exception], int, str, str], ...] = (
    (OutOfMemoryError, 503, "out_of_memory", "there is not enough memory for this image here"),
    (NonFiniteError, 500, "not_finite", "the image came out as numbers that are not finite"),
    (PipelineClosedError, 503, "shutting_down", SHUTTING_DOWN),
    (ReplicaLostError, 500, "replica_lost", "what was making the image broke down on the way"),
    (CancelledError, 500, "cancelled", "the image was cancelled before it was made"),
)
"""Those whose message may tell of the machine, and what is said in its place."""

_RETRYABLE = ("queue_full", "not_ready", "shutting_down")
_RETRY_SECONDS = 5
"""When to ask again after a server that starts or ends."""


def fault_of(error: BaseException) -> Fault:
    """What a client is told of an error. Of one that nobody foresaw, nothing but that."""
    for kind, status, word in _KINDS:
        if isinstance(error, kind):
            return _told(error, status, word, str(error))
    for kind, status, word, message in _OURS:
        if isinstance(error, kind):
            return _told(error, status, word, message)
    return Fault(500, "internal_error", "the server failed to make this; its log says why")


def _told(error: BaseException, status: int, kind: str, message: str) -> Fault:
    is_retryable = kind in _RETRYABLE
    return Fault(
        status,
        kind,
        " ".join(message.split()),
        getattr(error, "field", None),
        getattr(error, "retry_after", _RETRY_SECONDS if is_retryable else None),
        is_retryable,
    )
