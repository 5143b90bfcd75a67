"""What users write passes type checkers in their strictest settings, in an editable install."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests/support/typed_script.py"
WRONG = """
import kdrt

pipe = kdrt.load("demo")
pipe("a", stepz=4)
pipe("a", steps="4")
pipe.generate(kdrt.Request(prompt="a", width="wide"))
pipe("a").images[0].sabe("a.png")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which kdrt is installed as editable."""
    folder = tmp_path_factory.mktemp("editable")
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    build = "import hatchling.build; hatchling.build.build_editable(__import__('sys').argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=ROOT, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


@pytest.fixture
def scripts(tmp_path: Path) -> tuple[Path, Path]:
    """One that is right, and one with a mistake on each line from the fifth on."""
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(SCRIPT.read_text())
    wrong.write_text(WRONG)
    return right, wrong


def test_mypy(scripts: tuple[Path, Path], tmp_path: Path, python: Path) -> None:
    right, wrong = scripts
    command = [sys.executable, "-m", "mypy", "--strict", "--output", "json"]
    cache = ROOT / ".mypy_cache" / "scripts"
    done = subprocess.run(
        [*command, f"--cache-dir={cache}", f"--python-executable={python}", right.name, wrong.name],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [each for each in found if each["severity"] == "error"]
    assert {each["file"] for each in errors} == {wrong.name}, done.stdout + done.stderr
    assert {each["line"] for each in errors} == {5, 6, 7, 8}


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")
def test_pyright(scripts: tuple[Path, Path], tmp_path: Path, python: Path) -> None:
    settings = {"include": [path.name for path in scripts], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", str(python)],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    errors = [each for each in found if each["severity"] == "error"]
    assert {Path(each["file"]).name for each in errors} == {"wrong.py"}, done.stdout + done.stderr
    assert {each["range"]["start"]["line"] + 1 for each in errors} == {5, 6, 7, 8}
