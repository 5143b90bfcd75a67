"""What tests of every folder share: tiny models, and a bundle of the demo model, each made once."""

from __future__ import annotations

import functools
import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import settings

from tests.oracles import kdiffusion
from tests.support.once import made_once
from tests.support.tiny_bundles import TinyModel as TinyBundle
from tests.support.tiny_model import TinyModel, tiny_model

# No test fails for taking long: the machine may be busy, or the first example import a package.
settings.register_profile("kdrt", deadline=None)
settings.load_profile("kdrt")


def pytest_collection_finish() -> None:
    """Full collections of garbage took a seventh of the tests' time: each walked the million
    objects of PyTorch and of what pytest has collected."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, 100)


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The ``KDRT_HOME`` of tests that do not ask for one of their own."""
    home = tmp_path_factory.mktemp("kdrt-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRT_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def demo_home(session_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``KDRT_HOME`` that holds one bundle, ``demo``. Do not write into it."""
    from kdrt_export.stage import export

    def make(home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KDRT_HOME", str(home))
            export("demo")

    made = made_once(tmp_path_factory, "demo", make)
    shutil.copytree(made, session_home, dirs_exist_ok=True)
    return session_home


@pytest.fixture(scope="session")
def demo_bundle(demo_home: Path) -> Path:
    """The folder of the demo model's bundle. Do not write into it."""
    return demo_home / "bundles" / "demo"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``KDRT_HOME`` for one test."""
    folder = tmp_path / "home"
    monkeypatch.setenv("KDRT_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These tensors are too small to share: more threads only cost time. And with several threads
    sums are split by their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sdxl(tmp_path: Path) -> TinyModel:
    return tiny_model(tmp_path, "sdxl")


@pytest.fixture
def sd(tmp_path: Path) -> TinyModel:
    return tiny_model(tmp_path, "sd")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyBundle]:
    """``tiny_models("sdxl")``: one model a family and session. Do not write into it."""

    @functools.cache
    def tiny(family: str) -> TinyBundle:
        home = made_once(
            tmp_path_factory, f"tiny-{family}", lambda home: TinyBundle.make(family, home)
        )
        return TinyBundle.made(family, home)

    return tiny


@pytest.fixture(params=["sd", "sdxl"])
def model(request: pytest.FixtureRequest, tiny_models: Callable[[str], TinyBundle]) -> TinyBundle:
    return tiny_models(request.param)


@pytest.fixture(scope="session")
def kd() -> ModuleType:
    """k-diffusion's sampling module."""
    try:
        return kdiffusion.load("sampling")
    except kdiffusion.OracleUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def kd_external() -> ModuleType:
    """k-diffusion's model wrappers."""
    try:
        return kdiffusion.load("external")
    except kdiffusion.OracleUnavailableError as error:
        pytest.skip(str(error))
