from __future__ import annotations

import pytest

from kdrt.common.lru import LruCache


def test_what_was_used_last_is_kept() -> None:
    made: list[str] = []
    recent: LruCache[str, str] = LruCache(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())  # type: ignore[func-returns-value]

    assert [get(key) for key in "abab"] == list("ABAB")
    assert made == ["a", "b"]
    get("a")
    get("c")  # in place of b, which was not used for longest
    get("a")
    assert made == ["a", "b", "c"]
    get("b")
    assert made == ["a", "b", "c", "b"]
    assert len(recent) == 2


def test_a_failure_is_not_remembered() -> None:
    recent: LruCache[str, int] = LruCache(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 1) == 1
