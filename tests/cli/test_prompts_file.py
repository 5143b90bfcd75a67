"""Prompts from a file, and what was typed that is none."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from kdrt.cli.prompts_file import as_text, given_prompts, read_prompts
from kdrt.common.validation import MAX_TEXT
from kdrt.errors import InvalidRequestError


def written(folder: Path, content: bytes) -> Path:
    path = folder / "prompts.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_line_is_a_prompt(tmp_path: Path, newline: bytes, mark: bytes) -> None:
    lines = ["a café at dusk", "", "# a comment", "  # another", "  a [red] ball, #1 ", " "]
    file = written(tmp_path, mark + newline.join(line.encode() for line in lines))
    assert read_prompts(file) == ["a café at dusk", "a [red] ball, #1"]


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("a ●\nb".encode())))
    assert given_prompts([], Path("-")) == ["a ●", "b"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "there is no prompt in"),
        (b"\n# only this\n", "write one on each line"),
        (b"a\nb\xe9\n", "line 2 of .* is not UTF-8"),
        ("a cat".encode("utf-16"), "line 1 of .* is not UTF-8"),
        (b"a\n" + b"b" * (MAX_TEXT + 1), f"line 2 of .* is {MAX_TEXT + 1} characters long"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        read_prompts(written(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot read .*: No such file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(InvalidRequestError, match=r"cannot read .*: Is a directory"):
        read_prompts(tmp_path)
    with pytest.raises(InvalidRequestError, match="larger than 64 MB"):
        read_prompts(Path("/dev/zero"))


@pytest.mark.parametrize("typed", ["-", "@prompts.txt", "@folder/prompts"])
def test_names_of_files_are_no_prompts(typed: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"is not a prompt.*--prompts-file"):
        given_prompts(["a cat", typed], None)


@pytest.mark.parametrize("typed", ["", "@", "a - b", "@artist, a cat", "--", "me@example.org"])
def test_other_text_is_a_prompt(typed: str) -> None:
    assert given_prompts([typed], None) == [typed]


def test_prompts_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="give only one"):
        given_prompts(["a"], written(tmp_path, b"b"))
    with pytest.raises(InvalidRequestError, match=r"there is no prompt.*--prompts-file"):
        given_prompts([], None)


def test_half_a_character_is_left_for_the_check_of_the_request() -> None:
    assert as_text("a \ud800") == "a \ud800"
