"""The table of files that an image passes, in the page on architecture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from path_of_an_image import Passed, path_of_an_image, table

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
    assert named == [each.path for each in passed], (
        f"run: python benchmarks/path_of_an_image.py demo --write {PAGE.relative_to(ROOT)}"
    )


def test_sums_leave_out_samplers_and_schedules() -> None:
    files = [
        Passed("kdrt/pipeline/pipeline.py", 600, "One."),
        Passed("kdrt/sampling/samplers/dpmpp.py", 1500, "Two."),
        Passed("kdrt/errors.py", 40, "Three."),
    ]
    assert table(files).splitlines()[-1] == (
        "Together 3 files and 2,140 lines; without samplers, schedules and errors 1 files and "
        "600 lines."
    )
