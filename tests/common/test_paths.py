"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdrt.common.home import home
from kdrt.common.paths import user_path
from kdrt.errors import InvalidRequestError


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert user_path("~/models/a.safetensors") == Path("/home/somebody/models/a.safetensors")
    assert user_path(Path("~")) == Path("/home/somebody")
    monkeypatch.setenv("KDRT_HOME", "~/kdrt")  # as from a file of settings, which no shell expands
    assert home() == Path("/home/somebody/kdrt")


@pytest.mark.parametrize("path", ["models", "./models/", "/tmp/~x", "a/~/b", "..", "\udcff.png"])
def test_other_paths_stay_as_they_are(path: str) -> None:
    assert user_path(path) == Path(path)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("~nosuchuser/x", "no home folder for ~nosuchuser"),
        ("a\0b", "zero character"),
        ("\ud800", "cannot be the name of a file"),
        ("x" * 256, "over 255 bytes"),
        ("dir/" + "é" * 128, "over 255 bytes"),
        (7, "must be a string"),
        (b"x", "must be a string"),
    ],
)
def test_what_no_file_system_can_hold_is_refused(path: object, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        user_path(path)  # type: ignore[arg-type]


@given(st.text())
def test_what_is_accepted_can_be_asked_for(text: str) -> None:
    try:
        path = user_path(text)
    except InvalidRequestError:
        return
    path.exists()
