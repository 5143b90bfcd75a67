"""Messages between two processes, over a pair of pipes.

A message is a pickled object. Reading a pickle runs whatever code it names, which is safe here: the
pipes have no name that others could open, and at their ends are a process and the child that it has
started from the same installation, for the same user. Nothing that a client sends is unpickled:
clients' bodies are JSON and images, read before they get here.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from collections.abc import Callable
from typing import IO, Any


class Channel:
    """One end of a pair of pipes. Any thread may send.

    Args:
        reading: what the other end writes, buffered.
        writing: what it reads.
    """

    def __init__(self, reading: IO[bytes], writing: IO[bytes]) -> None:
        self._reading = reading
        self._writing = writing
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="kdrt-channel-out", daemon=True)
        self._writer.start()

    def receive(self) -> Any:
        """The next message, waited for; where nobody else does, as after :meth:`listen`.

        Raises:
            EOFError: the other end is closed, or its process has ended.
        """
        try:
            return pickle.load(self._reading)
        except (OSError, ValueError, pickle.UnpicklingError) as error:
            raise EOFError(f"the other process has ended: {error}") from error

    def listen(
        self, on_message: Callable[[Any], object], on_end: Callable[[], object]
    ) -> threading.Thread:
        """Call ``on_message`` with every message, and ``on_end`` after the last, in a thread of
        their own."""

        def run() -> None:
            try:
                while True:
                    on_message(self.receive())
            except EOFError:
                pass
            finally:
                on_end()

        thread = threading.Thread(target=run, name="kdrt-channel-in", daemon=True)
        thread.start()
        return thread

    def send(self, message: object) -> None:
        """Send a message, without waiting for it to be taken. To a process that has ended it is
        lost; that the process has ended is told by what is read from it.

        Raises:
            Exception: the message cannot be pickled.
        """
        self._outbox.put(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))

    def close(self, patience: float | None = None) -> None:
        """Send nothing more; the other end reads the end after what was sent before.

        Args:
            patience: seconds to wait for the other end to take it; None does not end.
        """
        self._outbox.put(None)
        self._writer.join(patience)

    def _write(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (data := self._outbox.get()) is not None:
                self._writing.write(data)
                self._writing.flush()
        with contextlib.suppress(OSError):
            self._writing.close()
