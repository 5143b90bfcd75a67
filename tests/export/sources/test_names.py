"""The names that sources are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdrt_export.errors import ExportError
from kdrt_export.sources.names import split_name


def test_what_comes_after_a_file_is_its_name(tmp_path: Path) -> None:
    file = tmp_path / "lines.safetensors"
    file.touch()
    assert split_name(str(file)) == (str(file), None)
    assert split_name(f"{file}:edges") == (str(file), "edges")
    # A file of a repository on the hub has a colon too.
    assert split_name("owner/name:Lines.safetensors") == ("owner/name:Lines.safetensors", None)


@pytest.mark.parametrize("name", ["Edges", "..", "", "-a", "a" * 42])
def test_what_is_no_name_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExportError, match=f"{name!r} is no name; use small letters"):
        split_name(f"{tmp_path}:{name}")
