"""The base class of kdrt's exceptions, and those that engines raise.

Every message is one sentence a user can act on: what was wrong, what is allowed, what to do next.
A bug inside kdrt is never a ``KdrtError``.
"""

from __future__ import annotations

from typing import Any, Literal


class KdrtError(Exception):
    """An error that the user can correct. The command line prints its message and exits with 2.

    It can be pickled with all its attributes, whatever arguments its class takes, so that another
    process can raise it.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), *self.args), self.__dict__


def _unpickled(kind: type[KdrtError], *arguments: object) -> KdrtError:
    return kind.__new__(kind, *arguments)


class EngineError(KdrtError):
    """An engine could not be built, loaded or run."""


class EngineUnavailableError(EngineError):
    """The engine's package or device is not on this machine."""


class ShapeError(EngineError, ValueError):
    """The engine does not take this size."""


class OutOfMemoryError(EngineError):
    """Memory ran out while something was loaded or computed. What was loaded before still works."""


class FixedWeightsError(EngineError):
    """The weights of an engine cannot be changed once it is built."""


Reason = Literal[
    "missing",
    "stale",
    "foreign",
    "truncated",
    "damaged",
    "wrong GPU",
    "wrong version",
    "untrusted",
]
"""Why an engine file is not loaded. ``stale``: its network has been exported again; ``foreign``: it
is a valid engine of something else; ``untrusted``: somebody else built it."""


class EngineRejectedError(EngineError):
    """A built engine is missing, damaged, or not the one that is needed. It was not loaded.

    Attributes:
        reason: why not.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason


_OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "alloc_failed", "bad allocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. PyTorch, ONNX Runtime, cuBLAS and the operating system have no
    common exception for that, so their messages are searched."""
    if isinstance(error, KdrtError | MemoryError):
        return isinstance(error, OutOfMemoryError | MemoryError)
    return any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
