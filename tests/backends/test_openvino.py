"""OpenVINO runs bundles, and what it compiled is kept and used only where it fits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import kdrt
from kdrt.backends import openvino_cache
from kdrt.backends.choice import known_engine
from kdrt.backends.openvino_cache import OPENVINO, keep_networks
from kdrt.backends.trust import trust_bundle
from kdrt.bundle import Bundle, remove_bundle
from kdrt.cli import run
from kdrt.errors import EngineUnavailableError, InvalidRequestError
from kdrt_engines.comparison import relative_error
from kdrt_engines.openvino.config import OpenVinoConfig, config_of
from kdrt_export.report import Silent
from tests.support.image_arrays import as_tensor
from tests.support.linked_bundle import linked_bundle
from tests.support.openvino import needs_openvino

DIMS = {"B": 1, "L": 32}
TEXT_ENCODER = [("text_encoder", DIMS)]


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Bundle:
    """A bundle of one's own, with nothing made from it."""
    return linked_bundle(demo_bundle, tmp_path / "demo")


def kept(bundle: Bundle, dims: dict[str, int] = DIMS, engine: str = "openvino") -> Path | None:
    return OPENVINO.find(bundle, "text_encoder", engine, dims)


@needs_openvino
def test_an_image_is_that_of_onnx_runtime(demo_bundle: Path) -> None:
    def latents(engine: str) -> torch.Tensor:
        pipe = kdrt.load(str(demo_bundle), engine=engine)
        return as_tensor(pipe("a red circle", seed=1, steps=2, output_type="latent").images)

    # Of both 4e-7 a step of the network; guidance and steps enlarge that.
    assert relative_error(latents("openvino"), latents("onnxruntime")) < 1e-3


@needs_openvino
def test_what_is_kept_is_for_its_sizes_and_precision(bundle: Bundle) -> None:
    (made,) = keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())
    assert kept(bundle) == made.folder / "network.blob"
    assert made.folder.parent == bundle.path / OPENVINO.folder
    assert made.record.relative_error is None
    assert OPENVINO.all(bundle) == [made]
    assert kept(bundle, {"B": 2, "L": 32}) is None
    assert kept(bundle, engine="openvino:bf16") is None
    assert keep_networks(bundle, "openvino", TEXT_ENCODER, Silent()) == []
    assert len(keep_networks(bundle, "openvino", TEXT_ENCODER, Silent(), force=True)) == 1


@needs_openvino
def test_what_a_precision_loses_is_measured_and_kept(bundle: Bundle) -> None:
    try:
        (made,) = keep_networks(bundle, "openvino:bf16", TEXT_ENCODER, Silent())
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    assert made.record.relative_error is not None
    assert 1e-4 < made.record.relative_error < 1e-1
    assert "relative error" in made.record.summary("float32")
    assert kept(bundle, engine="openvino:bf16") == made.folder / "network.blob"


@needs_openvino
@pytest.mark.parametrize("file", ["network.blob", "record.json"])
def test_what_is_damaged_is_not_used(bundle: Bundle, file: str) -> None:
    (made,) = keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())
    content = bytearray((made.folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (made.folder / file).write_bytes(content)
    assert kept(bundle) is None
    assert OPENVINO.all(bundle) == []


@needs_openvino
def test_what_no_longer_fits_is_cleared_away(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())
    mine = bundle.path / OPENVINO.folder / "my-0123456789abcdef"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    monkeypatch.setattr(openvino_cache, "processor", lambda: "another")
    assert kept(bundle) is None
    keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())
    assert not made.folder.exists()
    assert (mine / "notes.txt").exists()


@needs_openvino
def test_what_somebody_else_made_is_not_used_until_it_is_trusted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made,) = keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())
    monkeypatch.setenv("KDRT_HOME", str(tmp_path / "another"))
    assert kept(bundle) is None
    assert trust_bundle(bundle) == [made.folder]
    assert kept(bundle) is not None


@needs_openvino
def test_what_was_compiled_for_a_device_that_is_missing_is_not_used(bundle: Bundle) -> None:
    (made,) = keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())
    foreign = bundle.place(f"{OPENVINO.folder}/text_encoder-0123456789abcdef")
    shutil.copytree(made.folder, foreign)
    record = made.record.model_copy(update={"engine": "openvino-npu"})
    (foreign / "record.json").write_text(record.model_dump_json(), encoding="utf-8")
    assert trust_bundle(bundle) == [made.folder]
    assert OPENVINO.all(bundle) == [made]


@needs_openvino
def test_the_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(bundle.path)
    arguments = ["build", folder, "--engine", "openvino", "--component", "text_encoder"]
    assert run(arguments) == 0
    assert "openvino, B=1 L=32" in capsys.readouterr().out
    assert run(arguments) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert run(["inspect", folder]) == 0
    assert "OpenVINO, compiled for this machine" in capsys.readouterr().out
    assert run([*arguments, "--gpu", "sm89"]) == 2
    assert "--gpu is for TensorRT" in capsys.readouterr().err
    assert run([*arguments[:3], "openvino:int4"]) == 2
    assert "'int4' is no precision of openvino" in capsys.readouterr().err
    remove_bundle(bundle.path)
    assert not bundle.path.exists()


def test_without_openvino_one_sentence_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineUnavailableError, match=r"not installed; pip install 'kdrt\[openvi"):
        kdrt.load(bundle, engine="openvino")
    with pytest.raises(EngineUnavailableError, match="OpenVINO is not installed"):
        keep_networks(bundle, "openvino", TEXT_ENCODER, Silent())


def test_names_of_engines_with_a_precision() -> None:
    assert known_engine("openvino:bf16") == "openvino:bf16"
    for wrong in ("openvino:int4", "openvino:", "onnxruntime:bf16", "openvin"):
        with pytest.raises(InvalidRequestError):
            known_engine(wrong)
    assert config_of("openvino:f16", 2) == OpenVinoConfig("CPU", "f16", 2)
