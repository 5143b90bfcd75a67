"""Counting images that wait and run."""

from __future__ import annotations

import pytest

from kdrt.serve.errors import QueueFullError
from kdrt.serve.queue import WaitingQueue


def test_images_wait_then_run_then_are_gone() -> None:
    queue = WaitingQueue(4)
    place = queue.enter(3, now=0.0)
    assert (queue.waiting, queue.running) == (3, 0)
    assert queue.admit(place, 1, now=1.0) is True
    assert queue.admit(place, 1, now=1.5) is False
    assert (queue.waiting, queue.running) == (1, 2)
    assert (place.arrived, place.begun) == (0.0, 1.0)
    queue.leave(place, now=2.0, made=False)
    assert (queue.waiting, queue.running) == (0, 0)


def test_where_enough_images_wait_no_more_are_let_in() -> None:
    queue = WaitingQueue(4)
    first = queue.enter(3, now=0.0)
    queue.enter(1, now=0.0)
    with pytest.raises(QueueFullError, match="4 images wait already"):
        queue.enter(1, now=0.0)
    queue.admit(first, 1, now=0.0)
    queue.enter(1, now=0.0)


def test_one_place_is_enough_for_a_request_for_many() -> None:
    queue = WaitingQueue(2)
    queue.enter(1, now=0.0)
    queue.enter(5, now=0.0)
    assert queue.waiting == 6
    with pytest.raises(QueueFullError):
        queue.enter(1, now=0.0)


def test_when_to_come_again_follows_from_how_fast_images_were_made() -> None:
    queue = WaitingQueue(2)
    first, second = queue.enter(1, now=100.0), queue.enter(1, now=100.0)
    queue.admit(first, 1, now=100.0)
    queue.admit(second, 1, now=100.0)
    queue.leave(first, now=103.0, made=True)
    queue.leave(second, now=106.0, made=True)  # an image every three seconds
    queue.enter(2, now=106.0)
    with pytest.raises(QueueFullError) as error:
        queue.enter(1, now=106.0)
    assert error.value.retry_after == 6


def test_a_pause_is_not_time_that_an_image_took() -> None:
    queue = WaitingQueue(1)
    for start in (0.0, 1000.0):
        place = queue.enter(1, now=start)
        queue.admit(place, 1, now=start)
        queue.leave(place, now=start + 2.0, made=True)
    queue.enter(1, now=1002.0)
    with pytest.raises(QueueFullError) as error:
        queue.enter(1, now=1002.0)
    assert error.value.retry_after == 2


def test_before_an_image_was_made_a_long_queue_is_not_taken_for_a_long_time() -> None:
    queue = WaitingQueue(64)
    queue.enter(64, now=0.0)
    with pytest.raises(QueueFullError) as error:
        queue.enter(1, now=0.0)
    assert error.value.retry_after == 5
