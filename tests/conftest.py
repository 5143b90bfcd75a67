"""What tests of every folder share: a bundle of the demo model, exported once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No test fails for taking long: the machine may be busy, or the first example import a package.
settings.register_profile("kdrt", deadline=None)
settings.load_profile("kdrt")


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The ``KDRT_HOME`` of tests that do not ask for one of their own."""
    home = tmp_path_factory.mktemp("kdrt-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRT_HOME", str(home))
        yield home


@pytest.fixture(scope="session")
def demo_home(session_home: Path) -> Path:
    """A ``KDRT_HOME`` that holds one bundle, ``demo``. Do not write into it."""
    from kdrt_export.stage import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDRT_HOME", str(session_home))
        export("demo")
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
