"""Nothing in the file of a PyTorch program is unpickled."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path

import pytest
import torch

from kdrt_engines import EngineError
from kdrt_engines.torch_eager import load_program
from kdrt_engines.torch_programs import refuse_pickles


class Evil:
    """A pickle that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program as kdrt exports it."""
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))
    exported._example_inputs = None
    path = tmp_path / "linear.pt2"
    torch.export.save(exported, path)
    return path


def with_entry(program: Path, name: str, content: bytes) -> None:
    """The archive with another content of an entry, or with one more."""
    with zipfile.ZipFile(program) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    entries[f"{root}/{name}"] = content
    with zipfile.ZipFile(program, "w", zipfile.ZIP_STORED) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)


def test_a_program_of_ours_holds_none_and_loads(program: Path) -> None:
    refuse_pickles(program)
    assert load_program(program)(torch.ones(3, 2)).shape == (3, 2)


@pytest.mark.parametrize(
    "name",
    [
        "data/sample_inputs/model.pt",
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model.so",
        "../escape",
    ],
)
def test_whatever_may_be_a_pickle_is_refused(program: Path, tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    torch.save(Evil(tmp_path / "mark"), buffer)
    with_entry(program, name, buffer.getvalue())
    with pytest.raises(EngineError, match="may be a pickle, which runs code; export it again"):
        refuse_pickles(program)
    assert not (tmp_path / "mark").exists()


def test_the_attack_is_one(program: Path, tmp_path: Path) -> None:
    """What is refused above does run in PyTorch's own loader."""
    buffer = io.BytesIO()
    torch.save((Evil(tmp_path / "mark"),), buffer)
    with_entry(program, "data/sample_inputs/model.pt", buffer.getvalue())
    with contextlib.suppress(Exception):  # whatever it makes of the result
        torch.export.load(program)
    assert (tmp_path / "mark").exists()


def test_weights_that_are_pickles_are_refused(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("weights_config.json"))
        config = json.loads(archive.read(name))
    next(iter(config["config"].values()))["use_pickle"] = True
    with_entry(program, name.partition("/")[2], json.dumps(config).encode())
    with pytest.raises(EngineError, match="may be a pickle"):
        refuse_pickles(program)


@pytest.mark.parametrize("part", [0, 10, 0.5, -1])
def test_a_damaged_archive_is_one_sentence(program: Path, part: float) -> None:
    content = program.read_bytes()
    program.write_bytes(content[: int(part * len(content)) if 0 < part < 1 else int(part)])
    with pytest.raises(EngineError, match="it is damaged"):
        refuse_pickles(program)
