"""What ONNX Runtime made of a bundle is kept, and used only where it fits."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest
import torch

import kdrt
from kdrt.backends import ort_cache
from kdrt.backends.ort_cache import FOLDER, keep_optimized, optimized
from kdrt.backends.trust import trust_bundle
from kdrt.bundle import Bundle
from kdrt.cli import run
from kdrt.common.atomic_io import UNFINISHED, _host
from kdrt.common.lock import only_builder
from kdrt.errors import OutputError
from kdrt_export.report import Silent
from tests.support.image_arrays import as_tensor

FILES = ("model.onnx", "weights.bin", "invariants.onnx", "invariants.bin")


@pytest.fixture(scope="module")
def copied(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies") / "demo"
    shutil.copytree(demo_bundle, folder)
    return folder


@pytest.fixture
def bundle(copied: Path, tmp_path: Path) -> Bundle:
    """A bundle of one's own, with what the export optimised."""
    folder = tmp_path / "demo"
    shutil.copytree(copied, folder, copy_function=os.link)
    return Bundle.open(folder)


def test_an_export_keeps_all_networks(demo_bundle: Path) -> None:
    bundle = Bundle.open(demo_bundle)
    for name in bundle.manifest.components:
        made = optimized(bundle, name)
        assert made is not None
        assert made.folder.parent == demo_bundle / "engines" / "onnxruntime"
        assert (made.invariants is not None) == (name == "unet")


def test_the_images_are_the_same_without(bundle: Bundle) -> None:
    def latents() -> torch.Tensor:
        pipe = kdrt.load(bundle)
        return as_tensor(pipe("a red circle", seed=1, steps=3, output_type="latent").images)

    kept = latents()
    shutil.rmtree(bundle.path / "engines" / "onnxruntime")
    assert optimized(bundle, "unet") is None
    torch.testing.assert_close(latents(), kept, rtol=1e-5, atol=1e-5)


def test_no_image_depends_on_the_prompt_before_it(bundle: Bundle) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": "a red circle"},
        {"prompt": "a blue star"},
        {"prompt": "a red circle", "negative_prompt": "blue"},
        {"prompt": "a red circle", "original_size": (256, 256)},
        {"prompt": "a red circle", "freeu": (1.2, 1.2, 0.9, 0.9)},
        {"prompt": "a red circle", "height": 36},
        {"prompt": "a red circle"},
    ]

    def latents(pipe: kdrt.Pipeline, request: dict[str, Any]) -> torch.Tensor:
        return as_tensor(pipe(**request, seed=1, steps=2, output_type="latent").images)

    pipe = kdrt.load(bundle)
    together = [latents(pipe, request) for request in asked]
    alone = [latents(kdrt.load(bundle), request) for request in asked]
    assert all(map(torch.equal, together, alone))
    assert torch.equal(together[0], together[-1])
    assert len({tuple(each.flatten().tolist()) for each in together}) == len(asked) - 1


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((file, how) for file in FILES for how in ("changed", "cut")),
        *((file, "gone") for file in FILES),
    ],
)
def test_what_is_damaged_is_not_used(bundle: Bundle, file: str, damage: str) -> None:
    made = optimized(bundle, "unet")
    assert made is not None
    victim = made.folder / file
    content = bytearray(victim.read_bytes())
    victim.unlink()  # it is a link
    if damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    assert optimized(bundle, "unet") is None
    assert optimized(bundle, "text_encoder") is not None


def test_a_copy_with_other_dates_is_good(bundle: Bundle) -> None:
    made = optimized(bundle, "unet")
    assert made is not None
    again = made.network.read_bytes()
    made.network.unlink()
    made.network.write_bytes(again)
    assert optimized(bundle, "unet") == made


