"""Files of the repository that the pages link to, as pages of the site.

A page links to a file by its path in the repository, so that the link works there. On the site
the files in `PAGES` have a place of their own, and links to them are rewritten. A link to any other
file outside `docs/` stays as it is, and the strict build refuses it.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASING.md": "releasing.md",
    "SECURITY.md": "security.md",
    "benchmarks/results/full/report.json": "measured/report.json",
    "benchmarks/results/in_flight.md": "measured/in-flight.md",
    "benchmarks/results/in_flight.png": "measured/in-flight.png",
    "benchmarks/results/in_flight_paper.md": "measured/in-flight-paper.md",
    "benchmarks/results/in_flight_paper.png": "measured/in-flight-paper.png",
    "benchmarks/results/int8_on_cpu.md": "measured/int8-on-cpu.md",
    "benchmarks/results/lossy.md": "measured/lossy.md",
    "benchmarks/results/quantization.md": "measured/quantization.md",
    "benchmarks/results/soak.md": "measured/soak.md",
    "benchmarks/results/soak.svg": "measured/soak.svg",
    "benchmarks/results/soak_rude.md": "measured/soak-rude.md",
    "benchmarks/results/soak_rude.svg": "measured/soak-rude.svg",
    "benchmarks/results/tensorrt_builds.md": "measured/tensorrt-builds.md",
    "export/kdrt_export/demo/control/README.md": "explanation/demo-controlnet-card.md",
    "export/kdrt_export/demo/model/README.md": "explanation/demo-model-card.md",
    "integrations/comfyui/README.md": "explanation/comfyui-nodes.md",
}
"""Path in the repository → path below `docs/` on the site."""

_LINK = re.compile(r"(?<=\]\()(?!https?:)[^)\s#]+")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files to the site."""
    root = PurePosixPath(config.docs_dir).parent
    for path, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to their places on the site."""
    here = page.file.src_uri
    folder = PurePosixPath(_path_in_repository(here)).parent

    def on_site(link: re.Match[str]) -> str:
        place = _place_on_site(os.path.normpath(folder / link[0]))
        return link[0] if place is None else os.path.relpath(place, PurePosixPath(here).parent)

    return _LINK.sub(on_site, markdown)


def _path_in_repository(place: str) -> str:
    paths = {place: path for path, place in PAGES.items()}
    return paths.get(place, f"docs/{place}")


def _place_on_site(path: str) -> str | None:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path)
