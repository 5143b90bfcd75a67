"""Which models are in memory, and which must go for another: the decisions, without doing any of
them.

    residency = Residency(budget=100)
    residency.add("a", 60)
    residency.add("b", 60)
    ticket = residency.ask("a")      # it waits
    residency.step()                 # Load("a"): do it, then tell
    residency.loaded("a", 62)
    residency.pop_granted()          # [ticket]: it may use "a" until residency.leave(ticket)

The rules:

- Who asks for what is not there waits in one line, and the first in line is served first.
- Where there is no room for it, the least recently used go, idle ones before those in use. One
  that is in use goes when it is idle; until then new requests for it wait, so that it becomes
  idle.
- Nothing is loaded where the sum would pass the budget, unless nothing else is there. If it turns
  out larger than was thought, others go.
- One thing is loaded or unloaded at a time.

Pure bookkeeping: no threads, no clock. Whoever owns it sees to it that one thread calls it at a
time, and asks for the next step after every change.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class _State(enum.Enum):
    ABSENT = enum.auto()
    LOADING = enum.auto()
    LOADED = enum.auto()
    UNLOADING = enum.auto()


@dataclass(frozen=True)
class Load(Generic[Key]):
    """Load this, then call `Residency.loaded` or `Residency.failed`."""

    key: Key


@dataclass(frozen=True)
class Unload(Generic[Key]):
    """Unload this, which nobody uses, then call `Residency.unloaded`."""

    key: Key


@dataclass(eq=False)
class Ticket(Generic[Key]):
    """One who wants to use a model, or does.

    Attributes:
        key: which one; it changes where another takes its place while the ticket waits.
        is_granted: whether the model is there for it, and stays there.
    """

    key: Key
    is_granted: bool = False


@dataclass
class _Entry:
    size: int
    state: _State = _State.ABSENT
    users: int = 0
    last_granted: int = 0
    is_retired: bool = False
    """Nobody gets it any more; it goes when it is idle."""

    @property
    def is_in_memory(self) -> bool:
        return self.state is not _State.ABSENT


@dataclass
class Residency(Generic[Key]):
    """Decides what is loaded and unloaded, within a budget.

    Attributes:
        budget: bytes that all may take together; None is no limit.
    """

    budget: int | None = None
    _entries: dict[Key, _Entry] = field(default_factory=dict)
    _line: list[Ticket[Key]] = field(default_factory=list)
    """Those who wait, the first in line first."""
    _granted: list[Ticket[Key]] = field(default_factory=list)
    _grants: int = 0

    @property
    def used(self) -> int:
        """Bytes of all that is in memory, as far as known."""
        return sum(each.size for each in self._entries.values() if each.is_in_memory)

    @property
    def in_memory(self) -> list[Key]:
        """What is in memory, wholly or partly."""
        return [key for key, each in self._entries.items() if each.is_in_memory]

    def is_loaded(self, key: Key) -> bool:
        """Whether it is there to be used."""
        return self._entries[key].state is _State.LOADED

    def is_known(self, key: Key) -> bool:
        """Whether it was added, and not replaced or gone since."""
        return key in self._entries

    def size(self, key: Key) -> int:
        """Bytes that it takes, as far as known."""
        return self._entries[key].size

    def has_room_for(self, size: int) -> bool:
        """Whether so many bytes more are within the budget."""
        return self.budget is None or self.used + size <= self.budget

    def add(self, key: Key, size: int) -> None:
        """There is a model that would take so many bytes."""
        assert key not in self._entries
        self._entries[key] = _Entry(size)

    def ask(self, key: Key) -> Ticket[Key]:
        """Somebody wants to use it: at once, if the ticket that comes back is granted, and else
        when `pop_granted` says so. Every ticket must be given to `leave`."""
        ticket = Ticket(key)
        self._line.append(ticket)
        self._grant()
        return ticket

    def share(self, key: Key) -> Ticket[Key] | None:
        """Use it for a moment, past those who wait in line: a granted ticket, or None where it is
        not there. This is no use that keeps it from being the least recently used."""
        entry = self._entries.get(key)
        if entry is None or entry.state is not _State.LOADED:
            return None
        entry.users += 1
        return Ticket(key, is_granted=True)

    def leave(self, ticket: Ticket[Key]) -> None:
        """Whoever has the ticket does not use the model any more, or does not wait for it any more.
        A second time does nothing."""
        if ticket.is_granted:
            ticket.is_granted = False
            self._entries[ticket.key].users -= 1
        elif ticket in self._line:
            self._line.remove(ticket)
        self._grant()

    def replace(self, old: Key, new: Key) -> None:
        """``new``, which was added, takes the place of ``old``: those who wait for that get this,
        and those who use it may end."""
        for ticket in self._line:
            if ticket.key == old:
                ticket.key = new
        self.discard(old)
        self._grant()

    def discard(self, key: Key) -> None:
        """Forget a model for which nobody waits; where it is in memory, when it is gone."""
        assert all(ticket.key != key for ticket in self._line)
        if self._entries[key].is_in_memory:
            self._entries[key].is_retired = True
        else:
            del self._entries[key]

    def step(self) -> Load[Key] | Unload[Key] | None:
        """What to do now; None is nothing, until something changes."""
        moving = (_State.LOADING, _State.UNLOADING)
        if any(each.state in moving for each in self._entries.values()):
            return None
        for key in self._leaving():
            if not self._entries[key].users:
                self._entries[key].state = _State.UNLOADING
                return Unload(key)
        first = self._first_absent()
        if first is None:
            return None
        entry = self._entries[first.key]
        if not self.has_room_for(entry.size) and self.in_memory:
            return None
        entry.state = _State.LOADING
        return Load(first.key)

    def loaded(self, key: Key, size: int) -> None:
        """It is there, and takes so many bytes."""
        entry = self._entries[key]
        entry.state, entry.size = _State.LOADED, size
        # Whoever waited for it gets it, even those behind one for whom it must go next: it was
        # loaded for them too.
        self._grant(key)

    def failed(self, key: Key) -> list[Ticket[Key]]:
        """It could not be loaded.

        Returns:
            Those who waited for it, who wait no more.
        """
        self._vanish(key)
        waiting = [ticket for ticket in self._line if ticket.key == key]
        self._line = [ticket for ticket in self._line if ticket.key != key]
        self._grant()
        return waiting

    def unloaded(self, key: Key) -> None:
        """It is gone."""
        self._vanish(key)
        self._grant()

    def pop_granted(self) -> list[Ticket[Key]]:
        """The tickets that were granted since the last call and are still in use."""
        granted = [ticket for ticket in self._granted if ticket.is_granted]
        self._granted.clear()
        return granted

    def pop_waiting(self) -> list[Ticket[Key]]:
        """Send away all who wait: the tickets, which were not granted."""
        waiting, self._line = self._line, []
        return waiting

    def _vanish(self, key: Key) -> None:
        self._entries[key].state = _State.ABSENT
        if self._entries[key].is_retired:
            del self._entries[key]

    def _grant(self, arrived: Key | None = None) -> None:
        leaving = set(self._leaving())
        first = self._first_absent()
        is_behind = False
        left = []
        for ticket in self._line:
            is_behind = is_behind or ticket is first
            entry = self._entries[ticket.key]
            has_to_wait = is_behind and ticket.key in leaving and ticket.key != arrived
            if entry.state is _State.LOADED and not has_to_wait:
                ticket.is_granted = True
                entry.users += 1
                self._grants += 1
                entry.last_granted = self._grants
                self._granted.append(ticket)
            else:
                left.append(ticket)
        self._line = left

    def _first_absent(self) -> Ticket[Key] | None:
        """The first in line for what is not in memory."""
        for ticket in self._line:
            if not self._entries[ticket.key].is_in_memory:
                return ticket
        return None

    def _leaving(self) -> Iterator[Key]:
        """What is loaded and has to go, the first first."""
        loaded = {k: e for k, e in self._entries.items() if e.state is _State.LOADED}
        yield from (key for key, entry in loaded.items() if entry.is_retired)
        if any(each.state is _State.LOADING for each in self._entries.values()):
            return  # the turn of the next in line has not come
        staying = sorted(
            (key for key, entry in loaded.items() if not entry.is_retired),
            key=lambda key: (loaded[key].users > 0, loaded[key].last_granted),
        )
        first = self._first_absent()
        if first is not None:
            yield from self._until_within(staying, self._entries[first.key].size)
        elif staying:
            # One that is too large all alone stays: the one that was asked for last.
            staying.remove(max(staying, key=lambda key: loaded[key].last_granted))
            yield from self._until_within(staying, 0)

    def _until_within(self, candidates: Iterable[Key], more: int) -> Iterator[Key]:
        """So many of the candidates that the others, and ``more`` bytes, are within the budget."""
        if self.budget is None:
            return
        excess = more - self.budget
        for each in self._entries.values():
            is_going = each.is_retired or each.state is _State.UNLOADING
            excess += each.size if each.is_in_memory and not is_going else 0
        for key in candidates:
            if excess <= 0:
                return
            excess -= self._entries[key].size
            yield key
