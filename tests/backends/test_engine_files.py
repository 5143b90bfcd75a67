"""Engine files: what is not byte for byte what was built, for this network, version and GPU, is
never handed out, and the refusal says why and what to run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from kdrt import cli
from kdrt.backends.engine_files import (
    ENGINE_FILE,
    OpenedEngine,
    engine_folders,
    open_engine,
    profile_of,
)
from kdrt.backends.network_hash import network_hash
from kdrt.backends.profiles import component_profiles
from kdrt.backends.records import RECORD_FILE, EngineRecord, check_record
from kdrt.backends.trust import trust_bundle
from kdrt.build.engines import Tools, build_engines
from kdrt.bundle import Bundle
from kdrt.common.home import home, trust
from kdrt.errors import EngineRejectedError, OutputError, ShapeError
from kdrt_engines.tensorrt.engine_file import read_header
from kdrt_engines.tensorrt.flavour import TENSORRT, TENSORRT_RTX
from tests.support.engine_bundle import (
    VERSION,
    Builder,
    Listener,
    engine_bundle,
    engine_bytes,
    exported_anew,
)
from tests.support.rtx_machine import install_tensorrt
from tests.support.tiny_model import MAX_LENGTH

GPU = 89


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch, tmp_path / "installed")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return built(engine_bundle(tmp_path / "bundle"))


def built(bundle: Bundle, *names: str, capabilities: tuple[int, ...] = (86, GPU)) -> Bundle:
    build_engines(
        bundle,
        TENSORRT_RTX,
        capabilities,
        profiles=names or ("any",),
        components=["unet", "vae_decoder"],
        report=Listener(),
        tools=Tools(build=Builder()),
    )
    return bundle


def opened(bundle: Bundle, component: str = "unet", gpu: int = GPU) -> OpenedEngine:
    return open_engine(bundle, TENSORRT_RTX, component, gpu)


def rejected(bundle: Bundle, component: str = "unet", gpu: int = GPU) -> EngineRejectedError:
    with pytest.raises(EngineRejectedError) as caught:
        opened(bundle, component, gpu)
    return caught.value


def folder_of(bundle: Bundle, component: str = "unet") -> Path:
    (folder,) = engine_folders(bundle, TENSORRT_RTX, component)
    return folder


def command_in(error: Exception) -> list[str]:
    """The arguments of the command that a message names, after making sure that it parses."""
    _, text, _ = str(error).split("`")
    program, called, *arguments = shlex.split(text)
    assert (program, called) == ("kdrt", "build")
    parser = typer.main.get_group(cli.app).commands[called]
    parser.make_context(called, list(arguments)).close()
    return arguments


def test_a_good_engine_is_handed_out_whole(bundle: Bundle) -> None:
    engine = opened(bundle)
    assert bytes(engine.content) == (folder_of(bundle) / ENGINE_FILE).read_bytes()
    assert engine.spec == bundle.manifest.components["unet"].spec()
    assert engine.profiles == component_profiles(bundle.manifest, "unet")
    assert engine.runtime_cache.is_relative_to(home()), "a bundle could bring one along"
    assert engine.runtime_cache.name == f"{engine.record.sha256}-sm89.cache"
    header = read_header(engine.content)
    assert header is not None
    assert (header.version, header.compute_capabilities) == (VERSION, (86, GPU))


def test_every_flipped_byte_is_noticed(bundle: Bundle) -> None:
    path = folder_of(bundle) / ENGINE_FILE
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bad)
        assert rejected(bundle).reason == "damaged"
    path.write_bytes(good)
    opened(bundle)


def test_every_truncation_is_noticed(bundle: Bundle) -> None:
    path = folder_of(bundle) / ENGINE_FILE
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert rejected(bundle).reason == "truncated"
    path.unlink()
    assert rejected(bundle).reason == "truncated"


def test_bytes_too_many(bundle: Bundle) -> None:
    path = folder_of(bundle) / ENGINE_FILE
    path.write_bytes(path.read_bytes() + b"x")
    assert rejected(bundle).reason == "damaged"


def test_the_engine_of_something_else(bundle: Bundle) -> None:
    path = folder_of(bundle) / ENGINE_FILE
    path.write_bytes(engine_bytes((86, GPU), 5000))
    error = rejected(bundle)
    assert error.reason == "foreign"
    assert "is another engine" in str(error)


def test_the_folder_of_another_component(bundle: Bundle) -> None:
    target = folder_of(bundle)
    shutil.rmtree(target)
    shutil.copytree(folder_of(bundle, "vae_decoder"), target)
    error = rejected(bundle)
    assert error.reason == "foreign"
    assert "holds another engine (vae_decoder-" in str(error)


def test_an_engine_of_another_bundle(bundle: Bundle, tmp_path: Path) -> None:
    other = exported_anew(engine_bundle(tmp_path / "other"), "unet")
    shutil.copytree(bundle.file("engines"), other.file("engines"))
    assert rejected(other).reason == "stale"
    opened(other, "vae_decoder")


def test_stale_after_an_export(bundle: Bundle) -> None:
    again = exported_anew(bundle, "unet")
    error = rejected(again)
    assert error.reason == "stale"
    arguments = command_in(error)
    assert arguments[1:] == [
        *("--engine", "tensorrt-rtx", "--gpu", "sm86,sm89"),
        *("--profile", "any", "--component", "unet"),
    ]
    opened(again, "vae_decoder")
    opened(built(again))


def test_wrong_version(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tensorrt(monkeypatch, tmp_path / "newer", "1.8.0.1")
    error = rejected(bundle)
    assert error.reason == "wrong version"
    assert "built with version 1.7.1.116, and 1.8.0.1 is installed" in str(error)
    assert "sm86,sm89" in command_in(error)


@pytest.mark.parametrize("gpu", [80, 120])
def test_wrong_gpu(bundle: Bundle, gpu: int) -> None:
    error = rejected(bundle, gpu=gpu)
    assert error.reason == "wrong GPU"
    assert f"built for sm86, sm89, and this GPU is sm{gpu}" in str(error)
    assert f"sm{gpu}" in command_in(error)


def test_engines_of_tensorrt_have_no_header_we_know(tmp_path: Path) -> None:
    """Length and SHA-256 are checked all the same."""
    bundle = engine_bundle(tmp_path / "hopper")
    tools = Tools(build=Builder(content=lambda _: b"a file of TensorRT itself"))
    build_engines(bundle, TENSORRT, (90,), components=["unet"], report=Listener(), tools=tools)
    assert bytes(open_engine(bundle, TENSORRT, "unet", 90).content).endswith(b"itself")
    (folder,) = engine_folders(bundle, TENSORRT, "unet")
    (folder / ENGINE_FILE).write_bytes(b"a file of TensorRT Itself")
    with pytest.raises(EngineRejectedError, match=r"SHA-256 is wrong; run `kdrt build .* --here"):
        open_engine(bundle, TENSORRT, "unet", 90)


def test_none_at_all(bundle: Bundle) -> None:
    error = rejected(bundle, "text_encoder")
    assert error.reason == "missing"
    assert command_in(error)[-2:] == ["--component", "text_encoder"]


def test_every_edit_of_a_record_is_noticed(bundle: Bundle) -> None:
    """Every value of the record, changed in a way that still parses where there is one."""
    path = folder_of(bundle) / RECORD_FILE
    good = json.loads(path.read_text())
    for keys in list(_leaves(good)):
        record = json.loads(json.dumps(good))
        parent = record
        for key in keys[:-1]:
            parent = parent[key]
        value = parent[keys[-1]]
        parent[keys[-1]] = (
            not value
            if isinstance(value, bool)
            else value + 1
            if isinstance(value, (int, float))
            else f"{value}0"
        )
        path.write_text(json.dumps(record))
        assert rejected(bundle).reason == "damaged", keys


def _leaves(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    if isinstance(value, dict):
        return [leaf for key in value for leaf in _leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in _leaves(item, (*path, i))]
    return [path]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 3}'])
def test_a_record_that_is_none(bundle: Bundle, text: str) -> None:
    (folder_of(bundle) / RECORD_FILE).write_text(text)
    assert rejected(bundle).reason == "damaged"


def test_a_record_made_to_fit_another_gpu(bundle: Bundle) -> None:
    """Even with a new checksum, the folder's name and the file's header contradict it."""
    folder = folder_of(bundle)
    record = EngineRecord.model_validate_json((folder / RECORD_FILE).read_text())
    key = replace(record.key, compute_capabilities=(120,))
    forged = record.model_copy(update={"key": key}).sealed()
    (folder / RECORD_FILE).write_text(forged.model_dump_json())
    assert rejected(bundle, gpu=120).reason == "foreign"
    folder.rename(folder.with_name(key.folder()))
    assert rejected(bundle, gpu=120).reason == "untrusted"
    trust(forged.checksum)
    error = rejected(bundle, gpu=120)
    assert error.reason == "damaged"
    assert "its header is wrong" in str(error)


@pytest.mark.usefixtures("home")
def test_an_engine_of_somebody_else_is_loaded_once_it_is_trusted(bundle: Bundle) -> None:
    (Path(os.environ["KDRT_HOME"]) / "trusted").rename(bundle.path / "not trusted")
    error = rejected(bundle)
    assert error.reason == "untrusted"
    assert f"`kdrt trust {bundle.path}`" in str(error)
    assert set(trust_bundle(bundle)) == {folder_of(bundle), folder_of(bundle, "vae_decoder")}
    opened(bundle)


@pytest.mark.usefixtures("home")
def test_damage_is_not_trusted(bundle: Bundle) -> None:
    path = folder_of(bundle) / ENGINE_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineRejectedError, match="truncated"):
        trust_bundle(bundle)


@pytest.mark.parametrize("component", ["vae_decoder", "text_encoder", "no such"])
def test_a_record_of_another_known_component(bundle: Bundle, component: str) -> None:
    """Whatever its folder is called: the key has to name the component asked for."""
    record = opened(bundle).record
    check_record(bundle, record, "unet", VERSION, GPU)
    with pytest.raises(EngineRejectedError, match=f"unet is not one of {component}") as caught:
        check_record(bundle, record, component, VERSION, GPU)
    assert caught.value.reason == "foreign"


def test_an_engine_whose_name_begins_like_anothers(bundle: Bundle) -> None:
    """``unet-…`` is also how the folders of a component ``unet-…`` begin."""
    manifest = bundle.manifest
    twin = manifest.components["unet"]
    components = {**manifest.components, "unet-twin": twin}
    both = Bundle(bundle.path, manifest.model_copy(update={"components": components}))
    shutil.rmtree(folder_of(both))
    record = EngineRecord.model_validate_json(
        (folder_of(both, "vae_decoder") / RECORD_FILE).read_text()
    )
    key = replace(record.key, component="unet-twin", network=network_hash(manifest, "unet"))
    folder = folder_of(both, "vae_decoder").with_name(key.folder())
    folder.mkdir()
    forged = record.model_copy(update={"key": key}).sealed()
    (folder / RECORD_FILE).write_text(forged.model_dump_json())
    trust(forged.checksum)
    error = rejected(both)
    assert error.reason == "foreign"
    assert "the tensorrt-rtx engine of unet-twin is not one of unet" in str(error)


def test_links_in_the_place_of_engines_are_not_followed(bundle: Bundle, tmp_path: Path) -> None:
    engines = bundle.file("engines/tensorrt-rtx")
    engines.rename(tmp_path / "elsewhere")
    engines.symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("elsewhere/*"))
    assert rejected(bundle).reason == "missing"
    with pytest.raises(OutputError, match="is a link or behind one"):
        built(exported_anew(bundle, "unet"))
    assert sorted(tmp_path.rglob("elsewhere/*")) == before


def test_a_pipe_in_the_place_of_a_file_does_not_hang(bundle: Bundle) -> None:
    for name in (RECORD_FILE, ENGINE_FILE):
        path = folder_of(bundle, "vae_decoder") / name
        path.unlink()
        os.mkfifo(path)
    assert rejected(bundle, "vae_decoder").reason == "damaged"


def test_a_bad_engine_does_not_hide_a_good_one(bundle: Bundle) -> None:
    (folder_of(bundle) / RECORD_FILE).write_text("{}")
    built(bundle, "square")
    assert [profile.name for profile in opened(bundle).profiles] == ["square"]


def test_of_several_the_one_that_allows_most(bundle: Bundle) -> None:
    built(bundle, "static:64x64x1")
    assert [profile.name for profile in opened(bundle).profiles] == ["any"]
    built(bundle, "any", "static:64x64x1")
    assert [profile.name for profile in opened(bundle).profiles] == ["any", "static:64x64x1"]


def test_the_tightest_profile_is_chosen(bundle: Bundle) -> None:
    record = opened(built(bundle, "any", "square", "static:64x64x1")).record
    dims = {"B": 2, "L": MAX_LENGTH, "h": 8, "w": 8}
    assert profile_of(bundle, record, dims).name == "static:64x64x1"
    assert profile_of(bundle, record, dims | {"L": 2 * MAX_LENGTH}).name == "square"
    assert profile_of(bundle, record, dims | {"h": 4}).name == "any"


@pytest.mark.parametrize(
    "dims",
    [
        {"B": 2, "L": MAX_LENGTH, "h": 40, "w": 30},
        {"B": 12, "L": MAX_LENGTH, "h": 8, "w": 6},
        {"B": 5, "L": 5 * MAX_LENGTH, "h": 1, "w": 300},
    ],
)
def test_without_a_profile_the_command_named_builds_one(
    bundle: Bundle, dims: dict[str, int]
) -> None:
    record = opened(bundle).record
    with pytest.raises(ShapeError, match="no optimization profile takes B=") as caught:
        profile_of(bundle, record, dims)
    arguments = command_in(caught.value)
    names = [b for a, b in pairwise(arguments) if a == "--profile"]
    assert names[0] == "any"  # what could be run before still can
    engine = opened(built(bundle, *names))
    assert profile_of(bundle, engine.record, dims).allows(dims)


def test_what_no_profile_can_take(bundle: Bundle) -> None:
    record = opened(bundle, "vae_decoder").record
    with pytest.raises(ShapeError, match="no engine of vae_decoder can"):
        profile_of(bundle, record, {"B": 1, "h": 300, "w": 300})
