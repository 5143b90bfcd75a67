"""The rows of parts, made on the CPU with stand-ins for CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdrt_bench.gpu_day.levels import FEATURES, SAMPLERS, errors, latents, models
from kdrt_bench.gpu_day.parts import add_rows, parts, run_part
from kdrt_bench.gpu_day.rows import Figures, RowFile
from kdrt_bench.gpu_day.setting import Measurement, Setting


def test_a_row_that_raises_is_a_row(tmp_path: Path) -> None:
    def broken() -> Figures:
        raise RuntimeError("CUDA error: no\nmore")

    def made() -> Iterator[Measurement]:
        yield "first", lambda: {"ms": 1.0}
        yield "second", broken
        yield "third", lambda: {"ms": 3.0}

    add_rows("part", made(), RowFile(tmp_path))
    rows = RowFile(tmp_path).read()
    assert [row.figures for row in rows] == [{"ms": 1.0}, {}, {"ms": 3.0}]
    assert rows[1].failed == "did not run: RuntimeError: CUDA error: no"


def test_correctness_comes_first(tmp_path: Path) -> None:
    names = [part.name for part in parts(Setting(tmp_path))]
    assert names[:4] == ["machine", "levels", "sd15", "sdxl"]
    assert names[-1] == "engine-tensorrt-rtx"


def test_every_level_is_beside_the_cpu(tmp_path: Path) -> None:
    run_part("levels", Setting(tmp_path, dry_run=True))
    rows = {row.name: row for row in RowFile(tmp_path).read()}
    for level in ("off", "step", "loop"):
        found = rows[f"{level}: relative error"]
        assert not found.failed
        assert set(found.figures) == set(SAMPLERS)
        assert all(isinstance(error, float) and error < 1e-4 for error in found.figures.values())
    assert rows["loop: the host, a step"].figures == {"counted": "nothing, on a CPU"}


def test_another_image_has_an_error(tmp_path: Path) -> None:
    _, model = models(Setting(tmp_path, dry_run=True))
    pipe = model.pipeline(None)
    wanted = latents(pipe, {"seed": 8, "steps": 2})
    assert float(errors(pipe, {"a": {"steps": 2}}, {"a": wanted})["a"]) > 0.1


def test_the_control_net_of_a_rehearsal_is_drawn_alike_and_does_something(tmp_path: Path) -> None:
    other, model = models(Setting(tmp_path, dry_run=True), features=True)
    pipe = model.pipeline(None)
    asked = FEATURES["ControlNet"] | {"steps": 2}
    without, alike = latents(pipe, {"steps": 2}), latents(other.pipeline(None), asked)
    found = errors(pipe, {"on": asked, "off": asked}, {"on": alike, "off": without})
    assert float(found["on"]) < 1e-5
    assert float(found["off"]) > 0.01


@pytest.mark.slow
def test_models_of_real_size_are_beside_pytorch(tmp_path: Path) -> None:
    torch._dynamo.reset()
    for part in ("sd15", "in-flight", "features", "control", "engine-inductor"):
        run_part(part, Setting(tmp_path, dry_run=True))
    rows = RowFile(tmp_path).read()
    assert len(rows) == 18
    assert not [row.failed for row in rows if row.failed]
