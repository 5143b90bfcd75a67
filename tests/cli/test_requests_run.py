"""``kdrt generate --from``, with a batcher that needs no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kdrt
from kdrt.cli.requests_file import read_requests
from kdrt.cli.requests_run import RequestsRun
from kdrt.cli.run_record import NAME
from tests.support.command_line import Cli, Outcome
from tests.support.fake_batcher import OVERFLOWS, FakeBatcher, FakeHandle, FakePipeline

STAR, CAT = {"prompt": "a star", "seed": 5}, {"prompt": "a cat"}


class Asked(FakeBatcher):
    """Remembers what it was asked for."""

    prompts: list[Any] = []  # noqa: RUF012

    def submit(self, request: kdrt.Request, **options: Any) -> FakeHandle:
        self.prompts.append(request["prompt"])
        return super().submit(request, **options)


@pytest.fixture
def folder(tmp_path: Path, demo: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; no model is loaded there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kdrt, "Batcher", Asked)
    monkeypatch.setattr("kdrt.cli.loading.PipelineOptions.load", lambda *_: FakePipeline())
    monkeypatch.setattr(Asked, "prompts", [])
    return tmp_path


@pytest.fixture
def generate(cli: Cli, folder: Path) -> Cli:
    """``generate(line, line, "--seed", 7)``: lines of a file, then options."""

    def run(*arguments: Any) -> Outcome:
        lines = [each for each in arguments if isinstance(each, dict)]
        options = [each for each in arguments if not isinstance(each, dict)]
        Path("requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
        Asked.prompts.clear()
        return cli("generate", "demo", "--from", "requests.jsonl", "--no-progress", *options)

    return run


def record(folder: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, NAME).read_text().splitlines()]


def names() -> set[str]:
    return {path.name for path in Path("out").iterdir()} - {NAME, ".images.lock"}


def test_images_a_record_and_a_line_for_each(generate: Cli) -> None:
    outcome = generate(STAR, CAT, {**CAT, "images_per_prompt": 2})
    assert outcome.code == 0, outcome.err
    assert names() == {"0001.png", "0002.png", "0003-1.png", "0003-2.png"}
    entries = {entry["path"]: entry for entry in record()}
    assert entries.keys() == names()
    assert entries["0001.png"]["seed"] == 5
    assert "out/0001.png\tseed 5\n" in outcome.out
    assert sorted(outcome.out.splitlines()) == sorted(
        f"out/{path}\tseed {entry['seed']}" for path, entry in entries.items()
    )
    assert entries["0002.png"]["seed"] != entries["0003-1.png"]["seed"]
    assert entries["0003-2.png"]["seed"] == entries["0003-1.png"]["seed"] + 1


def test_json_prints_the_lines_of_the_record(generate: Cli) -> None:
    outcome = generate(STAR, {"prompt": OVERFLOWS}, "--json")
    assert [json.loads(line) for line in outcome.out.splitlines()] == record()


def test_options_hold_for_lines_that_say_nothing_else(generate: Cli) -> None:
    outcome = generate(STAR, CAT, "--seed", 9, "-o", "there", "--width", 16)
    assert outcome.code == 0, outcome.err
    assert [Image.open(f"there/000{n}.png").size for n in (1, 2)] == [(16, 8)] * 2
    assert {entry["seed"] for entry in record("there")} == {5, 9}


def test_the_same_command_again_makes_nothing(generate: Cli) -> None:
    assert generate(STAR, CAT).code == 0
    again = generate(STAR, CAT)
    assert (again.code, again.out) == (0, "")
    assert again.err == "note: 2 of 2 images are in out already\n"
    assert Asked.prompts == []
    assert len(record()) == 2


def test_only_new_and_changed_lines_are_made(generate: Cli) -> None:
    assert generate(STAR, CAT).code == 0
    before = {name: Path("out", name).read_bytes() for name in names()}
    changed = {**CAT, "steps": 5}
    assert generate({"prompt": "a dog"}, STAR, changed).code == 0
    assert sorted(Asked.prompts) == ["a cat", "a dog"]
    # What is there is kept, as it is without --from.
    assert names() == {"0001.png", "0002.png", "0001-2.png", "0003.png"}
    assert before == {name: Path("out", name).read_bytes() for name in before}


def test_overwrite_replaces_what_belongs_to_no_line_any_more(generate: Cli) -> None:
    assert generate(STAR, {**CAT, "seed": 1}).code == 0
    star = Path("out", "0001.png").read_bytes()
    assert generate(STAR, {**CAT, "seed": 2}, "--overwrite").code == 0
    assert Asked.prompts == ["a cat"]
    assert names() == {"0001.png", "0002.png"}
    assert Path("out", "0001.png").read_bytes() == star
    assert Image.open("out/0002.png").getpixel((0, 0)) == (2, 0, 0)
    again = generate(STAR, {**CAT, "seed": 1})
    assert (again.code, names()) == (0, {"0001.png", "0002.png", "0002-2.png"})


def test_a_lost_image_comes_back_with_its_seed(generate: Cli) -> None:
    assert generate(CAT, {**CAT, "images_per_prompt": 3}).code == 0
    before = {name: Path("out", name).read_bytes() for name in names()}
    for name in ("0001.png", "0002-2.png"):
        Path("out", name).unlink()
    assert generate(CAT, {**CAT, "images_per_prompt": 3}).code == 0
    assert {name: Path("out", name).read_bytes() for name in names()} == before


def test_another_model_makes_other_images(generate: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate(STAR).code == 0
    monkeypatch.setattr("kdrt.cli.requests_run.model_digest", lambda *_: "another")
    assert generate(STAR).code == 0
    assert names() == {"0001.png", "0001-2.png"}


def test_failed_requests_are_told_and_tried_again(generate: Cli) -> None:
    bad = {"prompt": OVERFLOWS, "images_per_prompt": 2}
    outcome = generate(STAR, bad, CAT, bad)
    assert outcome.code == 2
    assert names() == {"0001.png", "0003.png"}
    told = outcome.err.splitlines()
    assert sorted(told[:-1]) == [
        f"error: line {number} of requests.jsonl: the UNet overflowed" for number in (2, 4)
    ]
    assert told[-1] == (
        "error: 2 of 4 requests failed, lines 2, 4 of requests.jsonl; out/images.jsonl says why, "
        "and the same command tries them again"
    )
    failures = [entry for entry in record() if "error" in entry]
    assert generate(STAR, bad, CAT, bad).code == 2
    assert Asked.prompts == [OVERFLOWS, OVERFLOWS]
    again = [entry for entry in record() if "error" in entry][len(failures) :]
    # In any order, with the seeds of before.
    assert len(again) == 4
    assert all(entry in failures for entry in again)


def test_an_interrupted_run_says_what_is_saved_and_goes_on(
    generate: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Asked):
        def submit(self, request: kdrt.Request, **options: Any) -> FakeHandle:
            if request["prompt"] == "a dog":
                raise KeyboardInterrupt
            return super().submit(request, **options)

    lines = [CAT, STAR, {"prompt": "a dog"}, CAT]
    with monkeypatch.context() as patch:
        patch.setattr(kdrt, "Batcher", Interrupted)
        outcome = generate(*lines)
    assert outcome.code == 130
    saved = len(record())
    assert f"{saved} of 4 images are saved; the same command makes the others." in outcome.err
    assert outcome.err.endswith("interrupted\n")
    again = generate(*lines)
    assert again.code == 0, again.err
    assert len(Asked.prompts) == 4 - saved
    assert names() == {f"000{number}.png" for number in range(1, 5)}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(cut=st.integers(0, 1200), lost=st.sets(st.integers(1, 5)), tail=st.sampled_from(["", "\0"]))
def test_a_run_goes_on_wherever_its_record_was_cut(
    tmp_path_factory: pytest.TempPathFactory, cut: int, lost: set[int], tail: str
) -> None:
    """What a loss of power leaves: less of the record, and less of the images."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "requests.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"{n}", "seed": n}) for n in range(1, 6)))
    lines = read_requests(file, kdrt.Request())

    def run() -> RequestsRun:
        run = RequestsRun(str(file), lines, folder / "out", as_json=True)
        with run.resumed("model"):
            if run.tasks:
                run.make(cast(Any, FakeBatcher), progress=False)
        return run

    run()
    path = folder / "out" / NAME
    path.write_text(path.read_text()[:cut] + tail)
    for number in lost:
        (folder / "out" / f"{number:04d}.png").unlink()
    present = {each.name: each.read_bytes() for each in (folder / "out").glob("*.png")}
    kept = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    there = {entry["line"] for entry in kept} - lost
    assert {task.line.number for task in run().tasks} == {1, 2, 3, 4, 5} - there
    newest = {entry["line"]: entry for entry in map(json.loads, path.open())}
    for number in range(1, 6):
        with Image.open(folder / "out" / newest[number]["path"]) as image:
            assert image.getpixel((0, 0)) == (number, 0, 0)
    for name, content in present.items():
        assert (folder / "out" / name).read_bytes() == content
    assert run().tasks == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["a star"],
            "there are prompts on the command line, and --from requests.jsonl has its own",
        ),
        (["--prompt", "a star"], "there are prompts on the command line"),
        (["--prompts-file", "a.txt"], "--prompts-file and --from both say what to make"),
        (["--like", "a.png"], "--like and --from both say how to make it"),
        (["--grid", "a.png"], "--grid and --from do not go together"),
        (["--preview", "a.png"], "--preview and --from do not go together"),
        (["--low-vram"], "--low-vram and --from do not go together"),
        (["--batch-size", 2], "--batch-size and --from do not go together"),
        (["-o", "a.png"], "with --from, -o is a folder, and a.png has the name of a file"),
        (["-o", "requests.jsonl"], "requests.jsonl, which is no folder"),
        (["--steps", 0], "--steps must be a whole number of at least 1"),
        (["--schedule", "karas"], "unknown schedule 'karas'"),
        (["--lora", "none.safetensors"], "none.safetensors"),
    ],
)
def test_what_does_not_go_with_it(generate: Cli, options: list[Any], said: str) -> None:
    assert said in generate(STAR, *options).refusal()
    assert not Path("out").exists()


