"""A batcher without a model: images of one colour, which the seed says, a step a tick.

It keeps the contract of ``kdrt.Batcher``, which ``tests/cli/test_batcher_contract.py`` holds both
to. What it makes of a request depends on its prompt: `OVERFLOWS` fails, `ENDLESS` takes steps until
it is cancelled.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from PIL import Image

import kdrt
from kdrt.pipeline.result import Result
from kdrt.request.complete import complete
from kdrt.request.fields import Request

OVERFLOWS = "it overflows"
ENDLESS = "without end"


class FakeHandle:
    """One request."""

    def __init__(self, request: Request) -> None:
        self.request = complete(request)
        self.left = self.request["steps"]
        self.shared = False
        self.cancelled = False
        self._ended = threading.Condition()
        self._outcome: Result[Any] | Exception | None = None
        self._callbacks: list[Callable[[FakeHandle], object]] = []

    def result(self, timeout: float | None = None) -> Result[Any]:
        with self._ended:
            if not self._ended.wait_for(self.done, timeout):
                raise TimeoutError
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def done(self) -> bool:
        return self._outcome is not None

    def cancel(self) -> bool:
        self.cancelled = not self.done()
        return self.cancelled

    def add_done_callback(self, function: Callable[[FakeHandle], object]) -> None:
        with self._ended:
            if not self.done():
                self._callbacks.append(function)
                return
        function(self)

    def end(self) -> None:
        """It has taken its last step, or was cancelled."""
        with self._ended:
            self._outcome = self._made()
            self._ended.notify_all()
        for function in self._callbacks:
            function(self)

    def _made(self) -> Result[Any] | Exception:
        if self.cancelled:
            return kdrt.CancelledError("the request was cancelled")
        if self.request["prompt"] == OVERFLOWS:
            return kdrt.NonFiniteError("the UNet overflowed")
        seeds = _seeds(self.request)
        return Result(
            [_image(seed, self.request) for seed in seeds],
            seeds,
            make_infotexts=lambda: [_infotext(seed, self.request) for seed in seeds],
            in_flight=self.shared,
        )


class FakePipeline:
    """A pipeline as far as requests are checked with it."""

    def resolve(self, request: Request, output_type: str) -> object:
        width = complete(request)["width"]
        if width is not None and width % 8:
            raise kdrt.InvalidRequestError(f"width must be a multiple of 8, and {width} is not")
        return object()


class FakeBatcher:
    """Takes a step of all requests in flight at a time.

    Attributes:
        most: how many requests there were at once, those that waited included.
    """

    def __init__(self, pipe: object = None, max_images: int | None = None) -> None:
        self.most = 0
        self._room = max_images or 4
        self._waiting: deque[FakeHandle] = deque()
        self._flying: list[FakeHandle] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> FakeBatcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._closing = True
            for handle in (*self._waiting, *self._flying) if error is not None else ():
                handle.cancel()
            self._changed.notify()
        self._thread.join()

    def submit(
        self, request: Request, *, output_type: str = "pil", loras: Any = None
    ) -> FakeHandle:
        handle = FakeHandle(request)
        with self._changed:
            self._waiting.append(handle)
            self.most = max(self.most, len(self._waiting) + len(self._flying))
            self._changed.notify()
        return handle

    def _run(self) -> None:
        while self._admit():
            for handle in self._tick():
                handle.end()

    def _admit(self) -> bool:
        """Whether there is anything to do, after waiting for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._flying or self._closing)
            while self._waiting and len(self._flying) < self._room:
                self._flying.append(self._waiting.popleft())
            return bool(self._flying)

    def _tick(self) -> list[FakeHandle]:
        """Take a step of each; those that are at their end leave."""
        with self._changed:
            for handle in self._flying:
                handle.shared |= len(self._flying) > 1
                handle.left -= handle.request["prompt"] != ENDLESS
            ended = [each for each in self._flying if each.cancelled or each.left <= 0]
            self._flying = [each for each in self._flying if each not in ended]
            return ended


def _seeds(request: Request) -> list[int]:
    seed, prompt = request["seed"], request["prompt"]
    if seed is not None and not isinstance(seed, int):
        return list(seed)
    prompts = 1 if isinstance(prompt, str) or prompt is None else len(prompt)
    return [(seed or 0) + index for index in range(prompts * request["images_per_prompt"])]


def _image(seed: int, request: Request) -> Image.Image:
    size = (request["width"] or 8, request["height"] or 8)
    return Image.new("RGB", size, (seed % 256, seed // 256 % 256, seed // 65536 % 256))


def _infotext(seed: int, request: Request) -> kdrt.Infotext:
    return kdrt.Infotext(
        prompt=str(request["prompt"]),
        negative_prompt=None,
        steps=request["steps"],
        sampler=str(request["sampler"]),
        schedule=request["schedule"],
        guidance_scale=1.0,
        seed=seed,
        width=8,
        height=8,
        model="fake",
    )
