"""Which images run in the next UNet run: the order of in-flight batching, and nothing else.

Its unit of time is the *tick*: one UNet run, in which each image that takes part makes one
evaluation. Images of one *class* can share a tick. Classes of one *group* share weights (a set of
LoRAs); to change the group costs seconds. An image waits, is in flight from its first tick on, and
leaves when it is removed. In flight it holds a slot, in ticks without it too.

Four rules:

1. Within a class the image that is due first runs first, as many as there are rows. It is due when
   it would be done had it run in every tick of its class since it came: at its arrival plus its
   evaluations. So a short image passes a long one, but no image that came after the long one was
   due. Waiting images take free slots in the same order.
2. An image that runs is set aside only for one that is due more than ``HEAD_START`` ticks earlier.
3. Classes of a group take turns by the tick, groups by ``group_ticks`` ticks.
4. Images are in flight in at most ``classes`` classes. While a class waits for a place among them,
   only images older than its oldest are admitted anywhere, so that places become free.

Nobody starves. Let *K* be the tick of its class at which an image is due, plus ``HEAD_START``.
From then on every tick of the class makes an evaluation of an image that was there at *K*, because
no image that comes later is placed before one of those. So the image is done at the latest at *K*
plus all evaluations that were left at *K*, in ticks of its class, counted from when rule 4 lets it
in; and while rule 4 keeps it out, every tick makes an evaluation of an image that was there when it
came. Images that came with an estimate count with what they take in truth.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import NamedTuple

HEAD_START = 4
"""Ticks by which an image that runs counts as due earlier. Setting one image aside and taking
another in copies rows. Simulated with requests of 4 to 50 steps at 90 % load, 4 saves one in seven
of these changes and costs the median latency 1 %; 16 saves two in three and costs 7 %."""

GROUP_TICKS = 64
"""Ticks of a group's turn: a request of 50 steps that begins with the turn ends within it."""

CLASSES = 8
"""Classes with images in flight. Each holds device memory for its slots."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image that is to be made.

    Attributes:
        image: its name; no other image of the scheduler has it.
        klass: images of a class can share a UNet run.
        group: classes of a group share weights. A class belongs to one group.
        rows: the most rows of a UNet run that it takes; see `kdrt.denoise.parts`.
        evaluations: ticks that it needs; for samplers that choose their own steps an estimate.
        shares: False where only one image of the class can be in flight. It is then made from
            start to end before the next of its class.
    """

    image: Hashable
    klass: Hashable
    group: Hashable
    rows: int
    evaluations: int
    shares: bool = True


class Limits(NamedTuple):
    """What a class has room for.

    Attributes:
        rows: of a UNet run. No more than the device gains from: once the time of a run grows with
            its rows, images that share it all end late (`benchmarks/results/in_flight_paper.md`).
        images: in flight, the slots. With more slots than fit into a run, a short image need not
            wait until a long one is done.
    """

    rows: int
    images: int


@dataclass(frozen=True, slots=True)
class Tick:
    """One UNet run.

    Attributes:
        klass: the class of all its images.
        group: the group of that class.
        images: those that run. One that ran in the previous tick of its class keeps its place, if
            there still is such a place.
        admitted: those of them that run for the first time and need a slot, in order of arrival.
    """

    klass: Hashable
    group: Hashable
    images: tuple[Hashable, ...]
    admitted: tuple[Hashable, ...]


class Count(NamedTuple):
    """Images of a class."""

    waiting: int
    in_flight: int