def test_wrong_lines_are_told_before_anything_is_made(generate: Cli) -> None:
    assert generate(STAR, {**CAT, "guidance_scale": -1}).refusal() == (
        "line 2 of requests.jsonl: guidance_scale must be a finite number of at least 0, not -1"
    )
    outcome = generate(STAR, {**CAT, "steps": 0}, {"sampler": "euler"})
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        "error: line 2 of requests.jsonl: steps must be a whole number of at least 1, not 0",
        'error: line 3 of requests.jsonl: there is no prompt; add one, as "prompt": "a cat"',
        "error: 2 lines of requests.jsonl are wrong, so nothing was made; put them right",
    ]
    assert not Path("out").exists()


def test_lines_that_this_model_cannot_make_are_told_before_anything_is_made(generate: Cli) -> None:
    bad = {**CAT, "width": 12}
    said = "width must be a multiple of 8, and 12 is not"
    assert generate(STAR, bad).refusal() == f"line 2 of requests.jsonl: {said}"
    outcome = generate(bad, STAR, bad)
    assert outcome.code == 2
    assert outcome.err.splitlines() == [
        f"error: line 1 of requests.jsonl: {said}",
        f"error: line 3 of requests.jsonl: {said}",
        "error: 2 lines of requests.jsonl are wrong, so nothing was made; put them right",
    ]
    assert Asked.prompts == []


def test_a_requests_file_is_not_taken_for_the_record(cli: Cli, folder: Path) -> None:
    Path(NAME).write_text(json.dumps(STAR) + "\n")
    refusal = cli("generate", "demo", "--from", NAME, "-o", ".").refusal()
    assert "is not kdrt's record of images" in refusal
    assert Path(NAME).read_text() == json.dumps(STAR) + "\n"


def test_a_long_run_is_told_in_a_log(generate: Cli) -> None:
    outcome = generate(STAR, CAT, CAT, "--progress")
    assert outcome.code == 0
    assert "[3/3] " in outcome.err
    assert outcome.err.splitlines()[-1].endswith("/image") or "images/s" in outcome.err
