"""Seconds and memory by stage, of exports and of images, and the tables of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import real_sizes
from kdrt_bench import stage_memory
from kdrt_bench.jobs import ImageWorkload
from kdrt_bench.memory import peak
from kdrt_bench.models import model_of
from kdrt_bench.peers import PEERS
from kdrt_bench.peers.base import WholeImages
from kdrt_bench.runners import Runner
from kdrt_bench.stage_memory import ExportStages, StageRow, image_rows
from kdrt_bench.stages import StageClock

MEGABYTES = 200

told_memory = pytest.mark.skipif(peak() is None, reason="this system does not say what is held")


@told_memory
def test_the_peak_of_an_exports_stage_is_its_own() -> None:
    """What the stage before had and gave back is no part of it."""
    stages = ExportStages()
    stages.start("unet: trace")
    weights = np.ones(MEGABYTES * 125_000)
    del weights
    stages.done("as told")
    stages.start("unet: verify")
    stages.done()
    large, small = stages.rows
    assert [large.stage, small.stage] == ["unet: trace", "unet: verify"]
    assert (large.peak or 0) - (small.peak or 0) > 0.9e6 * MEGABYTES
    assert (large.peak or 0) > (large.own or 0) > 0


@told_memory
@pytest.mark.parametrize("options", [{}, {"low_vram": "on"}], ids=["at once", "in turn"])
def test_an_image_has_a_row_a_stage(demo_bundle: Path, options: dict[str, str]) -> None:
    model, workload = model_of(str(demo_bundle)), ImageWorkload(steps=1)
    rows = image_rows("kdrt", options, model, workload, threads=1)
    assert [row.stage for row in rows] == ["load", "encode", "denoise", "decode", "all else"]
    assert all(row.seconds > 0 and (row.peak or 0) > (row.own or 0) > 0 for row in rows)


class Alone(WholeImages):
    """A peer that says how long its stages took, afterwards."""

    def settings(self) -> dict[str, str]:
        return {}

    def generator(self, workload: ImageWorkload, clock: StageClock) -> Runner:
        assert self.options["weights"] == "f16", "what this peer always has"
        return Runner(lambda: clock.add("denoise", 1.5), list)


def test_a_peer_that_tells_its_seconds_afterwards_has_no_memory_by_stage(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_memory, "load_peer", lambda name: Alone)
    monkeypatch.setattr(stage_memory, "find_peer", PEERS.__getitem__)
    workload = ImageWorkload(steps=1)
    rows = image_rows("sd-cpp-f16", {}, model_of(str(demo_bundle)), workload, threads=1)
    (denoise,) = (row for row in rows if row.stage == "denoise")
    assert denoise == StageRow(stage="denoise", seconds=1.5, peak=None, own=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["image", "no-such-bundle"], "error: there is no bundle 'no-such-bundle'"),
        (["image", "BUNDLE", "--vs", "nobody"], "error: there is no peer 'nobody'"),
        (["image", "BUNDLE", "--rounds", "0"], "--rounds"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_sentence(
    demo_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    given = [str(demo_bundle) if each == "BUNDLE" else each for each in arguments]
    monkeypatch.setattr(sys, "argv", ["real_sizes.py", *given])
    with pytest.raises(SystemExit) as ended:
        real_sizes.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_folder_of_the_results_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = StageRow(stage="write", seconds=1.0, peak=None, own=None)
    monkeypatch.setattr(real_sizes, "in_fresh_process", lambda work, *arguments: [row])
    real_sizes.export_command("demo", output=tmp_path / "a" / "new")
    assert [each.name for each in sorted((tmp_path / "a" / "new").iterdir())] == [
        "real_sizes.json",
        "real_sizes.md",
    ]


def test_a_measurement_takes_the_place_of_the_same_before(tmp_path: Path) -> None:
    def measured(title: str, *seconds: float) -> real_sizes.Measurement:
        stages = [
            StageRow(stage=f"stage {index}", seconds=each, peak=(1 + index) * 10**9, own=5 * 10**8)
            for index, each in enumerate(seconds)
        ]
        machine = {"processor": "a fast one", "cores": "2"}
        return real_sizes.Measurement(title=title, machine=machine, rows=tuple(stages))

    for each in (measured("first", 1.0), measured("second", 9.0), measured("first", 2.0, 3.5)):
        real_sizes.write(each, tmp_path)
    text = (tmp_path / "real_sizes.md").read_text()
    assert text.index("## first") < text.index("## second")
    assert "| stage 1 | 3.5 | 2.0 GB | 500.0 MB |\n| **all** | 5.5 | **2.0 GB** | |" in text
    assert "| stage 0 | 1.0" not in text
    assert text.count("processor a fast one, cores 2.") == 2
