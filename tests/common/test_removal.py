"""Folders go whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdrt.common import removal
from kdrt.common.atomic_io import UNFINISHED, clear_leftovers
from kdrt.common.removal import remove_folder
from kdrt.errors import OutputError


def test_a_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").touch()
    (tmp_path / "b").touch()
    remove_folder(tmp_path / "a")
    assert [*tmp_path.iterdir()] == [tmp_path / "b"]


def test_a_folder_that_is_not_there_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot remove .*: No such file"):
        remove_folder(tmp_path / "a")
    assert not [*tmp_path.iterdir()]


def test_of_a_killed_removal_nothing_can_be_found_and_the_rest_goes_later(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").touch()
    code = (
        "import os, shutil, sys; from pathlib import Path; from kdrt.common import removal; "
        # As if killed after the rename: the first moment in which anything is deleted.
        "shutil.rmtree = lambda _: os.kill(os.getpid(), 9); "
        "removal.remove_folder(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert done.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(UNFINISHED)
    clear_leftovers(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_what_something_is_mounted_in_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mounted(target: Path, place: Path) -> None:
        raise OutputError(f"something is mounted in {place}")

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(removal, "refuse_mounts", mounted)
    with pytest.raises(OutputError, match="is mounted"):
        remove_folder(tmp_path / "a")
    assert [*tmp_path.iterdir()] == [tmp_path / "a"]