class Scheduler:
    """Says for one tick after the other what runs.

    Not thread-safe. A call takes time in proportion to the number of images at most.

    Args:
        limits: of a class. Asked when the first image of a class arrives; held while there is any.
        group_ticks: ticks of a group's turn while another group has something to run.
        classes: most classes with images in flight.
    """

    def __init__(
        self,
        *,
        limits: Callable[[Hashable], Limits],
        group_ticks: int = GROUP_TICKS,
        classes: int = CLASSES,
    ) -> None:
        if group_ticks < 1 or classes < 1:
            raise ValueError("group_ticks and classes must be at least 1")
        self._limits = limits
        self._group_ticks = group_ticks
        self._most_classes = classes
        self._images: dict[Hashable, _Image] = {}
        self._classes: dict[Hashable, _Class] = {}
        # Both in order of turns, the next one first.
        self._groups: dict[Hashable, dict[Hashable, _Class]] = {}
        self._arrivals = 0
        self._ticks_of_turn = 0
        self._all_of: _Class | None = None
        """The class whose next tick is its last one, as all images that there are ran in it. So a
        request that is alone costs next to nothing here."""

    def __len__(self) -> int:
        """Images that wait or are in flight."""
        return len(self._images)

    def __contains__(self, image: Hashable) -> bool:
        return image in self._images

    def counts(self) -> dict[Hashable, Count]:
        """How many images wait and are in flight, of each class that has any; from any thread."""
        return {
            name: Count(len(klass.waiting), len(klass.in_flight))
            for name, klass in list(self._classes.items())
        }

    def add(self, entry: Entry) -> None:
        """Let an image wait for its turn.

        Raises:
            ValueError: the image is there already; it can never run, because it has more rows than
                its class has room for; or it contradicts the other images of its class.
        """
        if entry.image in self._images:
            raise ValueError(f"image {entry.image!r} is there already")
        if entry.rows < 1 or entry.evaluations < 1:
            raise ValueError("an image needs at least one row and one evaluation")
        self._all_of = None
        klass = self._classes.get(entry.klass) or _Class(entry, self._limits(entry.klass))
        klass.check(entry)
        self._classes[entry.klass] = klass
        self._groups.setdefault(entry.group, {})[entry.klass] = klass
        self._images[entry.image] = klass.add(entry, self._arrivals)
        self._arrivals += 1

    def remove(self, image: Hashable) -> None:
        """Let an image go that is finished, cancelled or failed: it is in no later tick.

        Raises:
            KeyError: there is no such image.
        """
        gone = self._images.pop(image)
        self._all_of = None
        klass = self._classes[gone.entry.klass]
        klass.remove(gone)
        if klass.waiting or klass.in_flight:
            return
        del self._classes[klass.name]
        group = self._groups[klass.group]
        del group[klass.name]
        if not group:
            if klass.group == next(iter(self._groups)):
                self._ticks_of_turn = 0
            del self._groups[klass.group]

    def limit_rows(self, rows: int) -> None:
        """From now on runs of the classes that have images have no more rows than that, or than
        one of their images takes."""
        self._all_of = None
        for klass in self._classes.values():
            klass.limit_rows(rows)

    def next_tick(self) -> Tick | None:
        """What runs next, and count it as run; None if no image is there."""
        if not self._images:
            return None
        if self._all_of is not None:
            self._ticks_of_turn += 1
            return self._all_of.tick_again()
        before = self._admits_before()
        group = self._group_on_turn(before)
        klass = next(klass for klass in group.values() if klass.can_run(before))
        # To the end: the other classes of the group come first.
        group[klass.name] = group.pop(klass.name)
        self._ticks_of_turn += 1
        tick = klass.tick(before)
        if len(tick.images) == len(self._images):
            self._all_of = klass
        return tick

    def _admits_before(self) -> float:
        """Only images that arrived before this one may be admitted; infinity if all may."""
        if len(self._classes) <= self._most_classes:
            return inf
        outside = sorted(k.oldest_waiting() for k in self._classes.values() if not k.in_flight)
        free = self._most_classes - (len(self._classes) - len(outside))
        return outside[free] if free < len(outside) else inf

    def _group_on_turn(self, before: float) -> dict[Hashable, _Class]:
        """The group that runs, moved to the front."""
        able = {
            name
            for name, classes in self._groups.items()
            if any(klass.can_run(before) for klass in classes.values())
        }
        # Of the images that are there the oldest may always be admitted.
        assert able, "no group can run"
        turn_is_over = self._ticks_of_turn >= self._group_ticks
        while True:
            name = next(iter(self._groups))
            if name in able and not (turn_is_over and len(able) > 1):
                return self._groups[name]
            self._groups[name] = self._groups.pop(name)
            self._ticks_of_turn = 0
            turn_is_over = False


