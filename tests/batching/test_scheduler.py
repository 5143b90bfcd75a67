"""The order of in-flight batching: each rule by an example, all of them over random arrivals."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdrt.batching.scheduler import HEAD_START, Count, Entry, Limits, Scheduler, Tick

ROOMY = Limits(rows=100, images=100)


def scheduler(
    limits: Limits | Mapping[Hashable, Limits] = ROOMY, group_ticks: int = 1000, classes: int = 100
) -> Scheduler:
    """One without the rules that a test is not about."""
    of = limits.__getitem__ if isinstance(limits, Mapping) else lambda klass: limits
    return Scheduler(limits=of, group_ticks=group_ticks, classes=classes)


def entry(image: Hashable, evaluations: int = 10, **fields: Any) -> Entry:
    return Entry(
        image, **{"klass": "k", "group": "g", "rows": 1, **fields}, evaluations=evaluations
    )


def ticks(scheduler: Scheduler, number: int) -> list[Tick]:
    made = [scheduler.next_tick() for _ in range(number)]
    assert all(made)
    return [tick for tick in made if tick]


def images(scheduler: Scheduler, number: int) -> list[set[Hashable]]:
    """What runs in the next ticks."""
    return [set(tick.images) for tick in ticks(scheduler, number)]


def finish(scheduler: Scheduler, entries: Iterable[Entry]) -> list[Hashable]:
    """Run until all that is there is done; the images in the order of their ends. The entries are
    those that are there, none of which has run."""
    left = {entry.image: entry.evaluations for entry in entries}
    ended: list[Hashable] = []
    while tick := scheduler.next_tick():
        for image in tick.images:
            left[image] -= 1
            if left[image] == 0:
                scheduler.remove(image)
                ended.append(image)
    return ended


def is_empty(scheduler: Scheduler) -> bool:
    return len(scheduler) == 0 and not any(
        value for value in vars(scheduler).values() if isinstance(value, dict | list | set)
    )


# --- one class ---------------------------------------------------------------------------------


def test_nothing_runs_when_nothing_is_there() -> None:
    assert scheduler().next_tick() is None


def test_a_lone_image_runs_in_every_tick_until_it_is_removed() -> None:
    it = scheduler()
    it.add(entry("a", evaluations=2, klass="k", group="g"))
    first, second, third = ticks(it, 3)
    assert first == Tick(klass="k", group="g", images=("a",), admitted=("a",))
    # Its evaluations are an estimate: it runs for as long as it is there.
    assert second == third == Tick(klass="k", group="g", images=("a",), admitted=())
    it.remove("a")
    assert it.next_tick() is None
    assert is_empty(it)


def test_images_of_a_class_share_a_tick_and_join_in_the_next() -> None:
    it = scheduler()
    it.add(entry("a"))
    it.add(entry("b", evaluations=4))
    assert images(it, 1) == [{"a", "b"}]
    it.add(entry("c", evaluations=50))
    (tick,) = ticks(it, 1)
    assert set(tick.images) == {"a", "b", "c"}
    assert tick.admitted == ("c",)


def test_rows_are_not_exceeded_and_what_fits_beside_a_wide_image_runs() -> None:
    it = scheduler(Limits(rows=3, images=9))
    it.add(entry("wide", rows=2))
    it.add(entry("as wide", rows=2))
    it.add(entry("narrow", rows=1))
    assert images(it, 2) == [{"wide", "narrow"}] * 2


def test_rows_can_become_fewer_but_not_fewer_than_an_image_takes() -> None:
    it = scheduler(Limits(rows=8, images=9))
    for name in "abcd":
        it.add(entry(name, rows=2))
    assert images(it, 1) == [{"a", "b", "c", "d"}]
    it.limit_rows(5)
    assert images(it, 1) == [{"a", "b"}]
    it.limit_rows(1)
    assert images(it, 1) == [{"a"}]
    it.limit_rows(100)
    assert images(it, 1) == [{"a"}]


def test_a_wider_image_is_taken_in_after_rows_became_fewer() -> None:
    it = scheduler(Limits(rows=4, images=9))
    it.add(entry("narrow", rows=1))
    it.limit_rows(1)
    it.add(entry("wide", rows=2, evaluations=1))
    assert images(it, 1) == [{"wide"}]


def test_images_that_wait_for_rows_hold_no_slot() -> None:
    it = scheduler(Limits(rows=1, images=9))
    it.add(entry("a"))
    it.add(entry("b"))
    ticks(it, 3)
    assert it.counts() == {"k": Count(waiting=1, in_flight=1)}


def test_no_more_images_are_in_flight_than_there_are_slots() -> None:
    it = scheduler(Limits(rows=9, images=2))
    for name in "abc":
        it.add(entry(name))
    assert images(it, 1) == [{"a", "b"}]
    it.add(entry("short", evaluations=1))
    assert images(it, 1) == [{"a", "b"}]
    it.remove("a")
    (tick,) = ticks(it, 1)
    assert set(tick.images) == {"b", "short"}
    assert tick.admitted == ("short",)


def test_a_short_image_passes_a_long_one_that_waits() -> None:
    it = scheduler(Limits(rows=1, images=1))
    entries = [entry("first", 9), entry("long", 9), entry("short", 8)]
    for each in entries:
        it.add(each)
    assert finish(it, entries) == ["short", "first", "long"]


def test_a_short_image_sets_a_long_one_aside_which_then_goes_on() -> None:
    it = scheduler(Limits(rows=1, images=2))
    it.add(entry("long", 50))
    ticks(it, 10)
    it.add(entry("short", 2))
    assert images(it, 2) == [{"short"}] * 2
    it.remove("short")
    (tick,) = ticks(it, 1)
    assert (tick.images, tick.admitted) == (("long",), ())


@pytest.mark.parametrize("shorter", [0, HEAD_START, HEAD_START + 1])
def test_an_image_that_runs_is_not_set_aside_for_one_hardly_shorter(shorter: int) -> None:
    it = scheduler(Limits(rows=1, images=2))
    it.add(entry("running", 30))
    ticks(it, 10)
    it.add(entry("new", 20 - shorter))
    expected = "new" if shorter > HEAD_START else "running"
    assert images(it, 3) == [{expected}] * 3


def test_only_an_image_of_the_last_tick_has_a_head_start() -> None:
    it = scheduler(Limits(rows=1, images=3))
    it.add(entry("set aside", 30))
    ticks(it, 1)
    it.add(entry("short", 2))
    ticks(it, 2)
    it.add(entry("new", 25))
    it.remove("short")
    # Due at 30 and at 3 + 25: the new one is the first to come.
    assert images(it, 1) == [{"new"}]


def test_waiting_is_never_forgotten() -> None:
    """An image that was set aside and went on does not fall behind those that came after it."""
    it = scheduler(Limits(rows=1, images=9))
    it.add(entry("old", 20))
    ticks(it, 1)
    it.add(entry("young", 20))
    it.add(entry("short", 10))
    ticks(it, 10)
    it.remove("short")
    assert images(it, 19) == [{"old"}] * 19


def test_equals_run_in_the_order_of_their_arrival() -> None:
    it = scheduler(Limits(rows=1, images=3))
    entries = [entry(image, 5) for image in "ebdac"]
    for each in entries:
        it.add(each)
    assert finish(it, entries) == [*"ebdac"]


def test_endless_short_images_do_not_keep_a_long_one_waiting() -> None:
    it = scheduler(Limits(rows=1, images=2))
    it.add(entry("long", 30))
    ran: list[Hashable] = []
    for number in range(60):
        it.add(entry(number, 1))
        (tick,) = ticks(it, 1)
        ran += tick.images
        if "long" not in tick.images:
            it.remove(*tick.images)
    # The last to pass it comes at tick 28 and is due at 29.
    assert ran == [*range(29), *["long"] * 31]


def test_a_wide_image_does_not_lose_its_slot_to_a_narrow_one_behind_it() -> None:
    it = scheduler(Limits(rows=3, images=2))
    it.add(entry("running", 10, rows=2))
    ticks(it, 1)
    it.add(entry("wide", 10, rows=2))
    it.add(entry("narrow", 50, rows=1))
    assert images(it, 1) == [{"running"}]
    it.remove("running")
    assert images(it, 1) == [{"wide", "narrow"}]


def test_where_slots_are_left_a_narrow_image_takes_the_row_that_a_wide_one_cannot() -> None:
    it = scheduler(Limits(rows=3, images=3))
    it.add(entry("running", 10, rows=2))
    ticks(it, 1)
    it.add(entry("wide", 10, rows=2))
    it.add(entry("narrow", 50, rows=1))
    assert images(it, 1) == [{"running", "narrow"}]


def test_images_that_do_not_share_run_alone_and_to_their_end() -> None:
    it = scheduler(ROOMY)
    it.add(entry("first", 50, shares=False))
    ticks(it, 1)
    it.add(entry("long", 9, shares=False))
    it.add(entry("short", 1, shares=False))
    assert images(it, 49) == [{"first"}] * 49
    it.remove("first")
    assert images(it, 1) == [{"short"}]


def test_images_keep_their_places() -> None:
    it = scheduler()
    for image in "abcd":
        it.add(entry(image))
    (tick,) = ticks(it, 1)
    assert tick.images == tuple("abcd")
    it.remove("b")
    it.add(entry("short", 1))
    (tick,) = ticks(it, 1)
    assert tick.images == ("a", "short", "c", "d")
    it.remove("a")
    (tick,) = ticks(it, 1)
    assert tick.images == ("d", "short", "c")


def test_places_are_of_the_class() -> None:
    it = scheduler(Limits(rows=2, images=3))
    it.add(entry("a", 20))
    it.add(entry("b", 20))
    it.add(entry("other", klass="other"))
    assert [tick.images for tick in ticks(it, 2)] == [("a", "b"), ("other",)]
    it.remove("a")
    it.add(entry("short", 1))
    assert [tick.images for tick in ticks(it, 1)] == [("short", "b")]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (entry("there"), "'there' is there already"),
        (entry("there", klass="other"), "'there' is there already"),
        (entry("new", rows=0), "at least one row"),
        (entry("new", 0), "at least one row"),
        (entry("new", rows=3), "needs 3 rows, class 'k' has room for 2 rows and 2 images"),
        (entry("new", klass="none"), "class 'none' has room for 2 rows and 0 images"),
        (entry("new", group="another"), "class 'k', whose images are of group 'g' and share"),
        (entry("new", shares=False), "class 'k', whose images are of group 'g' and share"),
        (entry("new", klass="unknown", rows=3), "needs 3 rows"),
    ],
)
def test_what_cannot_run_is_refused_and_leaves_no_trace(refused: Entry, message: str) -> None:
    small, none = Limits(rows=2, images=2), Limits(rows=2, images=0)
    it = scheduler({"k": small, "other": small, "unknown": small, "none": none})
    it.add(entry("there"))
    with pytest.raises(ValueError, match=message):
        it.add(refused)
    assert it.counts() == {"k": Count(1, 0)}
    it.remove("there")
    assert is_empty(it)


def test_an_unknown_image_cannot_be_removed() -> None:
    it = scheduler()
    it.add(entry("a"))
    it.remove("a")
    with pytest.raises(KeyError, match="a"):
        it.remove("a")


@pytest.mark.parametrize(("group_ticks", "classes"), [(0, 1), (1, 0)])
def test_turns_and_classes_of_none_are_refused(group_ticks: int, classes: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        scheduler(ROOMY, group_ticks, classes)


def test_an_image_says_whether_it_is_there() -> None:
    it = scheduler()
    it.add(entry("a"))
    assert "a" in it
    assert len(it) == 1
    it.remove("a")
    assert "a" not in it


def test_the_limits_of_a_class_hold_until_its_last_image_has_gone() -> None:
    asked: list[Hashable] = []

    def limits(klass: Hashable) -> Limits:
        asked.append(klass)
        return ROOMY

    it = Scheduler(limits=limits)
    for image in "ab":
        it.add(entry(image))
    ticks(it, 2)
    assert asked == ["k"]
    it.remove("a")
    it.remove("b")
    it.add(entry("c"))
    assert asked == ["k", "k"]


# --- classes and groups ------------------------------------------------------------------------


def test_classes_take_turns_by_the_tick() -> None:
    it = scheduler()
    for name in "abc":
        it.add(entry(name, klass=name))
    assert [tick.klass for tick in ticks(it, 6)] == [*"abcabc"]
    it.remove("b")
    it.add(entry("new", klass="b"))
    it.add(entry("more", klass="a"))
    assert [tick.klass for tick in ticks(it, 6)] == [*"acbacb"]


def test_an_image_is_due_by_the_ticks_of_its_class() -> None:
    """Ticks of other classes are no credit."""
    it = scheduler(Limits(rows=1, images=2))
    it.add(entry("other", klass="other"))
    it.add(entry("long", 20))
    ticks(it, 20)
    it.add(entry("short", 5))
    # Ten ticks of its class have passed: due at 20 and at 10 + 5.
    assert images(it, 2) == [{"other"}, {"short"}]


def test_groups_take_turns_of_some_ticks() -> None:
    it = scheduler(group_ticks=3)
    for group in "xyz":
        it.add(entry(group, klass=group, group=group))
    assert "".join(str(tick.group) for tick in ticks(it, 12)) == "xxxyyyzzzxxx"


def test_a_group_with_nothing_to_do_gives_way_at_once_and_the_next_has_a_whole_turn() -> None:
    it = scheduler(group_ticks=3)
    for group in "xy":
        it.add(entry(group, klass=group, group=group))
    assert [tick.group for tick in ticks(it, 2)] == ["x", "x"]
    it.remove("x")
    it.add(entry("again", klass="x", group="x"))
    assert "".join(str(tick.group) for tick in ticks(it, 6)) == "yyyxxx"


def test_a_group_alone_goes_on_and_gives_way_when_another_comes() -> None:
    it = scheduler(group_ticks=3)
    it.add(entry("x", klass="x", group="x"))
    ticks(it, 7)
    it.add(entry("y", klass="y", group="y"))
    assert "".join(str(tick.group) for tick in ticks(it, 4)) == "yyyx"


def test_a_group_that_came_meanwhile_does_not_shorten_the_turn() -> None:
    it = scheduler(group_ticks=3)
    it.add(entry("x", klass="x", group="x"))
    ticks(it, 1)
    it.add(entry("y", klass="y", group="y"))
    assert "".join(str(tick.group) for tick in ticks(it, 3)) == "xxy"


def test_the_end_of_another_group_does_not_lengthen_the_turn() -> None:
    it = scheduler(group_ticks=3)
    for group in "xyz":
        it.add(entry(group, klass=group, group=group))
    ticks(it, 2)
    it.remove("y")
    assert "".join(str(tick.group) for tick in ticks(it, 2)) == "xz"


def test_classes_of_a_group_go_on_taking_turns_in_its_next_turn() -> None:
    it = scheduler(group_ticks=1)
    for klass in "abc":
        it.add(entry(klass, klass=klass, group="x"))
    it.add(entry("y", klass="y", group="y"))
    assert [tick.klass for tick in ticks(it, 6)] == ["a", "y", "b", "y", "c", "y"]


def test_at_most_so_many_classes_are_in_flight() -> None:
    it = scheduler(classes=2)
    for name in "abc":
        it.add(entry(name, klass=name))
    assert [tick.klass for tick in ticks(it, 4)] == [*"abab"]
    it.remove("b")
    assert {tick.klass for tick in ticks(it, 2)} == {"a", "c"}


def test_while_a_class_is_kept_out_no_younger_image_is_admitted_before_it() -> None:
    it = scheduler(Limits(rows=1, images=1), classes=1)
    it.add(entry("first"))
    it.add(entry("second"))
    ticks(it, 1)
    it.add(entry("kept out", klass="other"))
    it.add(entry("younger", 1))
    it.remove("first")
    assert images(it, 1) == [{"second"}]
    it.remove("second")
    assert images(it, 3) == [{"kept out"}] * 3
    it.remove("kept out")
    assert images(it, 1) == [{"younger"}]


def test_a_place_among_the_classes_goes_to_the_one_that_waits_longest() -> None:
    it = scheduler(classes=2)
    for name in "abcd":
        it.add(entry(name, klass=name))
    ticks(it, 2)
    # Class c would have the next turn, but now class d has the oldest image.
    it.add(entry("younger", klass="c"))
    it.remove("c")
    it.remove("a")
    assert {tick.klass for tick in ticks(it, 4)} == {"b", "d"}


def test_a_group_that_is_kept_out_has_no_turn() -> None:
    it = scheduler(classes=1, group_ticks=2)
    it.add(entry("x", klass="x", group="x"))
    it.add(entry("y", klass="y", group="y"))
    assert "".join(str(tick.group) for tick in ticks(it, 5)) == "xxxxx"
    it.remove("x")
    assert "".join(str(tick.group) for tick in ticks(it, 5)) == "yyyyy"


# --- all rules over random arrivals ------------------------------------------------------------

LIMITS: dict[Hashable, Limits] = {
    "even": Limits(rows=4, images=3),
    "spare slots": Limits(rows=2, images=4),
    "odd": Limits(rows=3, images=2),
    "in turn": Limits(rows=2, images=9),
    "lora": Limits(rows=4, images=4),
    "lora in turn": Limits(rows=2, images=9),
}
IN_TURN = {"in turn", "lora in turn"}
GROUPS = {klass: "loras" if klass in {"lora", "lora in turn"} else "none" for klass in LIMITS}
CLASSES_OF_A_GROUP = 4
GROUP_TICKS = 3


@dataclass(eq=False)
class Known:
    """An image, as seen from outside.

    Attributes:
        came: the tick of all classes at its arrival, and the work that was there then.
        due: the tick of its class at which nothing that comes later may pass it any more.
        kept_out: at some time there were more classes than may be in flight.
        last: the tick of its class at which it is done at the latest, once ``due`` is past.
    """

    entry: Entry
    arrival: int
    came: tuple[int, int]
    due: int
    kept_out: bool
    ran: int = 0
    last: int | None = None

    @property
    def left(self) -> int:
        return self.entry.evaluations - self.ran


@dataclass
class Turns:
    """Who had a turn since each of those that want one had its own."""

    since: dict[Hashable, set[Hashable]] = field(default_factory=dict)

    def turn(self, whose: Hashable, wanted_by: Iterable[Hashable]) -> None:
        for other in {*wanted_by} - {whose}:
            before = self.since.setdefault(other, set())
            assert whose not in before, f"{whose} has a second turn before {other}"
            before.add(whose)
        self.since[whose] = set()

    def keep(self, present: Iterable[Hashable]) -> None:
        for gone in self.since.keys() - {*present}:
            del self.since[gone]


class Machine(RuleBasedStateMachine):
    """Images come, go and are done; after each tick all that is promised is checked."""

    classes = 2

    def __init__(self) -> None:
        super().__init__()
        self.it = scheduler(LIMITS, GROUP_TICKS, self.classes)
        self.known: dict[Hashable, Known] = {}
        self.arrivals = 0
        self.ticks = 0
        self.class_ticks = dict.fromkeys(LIMITS, 0)
        self.class_turns = Turns()
        self.group_turns = Turns()
        self.turn: tuple[Hashable, int] = (None, 0)
        self.seats: dict[Hashable, tuple[Hashable, ...]] = {}

    # What happens.

    @rule(
        klass=st.sampled_from([*LIMITS]),
        rows=st.integers(1, 2),
        evaluations=st.sampled_from([1, 2, 5, 6, 20]),
    )
    def arrive(self, klass: Hashable, rows: int, evaluations: int) -> None:
        new = Entry(self.arrivals, klass, GROUPS[klass], rows, evaluations, klass not in IN_TURN)
        self.it.add(new)
        work = evaluations + sum(known.left for known in self.known.values())
        self.known[new.image] = Known(
            new,
            self.arrivals,
            came=(self.ticks, work),
            due=self.class_ticks[klass] + evaluations + HEAD_START,
            kept_out=False,
        )
        self.arrivals += 1
        self.note_crowd()

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from([*self.known])))

    @rule(number=st.integers(1, 12))
    def run(self, number: int) -> None:
        for _ in range(number):
            self.tick()

    def tick(self) -> None:
        tick = self.it.next_tick()
        assert (tick is None) == (not self.known)
        if tick is None:
            return
        self.check_images(tick)
        self.check_order(tick)
        self.check_seats(tick)
        self.check_turns(tick)
        self.ticks += 1
        self.class_ticks[tick.klass] += 1
        for image in tick.images:
            self.known[image].ran += 1
        self.check_bounds(tick)
        for image in tick.images:
            if self.known[image].left == 0:
                self.leave(image)

    def leave(self, image: Hashable) -> None:
        self.it.remove(image)
        del self.known[image]
        present = {known.entry.klass for known in self.known.values()}
        self.class_turns.keep(present)
        self.group_turns.keep({GROUPS[klass] for klass in present})
        if self.turn[0] not in {GROUPS[klass] for klass in present}:
            self.turn = (None, 0)

    def note_crowd(self) -> None:
        if len({known.entry.klass for known in self.known.values()}) > self.classes:
            for known in self.known.values():
                known.kept_out = True

    # What is promised.

    def of(self, klass: Hashable) -> list[Known]:
        return [known for known in self.known.values() if known.entry.klass == klass]

    def able(self) -> set[Hashable]:
        """Classes that surely have something to run."""
        return {k.entry.klass for k in self.known.values() if k.ran or not k.kept_out}

    def check_images(self, tick: Tick) -> None:
        running = [self.known[image] for image in tick.images]
        assert running
        assert len({*tick.images}) == len(tick.images)
        assert {known.entry.klass for known in running} == {tick.klass}
        assert GROUPS[tick.klass] == tick.group
        assert {*tick.admitted} == {known.entry.image for known in running if not known.ran}

        limits = LIMITS[tick.klass]
        spare = limits.rows - sum(known.entry.rows for known in running)
        assert spare >= 0
        idle = [known for known in self.of(tick.klass) if known not in running]
        in_flight = sum(known.ran > 0 for known in idle) + len(running)
        slots = limits.images if running[0].entry.shares else 1
        assert in_flight <= slots
        # What is in flight and fits runs, and so does what waits if there is a slot for all.
        assert all(known.entry.rows > spare for known in idle if known.ran)
        if in_flight + sum(not known.ran for known in idle) <= slots:
            assert all(known.entry.rows > spare for known in idle if not known.kept_out)

        flying = {known.entry.klass for known in self.known.values() if known.ran}
        assert len(flying | {tick.klass}) <= self.classes

    def check_order(self, tick: Tick) -> None:
        """An image runs only with all that came before it and are no larger in any way."""
        for older, younger in combinations(self.of(tick.klass), 2):
            if (
                younger.entry.image in tick.images
                and older.entry.rows <= younger.entry.rows
                and older.entry.evaluations <= younger.entry.evaluations
                and older.entry.shares
            ):
                assert older.entry.image in tick.images

    def check_seats(self, tick: Tick) -> None:
        before = self.seats.get(tick.klass, ())
        for place, image in enumerate(before[: len(tick.images)]):
            assert tick.images[place] == image or image not in tick.images
        self.seats[tick.klass] = tick.images

    def check_turns(self, tick: Tick) -> None:
        able = self.able()
        groups = {GROUPS[klass] for klass in able}
        group, length = self.turn
        if tick.group == group:
            assert length < GROUP_TICKS or not groups - {group}
            self.turn = (group, length + 1)
        else:
            assert group is None or length >= GROUP_TICKS or group not in groups
            self.group_turns.turn(tick.group, groups)
            self.turn = (tick.group, 1)
        self.class_turns.turn(tick.klass, {klass for klass in able if GROUPS[klass] == tick.group})

    def check_bounds(self, tick: Tick) -> None:
        of_class = self.of(tick.klass)
        now = self.class_ticks[tick.klass]
        for known in of_class:
            if now == known.due:
                known.last = now + sum(other.left for other in of_class)
            if known.last is not None and not known.kept_out:
                assert now <= known.last
        # Turns of the other groups that fall between two ticks of a class.
        between = CLASSES_OF_A_GROUP + 2 * GROUP_TICKS
        for known in self.known.values():
            came, work = known.came
            rest = known.last - known.due if known.last is not None else 0
            in_class = known.entry.evaluations + HEAD_START + rest
            assert self.ticks - came <= work + between * in_class

    @invariant()
    def counts_are_right(self) -> None:
        assert len(self.it) == len(self.known)
        waiting = {klass: sum(not known.ran for known in self.of(klass)) for klass in LIMITS}
        assert self.it.counts() == {
            klass: Count(waiting[klass], len(self.of(klass)) - waiting[klass])
            for klass in LIMITS
            if self.of(klass)
        }

    def teardown(self) -> None:
        """All that is there is done in the end, and nothing of it is left."""
        for _ in range(sum(known.left for known in self.known.values())):
            self.tick()
        assert not self.known
        assert is_empty(self.it)


class RoomForAllClasses(Machine):
    classes = len(LIMITS)


class RoomForOneClass(Machine):
    classes = 1


TestFewClasses = Machine.TestCase
TestRoomForAllClasses = RoomForAllClasses.TestCase
TestRoomForOneClass = RoomForOneClass.TestCase
for case in (TestFewClasses, TestRoomForAllClasses, TestRoomForOneClass):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
