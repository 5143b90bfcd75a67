"""A bundle in Triton's Python backend. Written by `kdrt deploy triton`, which writes it anew.

Requests are submitted as they come, and share every evaluation with those that are on their way:
`execute` returns at once, and a thread of the model sends each answer when it is made.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from kdrt.serve.errors import ClientGoneError, fault_of
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings
from kdrt.serve.triton.config import settings_of
from kdrt.serve.triton.tensors import INPUTS, request_of, tensors_of

_POLL = 0.2
"""Seconds between two looks at whether a client still waits."""

_GRACE = 30.0
"""Seconds that running requests get when the model is unloaded."""


class TritonPythonModel:
    """What the backend makes one of, and calls by these names."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle and warm it up; the server is not ready before that.

        Args:
            args: the backend's: where the model is, and ``config.pbtxt`` as JSON.
        """
        config = json.loads(args["model_config"])
        parameters = {
            # Empty strings are left out of the JSON.
            name: parameter.get("string_value", "")
            for name, parameter in config["parameters"].items()
        }
        bundle = Path(args["model_repository"], args["model_version"], "bundle")
        self._service = ImageService([ModelSettings(bundle=str(bundle))], settings_of(parameters))
        self._service.load()
        self._answers: set[concurrent.futures.Future[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kdrt-triton")
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        """Submit requests. Their tensors are read now: they are valid in this call only."""
        for request in requests:
            tensors = {}
            for each in INPUTS:
                tensor = pb_utils.get_input_tensor_by_name(request, each.name)
                if tensor is not None:
                    tensors[each.name] = tensor.as_numpy().copy()
            coroutine = self._answer(tensors, request.get_response_sender())
            answer = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            self._answers.add(answer)
            answer.add_done_callback(self._answered)

    def finalize(self) -> None:
        """Finish what runs, within the grace time, and free the engines."""
        drained = asyncio.run_coroutine_threadsafe(self._service.drain(_GRACE), self._loop)
        drained.result()
        # What is made may not have been sent yet.
        concurrent.futures.wait(self._answers.copy())
        self._service.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _answer(self, tensors: Mapping[str, Any], sender: Any) -> None:
        try:
            outputs = await self._outputs(tensors, sender)
            response = pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(name, array) for name, array in outputs.items()]
            )
        except Exception as error:
            response = pb_utils.InferenceResponse(error=self._error(error))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answered(self, answer: concurrent.futures.Future[None]) -> None:
        self._answers.discard(answer)
        error = answer.exception()
        if error is not None:
            pb_utils.Logger.log_error(f"an answer could not be sent: {error!r}")

    async def _outputs(self, tensors: Mapping[str, Any], sender: Any) -> dict[str, Any]:
        request = request_of(tensors, self._service.settings.limits)
        submission = await self._service.submit(request)
        result = asyncio.ensure_future(submission.result())
        while not (await asyncio.wait([result], timeout=_POLL))[0]:
            if sender.is_cancelled():
                submission.cancel(ClientGoneError("the client cancelled the request"))
        return await asyncio.to_thread(tensors_of, result.result())

    def _error(self, error: Exception) -> Any:
        """What a client is told: as much as over HTTP."""
        fault = fault_of(error)
        if fault.status >= 500:
            pb_utils.Logger.log_error(f"a request failed: {error!r}")
        kinds = pb_utils.TritonError
        code = {400: kinds.INVALID_ARG, 429: kinds.UNAVAILABLE, 499: kinds.CANCELLED}.get(
            fault.status, kinds.UNAVAILABLE if fault.status == 503 else kinds.INTERNAL
        )
        return kinds(self._service.without_private(fault.message), code)
