"""``kdrt bench``: refusals, and one real run on the demo model."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kdrt import cli as command_line
from kdrt_bench import peers
from kdrt_bench.cold import started_up
from kdrt_bench.errors import BenchmarkError
from kdrt_bench.experiment import RealSize, RowPlan, Sampling
from kdrt_bench.jobs import ImageWorkload
from kdrt_bench.models import model_of
from kdrt_bench.report import Report, read_report
from kdrt_bench.startup import STAGES
from kdrt_bench.suites import SUITES, experiments, peers_of, selected

REPORT = Path(__file__).parents[2] / "benchmarks" / "results" / "full" / "report.json"


Refusal = Callable[..., str]


@pytest.fixture
def refusal(
    capfd: pytest.CaptureFixture[str],
    demo_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Refusal:
    monkeypatch.setenv("KDRT_HOME", str(demo_home))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def run(*arguments: str) -> str:
        assert command_line.run(["bench", *arguments]) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert not (tmp_path / "bench").exists()
        return captured.err

    return run


def test_what_there_is_not_is_refused_at_once(refusal: Refusal) -> None:
    assert "no suite 'slow'; there are quick, full, gpu" in refusal("--suite", "slow")
    assert "no peer 'magic'; there are kdrt, eager" in refusal("--vs", "eager,magic")
    assert "unknown engine 'magic'" in refusal("--vs", "kdrt:magic")
    assert "no experiment 'speed'; it has image, step" in refusal("--only", "speed")
    assert "needs a GPU, and CUDA sees none" in refusal("--suite", "gpu")
    assert "no bundle 'nothing'" in refusal("--bundle", "nothing")


@pytest.mark.parametrize("option", [("--real", "sd15"), ("--side", "8")])
def test_an_option_of_another_suite_is_refused(refusal: Refusal, option: tuple[str, str]) -> None:
    assert "--suite is quick; leave them out or add --suite full" in refusal(*option)


def test_a_folder_of_something_else_is_left_alone(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    assert "holds cat.png" in refusal("-o", "photos")
    assert (tmp_path / "photos" / "cat.png").exists()


def test_optimum_is_an_alias_and_the_anchor_is_always_there() -> None:
    assert peers_of("quick", ("optimum",)) == ("eager", "kdrt", "onnxruntime-plain")
    with pytest.raises(BenchmarkError, match="no suite"):
        peers_of("none", None)


def test_every_suite_has_rows_that_are_peers_and_an_anchor(demo_bundle: Path) -> None:
    model = model_of(str(demo_bundle))
    for suite in SUITES:
        found = experiments(suite, model, RealSize(model), rounds=3)
        assert len({each.key for each in found}) == len(found)
        for each in found:
            labels = [row.label for row in each.rows]
            assert len(set(labels)) == len(labels)
            assert each.anchor in labels
            assert {row.peer for row in each.rows} <= set(peers.PEERS)
            assert len(each.workloads) == len(each.points)
            assert each.rounds == (1 if each.kind == "server" else 3)
    heavy = [e for e in experiments("full", model, RealSize(model)) if e.key.startswith("unet")]
    assert {"kdrt", "openvino"} <= {row.peer for row in heavy[0].rows}


def test_a_key_without_its_number_means_every_group(demo_bundle: Path) -> None:
    model = model_of(str(demo_bundle))
    found = experiments("full", model, RealSize(model))
    groups = [e.key for e in found if e.key.startswith("image-real-")]
    assert [e.key for e in selected(found, ("image-real",))] == groups != []
    assert [e.key for e in selected(found, ("image",))] == ["image"]


def test_images_are_sampled_as_asked_for(demo_bundle: Path) -> None:
    model = model_of(str(demo_bundle))
    found = experiments("full", model, RealSize(model), sampling=Sampling(steps=5, guidance=1))
    asked = [e for e in found if e.key in ("image", "server") or e.key.startswith("image-real")]
    assert len(asked) >= 3
    for each in asked:
        (workload,) = each.workloads
        assert isinstance(workload, ImageWorkload)
        assert (workload.steps, workload.guidance) == (5, 1)
        assert "5 steps of Euler's method without guidance" in each.question or (
            each.kind == "server"
        )


def test_the_demo_model_against_eager_for_real(
    demo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KDRT_HOME", str(demo_home))
    # Where kdrt is no folder of the working directory.
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "report"
    peers = "eager,kdrt:openvino,kdrt:torch"
    arguments = ["--vs", peers, "--only", "image", "--rounds", "2", "--threads", "1", "-o"]
    assert command_line.run(["bench", *arguments, str(folder)]) == 0
    last = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert last == json.loads((folder / "report.json").read_text())
    assert (folder / "report.html").is_file()
    (experiment,) = last["experiments"]
    eager, ours, openvino, programs = experiment["rows"]
    assert (eager["label"], ours["label"]) == ("eager", "kdrt")
    assert openvino["settings"]["engine"] == "openvino"
    assert openvino["likeness"]["relative_error"] < 1e-4
    # The bundle was exported without PyTorch's programs.
    assert "export" in programs["failed"]
    assert programs["unavailable"]
    assert experiment["gflop"][0] > 0
    assert len(ours["samples"]) == 2
    assert ours["likeness"]["relative_error"] < 1e-4
    assert eager["memory_peak"] > 0
    assert ours["likeness"]["ssim"] > 0.9999
    assert set(ours["stages"]) == {"encode", "denoise", "decode"}
    assert (folder / ours["image"]).is_file()
    assert not list(folder.glob(".*"))


def test_figures_are_not_lost_to_a_full_disk(
    demo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    report = read_report(REPORT)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("KDRT_HOME", str(demo_home))
    monkeypatch.setattr("kdrt_bench.measure.Measurement.report", lambda *_: report)
    monkeypatch.setattr("kdrt_bench.writing.write_report", full)
    assert command_line.run(["bench", "-o", str(tmp_path / "report")]) == 2
    captured = capfd.readouterr()
    assert Report.model_validate_json(captured.out.splitlines()[-1]) == report
    assert captured.err.endswith("the disk is full\n")
    assert not list(tmp_path.iterdir())


def test_an_update_keeps_the_rest_of_a_report(
    demo_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    refusal: Refusal,
) -> None:
    report, folder = read_report(REPORT), tmp_path / "report"
    shutil.copytree(REPORT.parent, folder)
    machine = report.machine
    (step,) = (each for each in report.experiments if each.key == "step")
    again = report.model_copy(update={"experiments": (step,), "seconds": 60.0})
    monkeypatch.setattr("kdrt_bench.updating.describe", lambda _: machine)
    monkeypatch.setattr("kdrt_bench.updating.check_same_work", lambda *_: None)
    monkeypatch.setattr("kdrt_bench.measure.Measurement.report", lambda *_: again)
    options = ["--suite", "full", "--real", "none", "--threads", str(report.threads)]
    update = ["bench", *options, "--update", "-o", str(folder)]
    assert command_line.run([*update, "--only", "step"]) == 0
    after = read_report(folder / "report.json")
    assert json.loads(capfd.readouterr().out) == after.model_dump(mode="json")
    assert {each.key for each in after.experiments} == {each.key for each in report.experiments}
    assert [each.key for each in after.experiments if each.again and each.key == "step"] == ["step"]
    assert after.seconds == pytest.approx(report.seconds + 60)
    assert {path.name for path in (folder / "images").iterdir()} == {
        path.name for path in (REPORT.parent / "images").iterdir()
    }
    assert "name some, or leave --update out" in refusal("--update")
    assert "holds no report to update" in refusal("--update", "--only", "step", "-o", "nothing")


def test_startup_tells_its_stages(demo_bundle: Path) -> None:
    plan = next(
        e for e in experiments("quick", model_of(str(demo_bundle)), None) if e.key == "startup"
    )
    stages = started_up(plan, RowPlan("kdrt", "kdrt"))
    assert tuple(stages) == STAGES
    assert all(seconds > 0 for seconds in stages.values())
