"""The root of kdrt's exceptions, and those that engines raise.

Every message is one sentence a user can act on: what was wrong, what is allowed, what to do.
A bug inside kdrt is never a ``KdrtError``.
"""

from __future__ import annotations

from typing import Any, Literal


class KdrtError(Exception):
    """Something the user can put right. The command line prints it and exits with 2.

    It survives a pickle, and so the way from another process, with all its attributes, whatever
    arguments its class takes.
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
    """A size outside of what an engine was made for."""


class OutOfMemoryError(EngineError):
    """Memory ran out while something was loaded or computed. What was there before still works."""


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
"""Why an engine file is not loaded. ``stale``: its network has been exported anew; ``foreign``: it
is a whole engine, but of something else; ``untrusted``: somebody else built it."""


class EngineRejectedError(EngineError):
    """A built engine is not what is asked for, or not what was built. It was not loaded."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason: Reason = reason


_OUT_OF_MEMORY = ("out of memory", "allocate memory", "bad_alloc", "alloc_failed", "bad allocation")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: PyTorch, ONNX Runtime, cuBLAS and the operating system have no
    common type for that, but a few phrases."""
    if isinstance(error, KdrtError | MemoryError):
        return isinstance(error, OutOfMemoryError | MemoryError)
    return any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)
