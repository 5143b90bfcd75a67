"""The table of files that an image passes, in the page on architecture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from path_of_an_image import Passed, in_tables, path_of_an_image, tables

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"


@pytest.fixture(scope="module")
def passed(demo_bundle: Path) -> list[Passed]:
    return path_of_an_image(demo_bundle)


def test_an_image_passes_from_the_call_to_the_pixels(passed: list[Passed]) -> None:
    paths = [each.path for each in passed]
    story = [
        "kdrt/pipeline/pipeline.py",
        "kdrt/request/resolve.py",
        "kdrt/prompt/encoder.py",
        "kdrt/sampling/executor.py",
        "kdrt/images/output.py",
    ]
    assert [path for path in paths if path in story] == story
    assert "engines/kdrt_engines/onnxruntime/engine.py" in paths
    assert len(set(paths)) == len(paths)
    for each in passed:
        assert each.lines == len((ROOT / each.path).read_text(encoding="utf-8").splitlines())
        assert each.says.endswith((".", ":"))


def test_the_page_names_these_files(passed: list[Passed]) -> None:
    part = PAGE.read_text(encoding="utf-8").partition("<!-- path of an image -->")[2]
    named = re.findall(r"^\| `([\w/]+\.py)` \| \d+ \|", part.partition("<!-- end -->")[0], re.M)
    assert named == [each.path for files in in_tables(passed).values() for each in files], (
        f"run: python benchmarks/path_of_an_image.py demo --write {PAGE.relative_to(ROOT)}"
    )


def test_each_file_counts_in_one_table() -> None:
    files = [
        Passed("kdrt/pipeline/pipeline.py", 600, "One."),
        Passed("kdrt/common/lru.py", 40, "Two."),
        Passed("kdrt/sampling/samplers/dpmpp.py", 1500, "Three."),
        Passed("engines/kdrt_engines/onnxruntime/engine.py", 200, "Four."),
        Passed("engines/kdrt_engines/base.py", 60, "Five."),
    ]
    lines = tables(files).splitlines()
    assert [line for line in lines if "lines" in line and not line.startswith("|")] == [
        "**From the call to the image**: 2 files, 800 lines.",
        "**Samplers, with their schedules and their noise**: 1 files, 1,500 lines.",
        "**General utilities called on the way, which know nothing of diffusion**: 2 files, "
        "100 lines.",
        "All together: 5 files, 2,400 lines.",
    ]
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == [
        files[index].path for index in (0, 3, 2, 1, 4)
    ]
