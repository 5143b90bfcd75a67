"""Signals that wait until somebody is ready for them."""

from __future__ import annotations

import signal
import sys
import threading
from queue import SimpleQueue

import pytest

from kdrt.cli.interrupts import Interrupt, interrupts_told


def test_the_first_waits_and_the_second_does_not() -> None:
    told: SimpleQueue[Interrupt] = SimpleQueue()
    before = signal.getsignal(signal.SIGINT)
    with interrupts_told(told.put):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert told.qsize() == 1
    with pytest.raises(KeyboardInterrupt):
        told.get().answer()


def test_sigterm_is_answered_as_it_would_have_been(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Interrupt] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        with interrupts_told(told.append):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit, match="143"):
            told[0].answer()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_is_ignored_stays_so() -> None:
    told: list[Interrupt] = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_told(told.append):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == []


def test_another_thread_leaves_signals_alone() -> None:
    found: list[object] = []

    def look() -> None:
        with interrupts_told(found.append):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
