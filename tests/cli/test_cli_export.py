"""``kdrt export``: arguments, progress and refusals. The exporter has tests of its own."""

from __future__ import annotations

import inspect
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from kdrt.common.terminal_report import TerminalReport
from kdrt.errors import ExportError
from tests.support.command_line import Cli


class Stub(ModuleType):
    """Stands for ``kdrt_export.stage``."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__("kdrt_export.stage")
        self.error = error
        self.called: dict[str, Any] = {}

    def export(self, source: str, output: Path | None, *, report: Any, **options: Any) -> Path:
        self.called = {"source": source, "output": output, **options}
        report.start("open")
        report.done()
        report.start("unet: verify")
        if self.error is not None:
            raise self.error
        report.done("relative error 3.1e-07 at B=1 h=12")
        assert output is not None
        output.mkdir(parents=True)
        (output / "weights.bin").write_bytes(bytes(1500))
        return output


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setitem(sys.modules, "kdrt_export.stage", stub)
    return stub


def test_progress_goes_to_stderr_and_the_path_to_stdout(
    cli: Cli, stage: Stub, tmp_path: Path
) -> None:
    outcome = cli("export", "demo", "-o", tmp_path / "bundle")
    assert outcome.code == 0
    assert "✓ unet: verify" in outcome.err
    assert "relative error 3.1e-07 at B=1 h=12" in outcome.err
    assert outcome.out.startswith(f"{tmp_path / 'bundle'}  (1.5 kB, ")
    assert f'next: kdrt generate {tmp_path / "bundle"} "' in outcome.err


def test_defaults(cli: Cli, stage: Stub, tmp_path: Path) -> None:
    cli("export", "demo", "-o", tmp_path / "bundle")
    assert stage.called["source"] == "demo"
    assert stage.called["precision"] == "auto"
    assert stage.called["targets"] == ("onnxruntime",)
    assert stage.called["fuse_qkv"] is True
    assert stage.called["allow_pickle"] is False
    assert stage.called["random_weights"] is False


def test_options_reach_the_exporter(cli: Cli, stage: Stub, tmp_path: Path) -> None:
    cli(
        *("export", "sd15", "-o", tmp_path / "bundle", "--name", "mine", "--precision", "fp16"),
        *("--weights", "int8", "--keep-fp32", "unet:mid_block", "--keep-fp32", "*.attn1"),
        *("--target", "torch", "--target", "onnxruntime", "--random-weights", "--seed", "3"),
        *("--no-fuse-qkv", "--allow-pickle", "--revision", "main", "--config", tmp_path),
    )
    assert stage.called["name"] == "mine"
    assert stage.called["precision"] == "fp16"
    assert stage.called["weights"] == "int8"
    assert stage.called["keep_fp32"] == ("unet:mid_block", "*.attn1")
    assert stage.called["targets"] == ("torch", "onnxruntime")
    assert stage.called["random_weights"] is True
    assert stage.called["seed"] == 3
    assert stage.called["fuse_qkv"] is False
    assert stage.called["allow_pickle"] is True
    assert stage.called["revision"] == "main"
    assert stage.called["config"] == tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "--revision", "main"], "--revision is for models of the hub, and 'demo' is on"),
        (["demo", "--config", "."], "--config describes a checkpoint file, and 'demo' is none"),
        ([".", "--revision", "main"], "--revision is for models of the hub"),
        ([".", "--config", "."], "--config describes a checkpoint file"),
        (["sd15", "--image-encoder", "."], "--image-encoder belongs to --ip-adapter"),
    ],
)
def test_an_option_without_effect_is_refused(
    cli: Cli, stage: Stub, arguments: list[str], said: str
) -> None:
    assert said in cli("export", *arguments).refusal()


def test_the_stub_takes_what_the_exporter_takes(stage: Stub, tmp_path: Path, cli: Cli) -> None:
    cli("export", "demo", "-o", tmp_path / "bundle")
    sys.modules.pop("kdrt_export.stage")
    from kdrt_export.stage import export

    assert set(inspect.signature(export).parameters) == {*stage.called, "report"}


@pytest.mark.parametrize("package", ["diffusers", "transformers", "onnx"])
def test_a_missing_package_names_the_extra(
    cli: Cli, stage: Stub, tmp_path: Path, package: str
) -> None:
    stage.error = ModuleNotFoundError(f"No module named '{package}'", name=f"{package}.models")
    outcome = cli("export", "demo", "-o", tmp_path / "bundle")
    assert outcome.code == 2
    *_, last = outcome.err.strip().split("\n")
    assert last == (
        f"error: exporting needs the package '{package}', which is not installed: "
        "pip install 'kdrt[export]'"
    )


def test_a_failed_export_marks_its_stage(cli: Cli, stage: Stub, tmp_path: Path) -> None:
    stage.error = ExportError("the unet is off by 0.1")
    outcome = cli("export", "demo", "-o", tmp_path / "bundle")
    assert outcome.code == 2
    *_, stage_line, sentence = outcome.err.splitlines()
    assert stage_line == "✗ unet: verify"
    assert sentence == "error: the unet is off by 0.1"


def test_control_c(cli: Cli, stage: Stub, tmp_path: Path) -> None:
    stage.error = KeyboardInterrupt()
    outcome = cli("export", "demo", "-o", tmp_path / "bundle")
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted\n")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nonsense", "nonsense"),
        ("./no-such-file.safetensors", "no-such-file.safetensors"),
    ],
)
def test_an_unknown_source(cli: Cli, home: Path, source: str, said: str) -> None:
    refusal = cli("export", source).refusal()
    assert said in refusal
    assert "sdxl" in refusal  # what is allowed
    assert not (home / "bundles").exists() or not list((home / "bundles").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
)
def test_an_export_that_is_stopped_leaves_nothing(
    tmp_path: Path, number: int, code: int, said: str
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kdrt", "export", "demo", "-o", str(tmp_path / "bundle")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("text_encoder: load" in line for line in lines)
    process.send_signal(number)
    rest = list(lines)
    assert process.wait(60) == code, rest
    assert rest[-1] == said
    assert not list(tmp_path.iterdir())


def test_a_live_line_shows_stage_time_and_memory() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    with TerminalReport(console) as report:
        report.start("unet: trace")
        report.note("weights are [odd]")
        report.done("120 MB")
    shown = screen.getvalue()
    assert "unet: trace  0.0 s" in shown
    assert "note: weights are [odd]" in shown
    assert "✓ unet: trace" in shown
    assert "B  120 MB" in shown


def test_the_live_line_of_a_build_shows_phase_and_peak_memory() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    with TerminalReport(console) as report:
        report.start("unet: sm89")
        report.running("optimizing graph, about 12 s left", 2_500_000_000)
        report.running("optimizing graph, about 11 s left", 1_000_000)
        report.warn("only 0 of [14] fused")
        report.done("14/14 attentions fused")
    shown = screen.getvalue()
    assert "unet: sm89  0.0 s, 2.5 GB  optimizing graph, about 11 s left" in shown
    assert "warning: only 0 of [14] fused" in shown
    assert "✓ unet: sm89  0.0 s, 2.5 GB  14/14 attentions fused" in shown
