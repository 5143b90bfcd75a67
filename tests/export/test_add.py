"""Adding ControlNets and T2I-Adapters to a bundle: what an export with them would have made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdrt.backends.ort_cache import optimized
from kdrt.bundle import Bundle, Manifest, open_bundle, sha256
from kdrt.errors import KdrtError
from kdrt_export import control
from kdrt_export.add import add
from kdrt_export.errors import ExportError, SourceError, VerificationError
from tests.support.controls import ADDED, Controls


@pytest.fixture
def plain(controls: Controls, tmp_path: Path) -> Path:
    """The bundle as it was before controls were added."""
    path = Path(shutil.copytree(controls.bundle, tmp_path / "it", copy_function=os.link))
    rewrite(path, _without_controls)
    return path


def rewrite(bundle: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Write a bundle's manifest again, and drop the files that it does not name any more."""
    file = bundle / "manifest.json"
    manifest = change(Manifest.model_validate_json(file.read_text()))
    file.unlink()  # it is a link to another bundle's
    file.write_text(manifest.model_dump_json())
    for path in bundle.rglob("*"):
        relative = path.relative_to(bundle).as_posix()
        kept = relative in manifest.files or relative.startswith("engines/")
        if path.is_file() and path != file and not kept:
            path.unlink()


def _without_controls(manifest: Manifest) -> Manifest:
    components = {n: c for n, c in manifest.components.items() if not n.endswith(ADDED)}
    gone = {
        graph for n, c in manifest.components.items() if n.endswith(ADDED) for graph in c.graphs
    }
    return manifest.model_copy(
        update={
            "components": components,
            "variants": {n: v for n, v in manifest.variants.items() if "control" not in n},
            "controls": {},
            "files": {
                name: digest
                for name, digest in manifest.files.items()
                if name not in gone and not name.split("/")[1].endswith(ADDED)
            },
        }
    )


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_bundle_is_the_one_an_export_makes(controls: Controls, plain: Path) -> None:
    before, weights = contents(plain), plain / "onnx/unet/weights.bin"
    assert optimized(open_bundle(plain), "unet") is not None
    place = weights.stat().st_ino
    assert add(plain, controlnets=[controls.controlnet], t2i_adapters=[controls.adapter]) == plain

    made, expected = open_bundle(plain).manifest, open_bundle(controls.bundle).manifest
    assert made.files == expected.files
    assert made.controls == expected.controls
    assert made.variants == expected.variants
    assert made.components.keys() == expected.components.keys()
    assert weights.stat().st_ino == place
    # What was made of the plain networks is there, and still this user's.
    assert before.items() - {("manifest.json", before["manifest.json"])} <= contents(plain).items()
    bundle = open_bundle(plain)
    assert optimized(bundle, "unet") is not None
    assert optimized(bundle, "controlnet-canny_edges") is not None


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ("{folder}/sdxl", SourceError, "'sdxl' does not fit this model .* another family"),
        ("{folder}/missing", SourceError, "is no ControlNet: give a diffusers folder"),
        ("{folder}/sketch.safetensors", SourceError, "holds no ControlNet of Stable Diffusion"),
    ],
)
def test_what_does_not_fit_leaves_the_bundle(
    controls: Controls, plain: Path, asked: str, error: type[KdrtError], words: str
) -> None:
    before = contents(plain)
    with pytest.raises(error, match=words):
        add(plain, controlnets=[asked.format(folder=controls.folder)])
    assert contents(plain) == before
    assert [path.name for path in plain.parent.iterdir()] == ["it"]


def test_a_failure_in_the_middle_leaves_the_bundle(
    controls: Controls, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VerificationError("off")

    before = contents(plain)
    monkeypatch.setattr(control, "export_component", fail)
    with pytest.raises(VerificationError):
        add(plain, controlnets=[controls.controlnet])
    assert contents(plain) == before
    assert [path.name for path in plain.parent.iterdir()] == ["it"]
    assert Bundle.open(plain).manifest.controls == {}


def test_a_name_that_is_taken(controls: Controls) -> None:
    with pytest.raises(ExportError, match=r"the name 'canny_edges' is taken .* with .*:NAME"):
        add(controls.bundle, controlnets=[controls.controlnet])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: m.model_copy(
                update={"baked": m.baked.model_copy(update={"weights": "int8"})}
            ),
            "are int8, .* without --weights int8",
        ),
        (
            lambda m: m.model_copy(
                update={"files": {n: d for n, d in m.files.items() if "configs/" not in n}}
            ),
            "of an earlier version, which kept no configuration .* export the model again",
        ),
    ],
)
def test_a_unet_that_cannot_be_opened_again(
    controls: Controls, plain: Path, change: Callable[[Manifest], Manifest], words: str
) -> None:
    rewrite(plain, change)
    with pytest.raises(ExportError, match=words):
        add(plain, controlnets=[controls.controlnet])


def test_a_configuration_of_another_unet(controls: Controls, plain: Path) -> None:
    name = "configs/unet.json"
    config = json.loads((plain / name).read_text()) | {"layers_per_block": 2}
    (plain / name).unlink()
    (plain / name).write_text(json.dumps(config))
    rewrite(
        plain, lambda m: m.model_copy(update={"files": {**m.files, name: sha256(plain / name)}})
    )
    with pytest.raises(SourceError, match=r"unet of '.*'.* export the model again"):
        add(plain, t2i_adapters=[controls.adapter])
