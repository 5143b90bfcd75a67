"""The folder that Triton loads: whole or not at all, and nothing of others lost."""

from __future__ import annotations

from pathlib import Path

import pytest

import kdrt
from kdrt.bundle import Bundle, open_bundle
from kdrt.errors import InvalidRequestError, OutputError
from kdrt.serve.triton import repository
from kdrt.serve.triton.config import PARAMETERS, config_text, settings_of
from kdrt.serve.triton.repository import write_repository

SOURCE = Path(repository.__file__).with_name("model.py")


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_it_holds_the_bundle_and_can_be_written_again(bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "models" / "other" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text("somebody else's")
    folder = write_repository(bundle, tmp_path / "models")
    assert folder == tmp_path / "models" / "demo"
    assert (folder / "1" / "model.py").read_text() == SOURCE.read_text()
    copied = open_bundle(folder / "1" / "bundle")
    assert copied.manifest == bundle.manifest
    (folder / "1" / "__pycache__").mkdir()
    (folder / "1" / "__pycache__" / "model.cpython-311.pyc").touch()
    write_repository(bundle, tmp_path / "models", parameters={"max_rows": "4"})
    assert 'key: "max_rows" value { string_value: "4" }' in (folder / "config.pbtxt").read_text()
    assert other.read_text() == "somebody else's"
    assert [path.name for path in (tmp_path / "models").iterdir() if path.name[0] == "."] == []


def test_a_bundle_is_not_copied_into_itself(bundle: Bundle) -> None:
    before = files(bundle.path)
    with pytest.raises(InvalidRequestError, match="lies in the bundle"):
        write_repository(bundle, bundle.path / "models")
    assert files(bundle.path) == before


@pytest.mark.parametrize(
    "place", ["notes.txt", "config.pbtxt", "1/model.py", "1/bundle/notes.txt", "2/model.py"]
)
def test_what_others_wrote_is_not_replaced(bundle: Bundle, tmp_path: Path, place: str) -> None:
    theirs = tmp_path / "demo" / place
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    before = files(tmp_path)
    with pytest.raises(OutputError, match=r"which kdrt did not write|is not a bundle"):
        write_repository(bundle, tmp_path)
    assert files(tmp_path) == before


def test_a_failure_leaves_nothing(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_repository(bundle, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "ü", "a\n"])
def test_names_that_no_model_has(bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="choose a name with --name"):
        write_repository(bundle, tmp_path, name=name)


def test_parameters_are_the_settings_of_the_service() -> None:
    from kdrt.serve.settings import ServiceSettings

    assert settings_of({name: each.default for name, each in PARAMETERS.items()}) == (
        ServiceSettings()
    )
    given = settings_of({"max_steps": "9", "deadline": "1.5", "engine": "torch", "of": "others"})
    assert (given.limits.steps, given.deadline, given.engine) == (9, 1.5, "torch")
    with pytest.raises(InvalidRequestError, match=r"unknown parameter 'max_row'.*'max_rows'\?"):
        config_text("demo", {"max_row": "4"})
    with pytest.raises(InvalidRequestError, match="max_rows must be a number, not 'many'"):
        config_text("demo", {"max_rows": "many"})
    with pytest.raises(kdrt.InvalidRequestError, match="deadline must be seconds above 0"):
        config_text("demo", {"deadline": "0"})