@dataclass(slots=True, eq=False)
class _Image:
    """An image, with its place in the order of its class.

    Attributes:
        arrival: how many came before it, in all classes.
        due: the tick of its class after which it is done if it never waits.
        ran: the last tick of its class in which it ran; None while it waits.
    """

    entry: Entry
    arrival: int
    due: int
    ran: int | None = None


def _order(image: _Image) -> tuple[int, int]:
    return image.due, image.arrival


class _Class:
    """The images of a class: the waiting ones by `_order`, those in flight, and its ticks."""

    def __init__(self, first: Entry, limits: Limits) -> None:
        self.name = first.klass
        self.group = first.group
        self.shares = first.shares
        self.rows = self._most_rows = limits.rows
        self.slots = limits.images if first.shares else 1
        self.waiting: list[_Image] = []
        self.in_flight: list[_Image] = []
        self._ticks = 0
        self._ran: list[_Image] = []
        self._again = Tick(self.name, self.group, (), ())

    def check(self, entry: Entry) -> None:
        """Raises ValueError if the entry cannot be one of this class."""
        if entry.rows > self._most_rows or self.slots < 1:
            raise ValueError(
                f"image {entry.image!r} needs {entry.rows} rows, class {self.name!r} has room for "
                f"{self._most_rows} rows and {self.slots} images"
            )
        if (entry.group, entry.shares) != (self.group, self.shares):
            raise ValueError(
                f"image {entry.image!r} is of class {self.name!r}, whose images are of group "
                f"{self.group!r} and {'share' if self.shares else 'do not share'} runs"
            )

    def limit_rows(self, rows: int) -> None:
        largest = max(image.entry.rows for image in (*self.waiting, *self.in_flight))
        self.rows = max(largest, min(self.rows, rows))

    def add(self, entry: Entry, arrival: int) -> _Image:
        self.rows = max(self.rows, entry.rows)
        image = _Image(entry, arrival, self._ticks + entry.evaluations)
        insort(self.waiting, image, key=_order)
        return image

    def remove(self, image: _Image) -> None:
        if image.ran is None:
            del self.waiting[bisect_left(self.waiting, _order(image), key=_order)]
        else:
            self.in_flight.remove(image)

    def oldest_waiting(self) -> int:
        return min(image.arrival for image in self.waiting)

    def can_run(self, before: float) -> bool:
        return bool(self.in_flight) or self.oldest_waiting() < before

    def tick(self, before: float) -> Tick:
        """The next tick, in which only images that arrived before ``before`` are admitted."""
        free = self.slots - len(self.in_flight)
        admissible = (image for image in self.waiting if image.arrival < before)
        # One candidate for each free slot, whether or not there are rows for it: an image that
        # needs two rows is not to lose its slot to one behind it that needs one.
        candidates = [*self.in_flight, *islice(admissible, free)]
        rows = self.rows
        chosen = []
        for image in sorted(candidates, key=self._rank):
            if image.entry.rows <= rows:
                rows -= image.entry.rows
                chosen.append(image)
        admitted = []
        for image in chosen:
            if image.ran is None:
                self.remove(image)
                self.in_flight.append(image)
                admitted.append(image)
        self._ticks += 1
        for image in chosen:
            image.ran = self._ticks
        self._ran = _seated(chosen, self._ran)
        images = _names(self._ran)
        self._again = Tick(self.name, self.group, images, ())
        return Tick(self.name, self.group, images, _names(admitted))

    def tick_again(self) -> Tick:
        """The next tick where it is the last one once more."""
        self._ticks += 1
        for image in self._ran:
            image.ran = self._ticks
        return self._again

    def _rank(self, image: _Image) -> tuple[int, int]:
        due, arrival = _order(image)
        return due - HEAD_START * (image.ran == self._ticks), arrival


def _seated(chosen: Sequence[_Image], before: Sequence[_Image]) -> list[_Image]:
    """The chosen ones, each in its place of ``before`` if there is such a place now; the others
    take what places are left in their order."""
    stay = set(before[: len(chosen)]) & set(chosen)
    others = iter([image for image in chosen if image not in stay])
    return [
        before[place] if place < len(before) and before[place] in stay else next(others)
        for place in range(len(chosen))
    ]


def _names(images: Sequence[_Image]) -> tuple[Hashable, ...]:
    return tuple(image.entry.image for image in images)
