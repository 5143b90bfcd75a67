"""Which folders `kdrt rm` may remove."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kdrt.bundle import check_removable, remove_bundle
from kdrt.errors import BundleError, OutputError


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "demo", copy_function=os.link))


def test_a_bundle_goes_with_what_was_built_from_it(bundle: Path) -> None:
    engine = bundle / "engines" / "tensorrt-rtx" / "unet-sm89-0123456789abcdef"
    engine.mkdir(parents=True)
    (engine / "record.json").touch()
    assert remove_bundle(bundle) == bundle
    assert not [*bundle.parent.iterdir()]


@pytest.mark.parametrize("changes", [{"schema_version": 99}, {"family": "none"}])
def test_a_bundle_that_cannot_be_used_can_be_removed(
    bundle: Path, changes: dict[str, object]
) -> None:
    file = bundle / "manifest.json"
    content = json.dumps(json.loads(file.read_text()) | changes)
    file.unlink()
    file.write_text(content)
    (bundle / "onnx" / "unet" / "weights.bin").unlink()
    remove_bundle(bundle)
    assert not bundle.exists()


@pytest.mark.parametrize("place", ["notes.txt", "onnx/notes.txt", "engines/torch/notes.txt"])
def test_what_kdrt_did_not_write_keeps_the_bundle(bundle: Path, place: str) -> None:
    (bundle / place).parent.mkdir(parents=True, exist_ok=True)
    (bundle / place).touch()
    before = sorted(bundle.rglob("*"))
    with pytest.raises(OutputError, match=rf"cannot remove {bundle}: it holds {place}, which kdrt"):
        remove_bundle(bundle)
    assert sorted(bundle.rglob("*")) == before


def test_a_link_inside_keeps_the_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (bundle / "engines").mkdir(exist_ok=True)
    (bundle / "engines" / "tensorrt").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="it holds engines/tensorrt"):
        remove_bundle(bundle)


def test_other_folders_are_no_bundles(tmp_path: Path, home: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(BundleError, match="there is no bundle"):
        check_removable(tmp_path / "photos")
    (tmp_path / "photos" / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        check_removable(tmp_path / "photos")


def test_a_link_to_a_bundle_is_not_followed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    with pytest.raises(OutputError, match=f"is a link to {bundle}"):
        remove_bundle(tmp_path / "link")
    assert bundle.exists()
