"""Errors that travel, and what counts as a lack of memory."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import kdrt
import kdrt_bench
import kdrt_engines
import kdrt_export
from kdrt_engines.errors import EngineRejectedError, KdrtError, OutOfMemoryError, is_out_of_memory


def _import_errors(package: ModuleType) -> None:
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if module.name.rpartition(".")[2] == "errors":
            importlib.import_module(module.name)


def _kinds(kind: type[KdrtError]) -> Iterator[type[KdrtError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


for _package in (kdrt, kdrt_bench, kdrt_engines, kdrt_export):
    _import_errors(_package)
KINDS = sorted(set(_kinds(KdrtError)), key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_a_pickle(kind: type[KdrtError]) -> None:
    own = list(inspect.signature(kind.__init__).parameters)[1:]
    names = ["message"] if own == ["args", "kwargs"] else own
    error = kind(*[f"the {name}" for name in names])
    error.add_note("a note")
    error.colour = "red"  # type: ignore[attr-defined]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is kind
        assert str(back) == str(error)
        assert back.args == error.args
        assert vars(back) == vars(error)


def test_every_family_is_among_them() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert {
        "EngineRejectedError",
        "InvalidRequestError",
        "BenchmarkError",
        "VerificationError",
    } <= names
    rejected = pickle.loads(pickle.dumps(EngineRejectedError("no engine for this GPU", "missing")))
    assert rejected.reason == "missing"


def test_an_allocation_that_fails_is_known_by_its_words() -> None:
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (
        of_torch.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("Failed to allocate memory for requested buffer of size 17"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
        OutOfMemoryError("one sentence"),
    ):
        assert is_out_of_memory(error), error
    for another in (
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        OSError(2, "No such file or directory"),
        KdrtError("a file called out of memory.txt is missing"),
    ):
        assert not is_out_of_memory(another), another
