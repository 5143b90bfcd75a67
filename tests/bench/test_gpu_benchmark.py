"""The command for the day a GPU comes: it ends with its rows, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

import gpu
from kdrt_bench.gpu_day.conductor import Part
from kdrt_bench.gpu_day.rows import RowFile
from kdrt_bench.gpu_day.setting import Setting


def test_rows_are_printed_and_kept(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The machine in a process of its own; an engine that is missing; one that has no time."""
    parts = [Part("machine", 30), Part("engine-tensorrt", 1), Part("sdxl", 10_000)]
    monkeypatch.setattr(gpu, "parts", lambda setting: parts)
    gpu.main(["--dry-run", "-o", str(tmp_path / "out")])
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "rows.md").read_text(encoding="utf-8")
    assert len(RowFile(tmp_path / "out").read()) == 3
    for words in ("rehearsal on the CPU", "tensorrt is not installed", "skipped: it takes about"):
        assert words in said
        assert words in page


def test_a_part_that_cannot_begin_is_a_row(tmp_path: Path) -> None:
    setting = Setting(tmp_path, dry_run=True, bundle="no-such-bundle")
    wrong = gpu.in_this_process(setting, Part("engine-onnxruntime", 1), 1)
    assert "no-such-bundle" in wrong
    assert "Traceback" in (tmp_path / "engine-onnxruntime.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--minutes", "0"], "must be above 0"), ([], "has rows already")],
)
def test_what_cannot_be_asked_for(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(SystemExit, match="2"):
        gpu.main([*words, "-o", str(tmp_path)])
    assert said in capsys.readouterr().err
