"""Waiting for a request: by threads and by coroutines, for its steps and for its end."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from PIL import Image

import kdrt
from kdrt.batching.handle import Handle, ImageStep, Made, Steps
from kdrt.pipeline.result import Result

NOTHING = torch.zeros(1, 4, 2, 2)
RESULT: Result[Any] = Result(images=[], seeds=[7])


class Asked:
    """A request as its maker sees it."""

    def __init__(self, *, watch: bool = True, thread: threading.Thread | None = None) -> None:
        self.future: Future[Made[Any]] = Future()
        self.future.set_running_or_notify_cancel()
        self.steps = Steps() if watch else None
        self.cancelled = 0
        self.warned = 0
        maker = thread or threading.Thread()
        self.handle: Handle[Any] = Handle(3, self.future, self.steps, self._cancel, maker)

    def _cancel(self) -> None:
        self.cancelled += 1

    def _warn(self) -> None:
        self.warned += 1
        warnings.warn("the prompt is too long", stacklevel=2)

    def finish(self, warn: Callable[[], object] = lambda: None) -> None:
        self.end()
        self.future.set_result(Made(RESULT, warn))

    def finish_with_warning(self) -> None:
        self.finish(self._warn)

    def fail(self, error: BaseException) -> None:
        self.end()
        self.future.set_exception(error)

    def step(self, index: int) -> None:
        assert self.steps is not None
        self.steps.add(step(index), None)

    def end(self) -> None:
        if self.steps is not None:
            self.steps.close()


def step(index: int) -> ImageStep:
    def none(latents: torch.Tensor) -> list[Image.Image]:
        raise AssertionError("nobody looks")

    def decode(latents: torch.Tensor) -> torch.Tensor:
        raise AssertionError("nobody looks")

    return ImageStep(index, 2.0, 1.0, NOTHING, NOTHING, none, decode, 0)


@pytest.fixture
def asked() -> Asked:
    return Asked()


# Threads.


def test_a_result_is_waited_for(asked: Asked) -> None:
    waiting = Blocked(threading.Condition, "wait")
    with waiting, ThreadPoolExecutor(1) as pool:
        result = pool.submit(asked.handle.result)
        waiting.wait()
        assert not asked.handle.done()
        asked.finish()
        assert result.result() is RESULT
    assert asked.handle.done()
    assert asked.handle.exception() is None
    assert asked.handle.result(timeout=0) is RESULT


def test_a_result_that_is_not_there_in_time(asked: Asked) -> None:
    with pytest.raises(TimeoutError, match="not made after 0 s, and goes on"):
        asked.handle.result(timeout=0)
    with pytest.raises(TimeoutError, match="not made after 0 s, and goes on"):
        asked.handle.exception(timeout=0)
    assert asked.cancelled == 0
    asked.finish()
    assert asked.handle.result(timeout=0) is RESULT


@pytest.mark.parametrize(
    "error",
    [kdrt.NonFiniteError("black"), TimeoutError("of the callback"), kdrt.CancelledError("ended")],
    ids=lambda error: type(error).__name__,
)
def test_what_it_failed_with_is_raised_and_told(asked: Asked, error: Exception) -> None:
    asked.fail(error)
    assert asked.handle.exception() is error
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            asked.handle.result(timeout=0)
        assert caught.value is error
    assert list(asked.handle) == []

    async def awaited() -> None:
        await asked.handle

    with pytest.raises(type(error)) as caught:
        asyncio.run(awaited())
    assert caught.value.args == error.args


def test_a_request_is_cancelled_until_it_is_over(asked: Asked) -> None:
    assert asked.handle.cancel()
    assert asked.handle.cancel()
    assert asked.cancelled == 2
    asked.fail(kdrt.CancelledError("cancelled"))
    assert not asked.handle.cancel()
    assert asked.cancelled == 2


def test_whoever_asks_first_is_warned(asked: Asked) -> None:
    asked.finish_with_warning()
    with pytest.warns(UserWarning, match="too long"):
        asked.handle.result()
    asked.handle.result()
    assert asked.warned == 1


def test_callbacks_are_called_at_the_end_and_afterwards_at_once(asked: Asked) -> None:
    called: list[object] = []
    asked.handle.add_done_callback(called.append)
    asked.handle.add_done_callback(called.append)
    assert called == []
    asked.finish()
    assert called == [asked.handle] * 2
    asked.handle.add_done_callback(called.append)
    assert called == [asked.handle] * 3


def test_a_callback_that_raises_keeps_nobody_waiting(
    asked: Asked, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(handle: object) -> None:
        raise LookupError("of the user")

    called: list[object] = []
    asked.handle.add_done_callback(broken)
    asked.handle.add_done_callback(called.append)
    asked.finish()
    assert called == [asked.handle]
    assert asked.handle.result() is RESULT
    assert "of the user" in caplog.text


def test_a_handle_tells_how_it_stands(asked: Asked) -> None:
    other = Asked()
    assert other.handle.number > asked.handle.number
    assert repr(asked.handle) == (
        f"<Handle of request {asked.handle.number}, waiting or in flight>"
    )
    asked.finish()
    assert repr(asked.handle).endswith(", done>")
    assert asked.handle.steps == 3


def test_steps_come_in_order_and_then_the_end(asked: Asked) -> None:
    for index in range(2):
        asked.step(index)
    steps = iter(asked.handle)
    assert next(steps).index == 0
    asked.step(2)
    asked.finish()
    assert [step.index for step in steps] == [1, 2]
    assert list(asked.handle) == []


def test_a_thread_that_waits_for_a_step_sleeps(asked: Asked) -> None:
    waiting = Blocked(threading.Condition, "wait")
    with waiting, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(next, iter(asked.handle))
        waiting.wait()
        asked.step(0)
        assert taken.result().index == 0
        assert waiting.arguments == [(None,)]  # without a timeout
        last = pool.submit(list, asked.handle)
        waiting.wait()
        asked.end()
        assert last.result() == []
    assert waiting.arguments == [(None,)] * 2


def test_each_step_goes_to_one_of_many_threads(asked: Asked) -> None:
    count, threads = 300, 6
    with ThreadPoolExecutor(threads) as pool:
        taken = [pool.submit(lambda: [step.index for step in asked.handle]) for _ in range(threads)]
        for index in range(count):
            asked.step(index)
        asked.end()
        each = [future.result() for future in taken]
    assert all(indices == sorted(indices) for indices in each)
    assert sorted(index for indices in each for index in indices) == list(range(count))


def test_steps_that_nobody_keeps_are_not_to_be_had() -> None:
    asked = Asked(watch=False)
    with pytest.raises(kdrt.InvalidRequestError, match="watch=True"):
        iter(asked.handle)

    async def watching() -> None:
        async for _ in asked.handle:
            pass

    with pytest.raises(kdrt.InvalidRequestError, match="watch=True"):
        asyncio.run(watching())


def test_the_thread_that_makes_it_cannot_wait_for_it() -> None:
    asked = Asked(thread=threading.current_thread())
    waits: list[Callable[[], object]] = [
        asked.handle.result,
        asked.handle.exception,
        lambda: iter(asked.handle),
    ]
    for wait in waits:
        with pytest.raises(kdrt.InvalidRequestError, match="cannot wait for request"):
            wait()
    asked.finish()
    assert asked.handle.result() is RESULT


# Coroutines.


def test_a_coroutine_waits_for_the_result(asked: Asked) -> None:
    async def main() -> Result[Any]:
        waiting = asyncio.ensure_future(asked.handle)
        await asyncio.sleep(0)
        assert not waiting.done()
        threading.Thread(target=asked.finish_with_warning).start()
        with pytest.warns(UserWarning, match="too long"):
            result = await waiting
        assert await asked.handle is result
        return result

    assert asyncio.run(main()) is RESULT
    assert asked.cancelled == 0
    assert asked.warned == 1


def test_many_are_gathered() -> None:
    several = [Asked() for _ in range(5)]

    async def main() -> list[Any]:
        together = asyncio.gather(*(asked.handle for asked in several))
        await asyncio.sleep(0)
        for asked in reversed(several):
            asked.finish()
        return await together

    assert asyncio.run(main()) == [RESULT] * 5


def test_a_coroutine_that_is_cancelled_cancels_the_request(asked: Asked) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(asked.handle)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert asked.cancelled == 1
    asked.fail(kdrt.CancelledError("cancelled"))  # as the batcher does; nobody waits any more


def test_a_coroutine_whose_patience_ends_cancels_the_request(asked: Asked) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked.handle, 0.01)

    asyncio.run(main())
    assert asked.cancelled == 1


def test_a_shielded_request_goes_on(asked: Asked) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(asked.handle)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.01)
        asked.finish()
        assert await waiting is RESULT

    asyncio.run(main())
    assert asked.cancelled == 0


def test_two_event_loops_wait_for_one_request(asked: Asked) -> None:
    begun = threading.Barrier(3)

    async def main() -> Result[Any]:
        waiting = asyncio.ensure_future(asked.handle)
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, begun.wait)
        return await waiting

    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(asyncio.run, main()) for _ in range(2)]
        begun.wait()
        asked.finish()
        assert [result.result() for result in results] == [RESULT] * 2


def test_a_coroutine_takes_steps_as_they_come(asked: Asked) -> None:
    async def main() -> list[int]:
        taken = []
        asked.step(0)
        async for each in asked.handle:
            taken.append(each.index)
            if each.index < 3:
                threading.Thread(target=asked.step, args=(each.index + 1,)).start()
            else:
                threading.Thread(target=asked.end).start()
        return taken

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_a_coroutine_that_waits_for_a_step_sleeps(asked: Asked) -> None:
    """Its event loop turns when something has happened, and not in between."""
    waits: list[object] = []

    class Counted(asyncio.Event):
        async def wait(self) -> Any:
            waits.append(self)
            return await super().wait()

    async def main() -> None:
        taken = asyncio.ensure_future(anext(aiter(asked.handle)))
        for _ in range(10):
            await asyncio.sleep(0)
        asked.step(0)
        assert (await taken).index == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "Event", Counted)
        asyncio.run(main())
    assert len(waits) == 1


def test_each_step_goes_to_one_of_many_coroutines_and_threads(asked: Asked) -> None:
    count = 100

    async def watching() -> list[int]:
        return [each.index async for each in asked.handle]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(watching() for _ in range(3)))

    with ThreadPoolExecutor(3) as pool:
        loops = [pool.submit(asyncio.run, main()) for _ in range(2)]
        thread = pool.submit(lambda: [each.index for each in asked.handle])
        for index in range(count):
            asked.step(index)
        asked.end()
        taken = [*(indices for loop in loops for indices in loop.result()), thread.result()]
    assert all(indices == sorted(indices) for indices in taken)
    assert sorted(index for indices in taken for index in indices) == list(range(count))


def test_a_coroutine_that_stops_watching_leaves_the_rest_to_others(asked: Asked) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(anext(aiter(asked.handle)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert asked.cancelled == 0
    asked.step(0)
    asked.end()
    assert [each.index for each in asked.handle] == [0]


def test_an_event_loop_that_was_closed_while_somebody_waited_stops_nobody(asked: Asked) -> None:
    async def watching() -> None:
        async for _ in asked.handle:
            raise AssertionError("its loop is closed")

    async def awaiting() -> None:
        await asked.handle

    loop = asyncio.new_event_loop()
    tasks: list[Any] = [loop.create_task(watching()), loop.create_task(awaiting())]
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    asked.step(0)
    asked.finish()
    assert asked.handle.result() is RESULT
    assert [each.index for each in asked.handle] == [0]
    for task in tasks:
        assert not task.done()
        task._log_destroy_pending = False  # nobody is to hear that they never end


class Blocked:
    """Within the block, tells when a thread begins to wait in some method, and how."""

    def __init__(self, kind: type, name: str) -> None:
        self.arguments: list[tuple[object, ...]] = []
        self._begun = threading.Semaphore(0)
        self._patch = pytest.MonkeyPatch()
        self._kind, self._name = kind, name

    def __enter__(self) -> None:
        original = getattr(self._kind, self._name)
        arguments, begun = self.arguments, self._begun
        main = threading.current_thread()

        def waits(condition: object, timeout: float | None = None) -> Any:
            if threading.current_thread() is not main:
                arguments.append((timeout,))
                begun.release()
            return original(condition, timeout)

        self._patch.setattr(self._kind, self._name, waits)

    def __exit__(self, *error: object) -> None:
        self._patch.undo()

    def wait(self) -> None:
        """Until another thread waits."""
        self._begun.acquire()