@pytest.mark.parametrize("what", ["_processor", "_runtime_version"])
def test_it_is_for_one_processor_and_one_version(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(ort_cache, what, lambda: "another")
    assert optimized(bundle, "text_encoder") is None
    (made,) = keep_optimized(bundle, ["text_encoder"], Silent())
    assert optimized(bundle, "text_encoder") == made
    monkeypatch.undo()
    assert optimized(bundle, "text_encoder") is None, "what no longer fits is cleared away"


def test_what_is_there_is_made_again_only_if_forced(bundle: Bundle) -> None:
    assert keep_optimized(bundle, ["text_encoder"], Silent()) == []
    assert len(keep_optimized(bundle, ["text_encoder"], Silent(), force=True)) == 1
    assert optimized(bundle, "text_encoder") is not None


_NO_PROCESS = 2**22 + 1
"""Above what Linux gives."""


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_two_builds_take_turns(bundle: Bundle) -> None:
    """Each clears away what killed builds left, which would be what the other has half done."""
    folder = bundle.path / "engines" / "onnxruntime"
    half_done = folder / f"{UNFINISHED}{_host()}-{_NO_PROCESS}-0-{'0' * 8}"
    mine = folder / f"{UNFINISHED}notes"
    mine.mkdir()
    notes = Notes()
    with ThreadPoolExecutor() as pool:
        with only_builder(folder, notes.note):
            half_done.mkdir()
            made = pool.submit(keep_optimized, bundle, ["text_encoder"], notes, force=True)
            while not notes.said and not made.done():
                wait([made], timeout=0.01)
            assert half_done.exists()
        assert len(made.result(60)) == 1
    assert "another build is at work" in notes.said[0]
    assert not half_done.exists()
    assert mine.exists(), "no name that kdrt gives"


@pytest.mark.parametrize("short", ["memory", "disk"])
def test_without_room_it_is_left_out(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    notes = Notes()
    needed = {"memory": "MEMORY_TO_OPTIMIZE", "disk": "_DISK_FOR_WEIGHTS"}[short]
    monkeypatch.setattr(ort_cache, needed, 1e9)
    shutil.rmtree(bundle.path / "engines" / "onnxruntime")
    assert keep_optimized(bundle, ["unet"], Silent()) == []
    assert keep_optimized(bundle, ["unet"], notes) == []
    assert short in notes.said[0]
    assert kdrt.load(bundle)("a star", steps=1).images


def test_the_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(bundle.path)
    shutil.rmtree(bundle.path / "engines" / "onnxruntime")
    assert run(["build", folder, "--engine", "onnxruntime", "--component", "vae_decoder"]) == 0
    out = capsys.readouterr().out
    assert "vae_decoder-" in out.replace("\n", "")
    assert run(["build", folder, "--engine", "onnxruntime", "--component", "vae_decoder"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(["build", folder, "--engine", "onnxruntime", "--gpu", "sm89"]) == 2
    assert "--gpu is for TensorRT" in capsys.readouterr().err
    assert run(["build", folder, "--engine", "onnxruntime", "--component", "nothing"]) == 2
    assert "has no component 'nothing'" in capsys.readouterr().err


def test_what_somebody_else_made_is_not_used_until_it_is_trusted(
    bundle: Bundle, home: Path
) -> None:
    assert optimized(bundle, "unet") is None
    assert kdrt.load(bundle)("a star", steps=1).images
    assert len(trust_bundle(bundle)) == len(bundle.manifest.components)
    assert optimized(bundle, "unet") is not None
    for folder in (bundle.path / FOLDER).glob("unet-*"):
        text_encoder = next((bundle.path / FOLDER).glob("text_encoder-*"))
        (folder / "model.onnx").unlink()
        os.link(text_encoder / "model.onnx", folder / "model.onnx")
    assert optimized(bundle, "unet") is None, "trusted, but elsewhere"


def test_what_is_behind_a_link_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "summer-0123456789abcdef"
    photos.mkdir(parents=True)
    (photos / "model.onnx").write_text("mine")
    shutil.rmtree(bundle.path / FOLDER)
    (bundle.path / FOLDER).symlink_to(photos.parent)
    with pytest.raises(OutputError, match="is a link or behind one"):
        keep_optimized(bundle, ["text_encoder"], Silent(), force=True)
    assert list(photos.iterdir()) == [photos / "model.onnx"]
    assert list(photos.parent.iterdir()) == [photos]


def test_only_what_a_build_made_is_cleared_away(bundle: Bundle, tmp_path: Path) -> None:
    mine = [bundle.path / FOLDER / name for name in ("a-note", "my-0123456789abcdef", "x")]
    for folder in mine:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    old = bundle.path / FOLDER / "unet-0123456789abcdef"
    old.mkdir()
    (old / "model.onnx").touch()
    link = bundle.path / FOLDER / "unet-0123456789abcde0"
    link.symlink_to(tmp_path)
    keep_optimized(bundle, ["text_encoder"], Silent())
    assert all((folder / "notes.txt").exists() for folder in mine)
    assert link.is_symlink()
    assert not old.exists()


def test_a_link_in_the_place_of_a_graph_is_not_written_through(
    bundle: Bundle, tmp_path: Path
) -> None:
    made = optimized(bundle, "text_encoder")
    assert made is not None
    made.folder.rename(tmp_path / "elsewhere")
    made.folder.symlink_to(tmp_path / "elsewhere")
    before = {p: p.read_bytes() for p in (tmp_path / "elsewhere").iterdir()}
    with pytest.raises(OutputError, match="is a link or behind one"):
        keep_optimized(bundle, ["text_encoder"], Silent(), force=True)
    assert {p: p.read_bytes() for p in (tmp_path / "elsewhere").iterdir()} == before


def test_a_home_that_cannot_be_written_is_said_before_the_work(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading and generating need none; what is built could not be told from a stranger's."""
    monkeypatch.setenv("KDRT_HOME", "/proc/kdrt")
    assert kdrt.load(Bundle.open(bundle.path))("a star", steps=1).images
    with pytest.raises(OutputError, match="set KDRT_HOME to a folder of your own"):
        keep_optimized(bundle, ["text_encoder"], Silent(), force=True)


def test_the_command_that_trusts(
    bundle: Bundle, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["trust", str(bundle.path)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(bundle.manifest.components)
    assert optimized(bundle, "unet") is not None
    shutil.rmtree(bundle.path / "engines")
    assert run(["trust", str(bundle.path)]) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(["trust", "nothing"]) == 2
