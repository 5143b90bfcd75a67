"""Folders are put in their place whole, and what was there is not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt.folders import put_in_place


def _folder(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "file").write_text(text)
    return path


def _text(folder: Path) -> str:
    return (folder / "inner" / "file").read_text()


def test_a_folder_takes_an_empty_place(tmp_path: Path) -> None:
    put_in_place(_folder(tmp_path / ".partial", "new"), tmp_path / "target")
    assert _text(tmp_path / "target") == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_replaces_the_one_before_it_and_all_its_files(tmp_path: Path) -> None:
    old = _folder(tmp_path / "target", "old")
    (old / "more").touch()
    put_in_place(_folder(tmp_path / ".partial", "new"), old)
    assert _text(old) == "new"
    assert not (old / "more").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_what_was_there_comes_back_if_the_new_folder_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, partial = _folder(tmp_path / "target", "old"), _folder(tmp_path / ".partial", "new")
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if self == partial:
            raise OSError("no space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space left"):
        put_in_place(partial, target)
    assert _text(target) == "old"
    assert _text(partial) == "new"
