"""The distribution: what a wheel holds, what an import costs, which versions were tested."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kdrt

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEMO_LIMIT = 12_000_000
"""The demo model's share of a wheel, in bytes."""
CONTROL_LIMIT = 3_000_000
"""That of its ControlNet."""

_NOT_INSTALLED_BY_TESTS = {"bench-peers", "gpu", "ray", "tensorrt", "tensorrt-rtx", "upscalers"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in ("kdrt", "export", "engines", "benchmarks"):
        shutil.copytree(
            ROOT / folder,
            source / folder,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"),
        )
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(target), str(source)),
        ],
        check=True,
    )
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def names(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def sources() -> set[str]:
    """Every file that belongs in the wheel, as it is named there."""
    found: set[str] = set()
    for root in (ROOT, ROOT / "export", ROOT / "engines", ROOT / "benchmarks"):
        for package in root.glob("kdrt*/__init__.py"):
            for pattern in (
                "**/*.py",
                "**/py.typed",
                "demo/model/**/*.*",
                "demo/control/*.*",
                "data/*",
                "*.html",
                "serve/page/*",
            ):
                found |= {
                    file.relative_to(root).as_posix()
                    for file in package.parent.glob(pattern)
                    if file.is_file() and "__pycache__" not in file.parts
                }
    return found


def test_a_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert names(wheel) == sources()


def test_a_wheel_has_four_typed_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in names(wheel)}
    assert tops == {"kdrt", "kdrt_bench", "kdrt_engines", "kdrt_export"}
    assert {f"{top}/py.typed" for top in tops} <= names(wheel)


def test_a_wheel_holds_the_demo_model(wheel: zipfile.ZipFile) -> None:
    model = [
        info for info in wheel.infolist() if info.filename.startswith("kdrt_export/demo/model/")
    ]
    assert any(info.filename.endswith("model_index.json") for info in model)
    assert sum(info.file_size for info in model) <= DEMO_LIMIT
    control = [
        info for info in wheel.infolist() if info.filename.startswith("kdrt_export/demo/control/")
    ]
    assert any(info.filename.endswith(".safetensors") for info in control)
    assert sum(info.file_size for info in control) <= CONTROL_LIMIT


def test_data_of_others_comes_with_its_licence(wheel: zipfile.ZipFile) -> None:
    data = {name for name in names(wheel) if name.startswith("kdrt_export/data/")}
    notice = wheel.read("kdrt_export/data/NOTICE.md").decode()
    assert "MIT License" in notice
    assert all(f"`{Path(name).name}`" in notice for name in data - {"kdrt_export/data/NOTICE.md"})


def test_a_wheel_names_version_licence_and_command(wheel: zipfile.ZipFile) -> None:
    folder = f"kdrt-{kdrt.__version__}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert f"\nVersion: {kdrt.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert wheel.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert "kdrt = kdrt.__main__:main" in wheel.read(f"{folder}/entry_points.txt").decode()


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, kdrt, kdrt.cli; code = kdrt.cli.run(['--help']); "
        "heavy = {'torch', 'numpy', 'onnxruntime', 'PIL', 'diffusers', 'transformers', 'onnx'}; "
        "sys.exit(f'loaded: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_every_extra_that_is_named_exists() -> None:
    """In messages, in pages and in what continuous integration runs."""
    places = [*ROOT.glob("*.md"), ROOT / ".ci" / "run"]
    for folder in ("kdrt", "export", "engines", "benchmarks", "docs", "examples", ".github"):
        places += [f for f in (ROOT / folder).rglob("*") if f.suffix in {".py", ".md", ".yml"}]
    named: set[str] = set()
    for place in places:
        for extras in re.findall(r"(?:kdrt|\.)\[([a-z,-]+)\]", place.read_text(encoding="utf-8")):
            named |= set(extras.split(","))
    assert {"dev", "export", "gpu", "tensorrt"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_commands_of_the_readme_install_what_they_run() -> None:
    exporter = {canonicalize_name(Requirement(line).name) for line in _extra("export")}
    assert exporter <= _installed_by("first command")
    # What .ci/run calls in the same environment.
    assert {"pytest", "pytest-xdist", "mypy", "ruff"} <= _installed_by("test command")


def test_every_direct_dependency_has_a_tested_version() -> None:
    pinned = _constraints()
    missing = [name for name in _requirements() if name not in pinned]
    assert not missing, f"tests/constraints.txt has no {', '.join(missing)}"


def test_tested_versions_lie_within_the_declared_bounds() -> None:
    pinned = _constraints()
    for name, requirement in _requirements().items():
        assert requirement.specifier.contains(pinned[name]), f"{requirement} against {pinned[name]}"


@pytest.mark.parametrize("name", ["torch", "onnxruntime", "tokenizers"])
def test_an_installed_core_dependency_satisfies_its_bound(name: str) -> None:
    assert _requirements()[name].specifier.contains(importlib.metadata.version(name))


def _extra(name: str) -> list[str]:
    """The requirements of an extra, those of the extras that it names included."""
    lines: list[str] = []
    for line in PROJECT["optional-dependencies"][name]:
        requirement = Requirement(line)
        if requirement.name == "kdrt":
            lines += [inner for extra in requirement.extras for inner in _extra(extra)]
        else:
            lines.append(line)
    return lines


def _installed_by(mark: str) -> set[str]:
    """The direct requirements that a marked command of the README installs of kdrt."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = readme.partition(f"<!-- {mark} -->")[2].partition("<!-- end -->")[0]
    installed: set[str] = set()
    for line in re.findall(r"pip install (.*?)(?: &&|$)", command, flags=re.MULTILINE):
        arguments = shlex.split(line)
        assert (ROOT / arguments[arguments.index("-c") + 1]).is_file(), "the tested versions"
        for extras in re.findall(r"\.\[(.*)\]", line):
            lines = PROJECT["dependencies"] + [r for e in extras.split(",") for r in _extra(e)]
            installed |= {canonicalize_name(Requirement(each).name) for each in lines}
    return installed


def _requirements() -> dict[str, Requirement]:
    """Core dependencies and the extras that the tests install, by canonical name."""
    lines = list(PROJECT["dependencies"])
    for extra, added in PROJECT["optional-dependencies"].items():
        if extra not in _NOT_INSTALLED_BY_TESTS:
            lines += added
    found: dict[str, Requirement] = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    del found[canonicalize_name("kdrt")]
    return found


def _constraints() -> dict[str, str]:
    text = (ROOT / "tests" / "constraints.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)==(\S+)$", text, flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}
