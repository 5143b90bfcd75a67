"""What Triton's Python backend offers a model, as far as a model of kdrt uses it."""

from __future__ import annotations

import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FINAL = 1


class Tensor:
    """A named array."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._array


class TritonError:
    """What a client is told in place of tensors."""

    INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = "internal", "invalid", "unavailable", "cancel"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    """Tensors or an error."""

    def __init__(
        self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None
    ) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or []}
        self.error = error


class Sender:
    """Takes the answers to one request. After the final one there may be none."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.is_final = threading.Event()
        self.is_gone = False

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        assert not self.is_final.is_set(), "it has had its final answer"
        self.responses.append(response)
        if flags == FINAL:
            self.is_final.set()

    def is_cancelled(self) -> bool:
        return self.is_gone

    def answer(self, seconds: float = 60.0) -> InferenceResponse:
        """The one answer, waited for."""
        assert self.is_final.wait(seconds), "there was no answer"
        (response,) = self.responses
        return response


class InferenceRequest:
    """Inputs by name. As in the server, their memory is used again when the call has returned."""

    def __init__(self, inputs: dict[str, NDArray[Any]]) -> None:
        self.inputs = inputs
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    def reuse_memory(self) -> None:
        for array in self.inputs.values():
            array.fill(b"overwritten" if array.dtype == np.object_ else 0)


def backend_utils() -> ModuleType:
    """The module ``triton_python_backend_utils``."""

    def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
        return Tensor(name, request.inputs[name]) if name in request.inputs else None

    made = ModuleType("triton_python_backend_utils")
    vars(made).update(
        get_input_tensor_by_name=get_input_tensor_by_name,
        InferenceResponse=InferenceResponse,
        Logger=SimpleNamespace(log_error=lambda message: None),
        Tensor=Tensor,
        TritonError=TritonError,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
    )
    return made
