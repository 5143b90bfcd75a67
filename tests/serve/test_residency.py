"""Which models are in memory: the rules, on any course of events."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kdrt.serve.residency import Load, Residency, Ticket, Unload

SIZES = {"a": 2, "b": 3, "c": 4, "d": 7}


def residency_of(budget: int | None, **sizes: int) -> Residency[str]:
    residency: Residency[str] = Residency(budget)
    for key, size in sizes.items():
        residency.add(key, size)
    return residency


def steps(residency: Residency[str]) -> list[str]:
    """Do what there is to do, and tell of it: ``+a`` is loaded, ``-a`` unloaded."""
    done = []
    while (step := residency.step()) is not None:
        if isinstance(step, Load):
            residency.loaded(step.key, residency.size(step.key))
            done.append(f"+{step.key}")
        else:
            residency.unloaded(step.key)
            done.append(f"-{step.key}")
    return done


def used(residency: Residency[str], key: str) -> None:
    """Somebody uses it for a moment."""
    ticket = residency.ask(key)
    steps(residency)
    assert ticket.is_granted
    residency.leave(ticket)


def test_without_a_budget_everything_stays() -> None:
    residency = residency_of(None, a=10**15, b=10**15)
    used(residency, "a")
    used(residency, "b")
    assert residency.in_memory == ["a", "b"]


def test_the_least_recently_used_goes() -> None:
    residency = residency_of(2, a=1, b=1, c=1)
    for key in "aba":
        used(residency, key)
    residency.ask("c")
    assert steps(residency) == ["-b", "+c"]


def test_what_is_there_is_shared_past_those_who_wait_and_nothing_is_loaded_for_it() -> None:
    residency = residency_of(1, a=1, b=1)
    using = residency.ask("a")
    steps(residency)
    residency.ask("b")
    assert not residency.ask("a").is_granted
    assert residency.share("b") is None
    shared = residency.share("a")
    assert shared is not None
    residency.leave(using)
    assert steps(residency) == []
    residency.leave(shared)
    assert steps(residency) == ["-a", "+b"]


def test_an_idle_one_goes_before_one_in_use() -> None:
    residency = residency_of(2, a=1, b=1, c=1)
    residency.ask("a")
    steps(residency)
    used(residency, "b")
    residency.ask("c")
    assert steps(residency) == ["-b", "+c"]


def test_one_in_use_goes_when_it_is_idle_and_is_not_given_out_until_then() -> None:
    residency = residency_of(1, a=1, b=1)
    first = residency.ask("a")
    steps(residency)
    other = residency.ask("b")
    late = residency.ask("a")
    assert steps(residency) == []
    assert not late.is_granted
    residency.leave(first)
    assert steps(residency) == ["-a", "+b"]
    assert residency.pop_granted() == [other]  # the first has left
    residency.leave(other)
    assert steps(residency) == ["-b", "+a"]
    assert late.is_granted


def test_who_gives_up_makes_way_for_those_behind() -> None:
    residency = residency_of(1, a=1, b=1)
    residency.ask("a")
    steps(residency)
    other, late = residency.ask("b"), residency.ask("a")
    residency.leave(other)
    assert late.is_granted
    assert steps(residency) == []


def test_while_one_is_loaded_the_others_are_given_out() -> None:
    residency = residency_of(2, a=1, b=1, c=1)
    used(residency, "a")
    residency.ask("b")
    assert residency.step() == Load("b")
    residency.ask("c")  # which will need the place of one of them
    assert residency.ask("a").is_granted
    assert residency.step() is None


def test_all_who_wait_for_a_load_get_it_and_it_is_loaded_once() -> None:
    residency = residency_of(None, a=1)
    tickets = [residency.ask("a") for _ in range(3)]
    assert steps(residency) == ["+a"]
    assert residency.pop_granted() == tickets


def test_a_failed_load_fails_those_who_wait_and_is_tried_again() -> None:
    residency = residency_of(1, a=1, b=1)
    tickets = [residency.ask("a"), residency.ask("a")]
    assert residency.step() == Load("a")
    assert residency.failed("a") == tickets
    assert residency.step() is None
    residency.leave(tickets[0])
    residency.ask("a")
    assert steps(residency) == ["+a"]


def test_one_that_turns_out_larger_makes_others_go_and_stays_itself() -> None:
    residency = residency_of(2, a=1, b=1)
    used(residency, "a")
    ticket = residency.ask("b")
    assert residency.step() == Load("b")
    residency.loaded("b", 5)
    assert ticket.is_granted
    assert steps(residency) == ["-a"]
    residency.leave(ticket)
    assert steps(residency) == []
    assert residency.in_memory == ["b"]


def test_one_that_is_too_large_is_loaded_where_nothing_else_is() -> None:
    residency = residency_of(2, a=1, b=5)
    used(residency, "a")
    ticket = residency.ask("b")
    assert steps(residency) == ["-a", "+b"]
    assert ticket.is_granted


def test_who_came_before_is_served_before() -> None:
    residency = residency_of(2, a=1, b=1, c=2)
    first = residency.ask("a")
    steps(residency)
    large = residency.ask("c")  # for which a has to go
    early = residency.ask("a")
    residency.ask("c")
    residency.leave(large)  # those who came before the other may have it
    assert early.is_granted
    assert not residency.ask("a").is_granted
    residency.leave(first)
    residency.leave(early)
    assert steps(residency) == ["-a", "+c"]


def test_while_one_goes_no_more_have_to_than_are_needed() -> None:
    residency = residency_of(2, a=1, b=1, c=1)
    used(residency, "a")
    used(residency, "b")
    residency.ask("c")
    assert residency.step() == Unload("a")
    assert residency.ask("b").is_granted


def test_a_replacement_is_given_to_those_who_wait_and_the_old_goes_when_idle() -> None:
    residency = residency_of(None, a=1)
    old = residency.ask("a")
    steps(residency)
    residency.add("a2", 1)
    residency.replace("a", "a2")
    new = residency.ask("a2")
    assert steps(residency) == ["+a2"]
    assert new.is_granted
    residency.leave(old)
    assert steps(residency) == ["-a"]
    assert not residency.is_known("a")


def test_those_who_waited_for_the_old_get_the_new() -> None:
    residency = residency_of(1, a=1, b=1)
    waiting = residency.ask("a")
    residency.add("a2", 1)
    residency.replace("a", "a2")
    assert steps(residency) == ["+a2"]
    assert waiting.key == "a2"
    assert waiting.is_granted


def test_a_crowd_does_not_keep_another_from_its_turn() -> None:
    residency = residency_of(1, a=1, b=1)
    crowd = [residency.ask("a"), residency.ask("a")]
    steps(residency)
    other = residency.ask("b")
    for _ in range(3):  # whoever leaves comes again at once
        crowd.append(residency.ask("a"))
        residency.leave(crowd.pop(0))
        steps(residency)
    assert other.is_granted
    residency.leave(other)
    steps(residency)
    assert all(ticket.is_granted for ticket in crowd)


class AnyCourse(RuleBasedStateMachine):
    """Requests come, end and give up; loads end well or badly, and what is loaded may be larger
    than was thought."""

    def __init__(self) -> None:
        super().__init__()
        self.residency = residency_of(8, **SIZES)
        self.current = {name: name for name in SIZES}
        self.tickets: list[Ticket[str]] = []
        self.doing: Load[str] | Unload[str] | None = None
        self.has_grown = False

    @rule(name=st.sampled_from(sorted(SIZES)))
    def ask(self, name: str) -> None:
        if len(self.tickets) < 6:
            self.tickets.append(self.residency.ask(self.current[name]))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.tickets))
        self.tickets.remove(ticket)
        self.residency.leave(ticket)

    @precondition(lambda self: self.doing is None)
    @rule()
    def begin(self) -> None:
        before = set(self.residency.in_memory)
        self.doing = self.residency.step()
        if isinstance(self.doing, Load):
            size = self.residency.size(self.doing.key)
            assert not before or self.residency.used <= 8, f"{size} more do not fit"
        elif isinstance(self.doing, Unload):
            key = self.doing.key
            assert not any(each.is_granted and each.key == key for each in self.tickets)

    @precondition(lambda self: self.doing is not None)
    @rule(more=st.sampled_from([0, 0, 0, 2]), is_good=st.sampled_from([True, True, False]))
    def end(self, more: int, is_good: bool) -> None:
        self.finish(more, is_good=is_good)

    def finish(self, more: int = 0, *, is_good: bool = True) -> None:
        doing, self.doing = self.doing, None
        assert doing is not None
        if isinstance(doing, Unload):
            self.residency.unloaded(doing.key)
        elif is_good:
            self.has_grown = self.has_grown or more > 0
            self.residency.loaded(doing.key, self.residency.size(doing.key) + more)
        else:
            for ticket in self.residency.failed(doing.key):
                self.tickets.remove(ticket)

    @precondition(lambda self: len(self.current["a"]) < 3)
    @rule()
    def replace(self) -> None:
        old = self.current["a"]
        new = self.current["a"] = old + "'"
        self.residency.add(new, 2)
        self.residency.replace(old, new)

    @invariant()
    def is_within_the_budget(self) -> None:
        assert self.has_grown or self.residency.used <= 8

    @invariant()
    def what_is_used_is_loaded(self) -> None:
        for ticket in self.tickets:
            assert not ticket.is_granted or self.residency.is_loaded(ticket.key)

    def teardown(self) -> None:
        """When everybody who was served leaves, everybody is served."""
        for _ in range(100):
            if self.doing is None:
                self.doing = self.residency.step()
            if self.doing is not None:
                self.finish()
            for ticket in [each for each in self.tickets if each.is_granted]:
                self.tickets.remove(ticket)
                self.residency.leave(ticket)
        assert not self.tickets
        assert self.residency.step() is None
        assert self.residency.used <= 8 or len(self.residency.in_memory) == 1


TestAnyCourse = AnyCourse.TestCase
TestAnyCourse.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
