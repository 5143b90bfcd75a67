"""The files that an image passes, in the order in which it does, with their lines.

    python benchmarks/path_of_an_image.py demo
    python benchmarks/path_of_an_image.py demo --write docs/explanation/architecture.md

The image is the default, text to image on ONNX Runtime, in the second call of a pipeline: its
buffers are there, its prompt is new. It is made by one thread: how many there are by default, and
whether they share a batch, is a matter of the machine. A file counts if one of its functions is
called, and then all of it, comments and docstrings too. ``--write`` puts the tables between two
marks of a page.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import kdrt

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [ROOT / "kdrt", ROOT / "engines" / "kdrt_engines"]
STORY = "From the call to the image"
SAMPLERS = "Samplers, with their schedules and their noise"
UTILITIES = "General utilities called on the way, which know nothing of diffusion"
_ELSEWHERE = {
    SAMPLERS: ("kdrt/sampling/",),
    UTILITIES: (
        "kdrt/common/",
        "kdrt/errors.py",
        "engines/kdrt_engines/base.py",
        "engines/kdrt_engines/spec.py",
    ),
}

_MARKS = re.compile(r"(?<=<!-- path of an image -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Passed:
    """A file on the path: where it is, its lines, and the first sentence it says of itself."""

    path: str
    lines: int
    says: str

    @classmethod
    def read(cls, file: Path) -> Passed:
        text = file.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        sentence = re.split(r"(?<=\.)(?<! al\.)\s|\n\n", docstring, maxsplit=1)[0]
        return cls(
            file.relative_to(ROOT).as_posix(), len(text.splitlines()), " ".join(sentence.split())
        )


def path_of_an_image(bundle: str | Path) -> list[Passed]:
    """The files between a call of a pipeline and its image."""
    pipe = kdrt.load(bundle, threads=1)
    pipe("a green star", seed=1)
    with _called_files() as files:
        pipe("a red circle", seed=1)
    return [Passed.read(file) for file in files]


@contextmanager
def _called_files() -> Iterator[list[Path]]:
    """The files of this repository whose functions are called within, each once."""
    names: dict[str, None] = {}  # a set in order

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            names[frame.f_code.co_filename] = None

    files: list[Path] = []
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        called = [Path(name).resolve() for name in names]
        files += [file for file in called if any(file.is_relative_to(each) for each in PACKAGES)]


def in_tables(passed: list[Passed]) -> dict[str, list[Passed]]:
    """The files of each table, by its title: the story of the image, and what is told elsewhere."""
    tables: dict[str, list[Passed]] = {STORY: [], **{title: [] for title in _ELSEWHERE}}
    for each in passed:
        titles = [t for t, prefixes in _ELSEWHERE.items() if each.path.startswith(prefixes)]
        tables[titles[0] if titles else STORY].append(each)
    return tables


def tables(passed: list[Passed]) -> str:
    """Markdown: the tables, a row for each file, and the sums."""
    parts = [
        "\n".join(
            [
                f"**{title}**: {_sum(files)}.",
                "",
                "| file | lines | |",
                "|---|---|---|",
                *(f"| `{each.path}` | {each.lines} | {each.says} |" for each in files),
                "",
            ]
        )
        for title, files in in_tables(passed).items()
    ]
    return "\n".join([*parts, f"All together: {_sum(passed)}.", ""])


def _sum(passed: list[Passed]) -> str:
    return f"{len(passed)} files, {sum(each.lines for each in passed):,} lines"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    made = tables(path_of_an_image(arguments.bundle))
    if arguments.write is None:
        print(made)
        return
    page, count = _MARKS.subn(lambda _: f"\n{made}\n", arguments.write.read_text(encoding="utf-8"))
    if count != 1:
        sys.exit(f"{arguments.write} has no mark '<!-- path of an image -->' with an end")
    arguments.write.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
