"""Profiles: the tightest that fits is chosen, whatever the profiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt_engines import ShapeError
from kdrt_engines.profiles import Profile, Range, choose_profile, limits

SYMBOLS = ("B", "h", "w")


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    return Range(*sorted(draw(st.lists(st.integers(1, 12), min_size=3, max_size=3))))


profiles = st.lists(
    st.fixed_dictionaries({symbol: ranges() for symbol in SYMBOLS}), min_size=1, max_size=5
).map(lambda found: [Profile(f"p{i}", r) for i, r in enumerate(found)])
dims = st.fixed_dictionaries({symbol: st.integers(1, 12) for symbol in SYMBOLS})


def inside(inner: Profile, outer: Profile) -> bool:
    """Whether ``outer`` allows all that ``inner`` allows, and more."""
    pairs = [(inner.ranges[s], outer.ranges[s]) for s in SYMBOLS]
    within = all(o.min <= i.min and i.max <= o.max for i, o in pairs)
    return within and any((i.min, i.max) != (o.min, o.max) for i, o in pairs)


@given(profiles, dims)
def test_the_chosen_profile_fits_and_none_inside_it_does(
    known: list[Profile], sizes: dict[str, int]
) -> None:
    fitting = [
        p for p in known if all(p.ranges[s].min <= sizes[s] <= p.ranges[s].max for s in SYMBOLS)
    ]
    if not fitting:
        with pytest.raises(
            ShapeError, match=r"no optimization profile takes .*; the engine has p0 "
        ):
            choose_profile(known, sizes)
        return
    chosen = choose_profile(known, sizes)
    assert chosen in fitting
    assert not any(inside(other, chosen) for other in fitting)


def test_among_equals_the_nearest_optimum_wins_then_the_first() -> None:
    small = Profile("small", {"h": Range(1, 2, 16)})
    large = Profile("large", {"h": Range(1, 12, 16)})
    assert choose_profile([small, large], {"h": 10}) is large
    assert choose_profile([large, small], {"h": 3}) is small
    twin = Profile("twin", {"h": Range(1, 2, 16)})
    assert choose_profile([small, twin], {"h": 3}) is small


def test_a_profile_needs_all_its_symbols_and_ignores_others() -> None:
    profile = Profile("p", {"h": Range(1, 2, 4)})
    assert not profile.allows({"w": 2})
    assert profile.allows({"h": 2, "w": 99})


def test_the_refusal_lists_what_there_is() -> None:
    known = [Profile("square", {"h": Range(8, 8, 16), "w": Range.fixed(8)})]
    with pytest.raises(ShapeError, match=r"takes h=9 w=9; the engine has square \(h=8\.\.16 w=8\)"):
        choose_profile(known, {"h": 9, "w": 9})


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 3, 2)])
def test_impossible_ranges(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ShapeError, match="1 ≤ min ≤ opt ≤ max"):
        Range(*sizes)


@given(profiles)
def test_limits_hold_together(known: list[Profile]) -> None:
    corners = limits(known)
    for end in (0, 1):
        choose_profile(known, {symbol: pair[end] for symbol, pair in corners.items()})
    choose_profile(known, {"B": corners["B"][0], "h": corners["h"][1], "w": corners["w"][0]})
