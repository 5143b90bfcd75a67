"""``kdrt add``: arguments and refusals. What it does has tests beside the exporter's."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdrt.errors import ExportError
from tests.support.command_line import Cli


class Stub(ModuleType):
    """Stands for ``kdrt_export.add``."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__("kdrt_export.add")
        self.error = error
        self.called: dict[str, Any] = {}

    def add(self, bundle: str, *, report: Any, **options: Any) -> Path:
        self.called = {"bundle": bundle, **options}
        if self.error is not None:
            raise self.error
        return Path(bundle)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "kdrt_export.add", stub)
    return stub


def test_what_is_added(cli: Cli, stub: Stub, tmp_path: Path) -> None:
    outcome = cli("add", "controlnet", tmp_path, "a.safetensors:edges", "owner/b")
    assert outcome.code == 0
    assert outcome.out.startswith(f"{tmp_path}  (0 B more, ")
    assert stub.called == {
        "bundle": str(tmp_path),
        "controlnets": ["a.safetensors:edges", "owner/b"],
        "t2i_adapters": (),
        "upscalers": (),
        "allow_pickle": False,
    }
    cli("add", "t2i-adapter", tmp_path, "c.pth", "--allow-pickle")
    assert stub.called["t2i_adapters"] == ["c.pth"]
    assert stub.called["allow_pickle"]
    cli("add", "upscaler", tmp_path, "d.safetensors:sharp")
    assert stub.called["upscalers"] == ["d.safetensors:sharp"]


def test_a_refusal_is_one_line(cli: Cli, stub: Stub, tmp_path: Path) -> None:
    stub.error = ExportError("it has int8 weights")
    outcome = cli("add", "controlnet", tmp_path, "a.safetensors")
    assert outcome.code == 2
    assert outcome.err.endswith("it has int8 weights\n")
