"""The folder's nodes, imported beside a fake ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.fake_comfyui import FakeComfyUI, load_nodes


@pytest.fixture
def comfyui() -> Iterator[FakeComfyUI]:
    with load_nodes() as comfyui:
        yield comfyui
