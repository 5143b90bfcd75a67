"""``kdrt generate``, ``kdrt info`` and ``kdrt inspect``, on the demo model."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops
from safetensors.torch import load_file

from kdrt.cli.preview_file import preview_file
from kdrt.errors import OutputExistsError
from kdrt.images.output import SUFFIXES, save_image
from kdrt.images.sheet import image_grid
from kdrt.sampling import SAMPLERS, SCHEDULES
from tests.support.command_line import Cli

PROMPT = "a red circle on a blue background"
FAST = ("--steps", "2", "--no-progress")


def test_an_image_carries_its_parameters(cli: Cli, demo: str, tmp_path: Path) -> None:
    image = tmp_path / "new" / "circle.png"
    outcome = cli(
        *("generate", demo, PROMPT, "-o", image, *FAST, "--seed", "7", "--negative", "blurry"),
        *("--width", "96", "--height", "64", "--sampler", "DPM++ 2M SDE", "--guidance", "4"),
        *("--sampler-option", "eta=0.5", "--sampler-option", "solver_type=heun"),
        *("--freeu", "1.1,1.2,0.9,0.8", "--clip-skip", "1", "--guidance-rescale", "0.5"),
        *("--guidance-interval", "0.5:4"),
    )
    assert (outcome.code, outcome.out) == (0, f"{image}\tseed 7\n"), outcome.err
    assert Image.open(image).size == (96, 64)
    known = json.loads(cli("info", image, "--json").out)
    assert known["Prompt"] == PROMPT
    assert known["Negative prompt"] == "blurry"
    assert known["Steps"] == "2"
    assert known["Sampler"] == "DPM++ 2M SDE"
    assert known["Seed"] == "7"
    assert known["Size"] == "96x64"
    assert known["CFG scale"] == "4"
    assert known["Eta"] == "0.5"
    assert known["FreeU s2"] == "0.8"
    assert known["Guidance interval"] == "0.5 to 4"
    printed = cli("info", image)
    assert printed.code == 0
    assert PROMPT in printed.out
    assert "DPM++ 2M SDE" in printed.out


def test_previews_can_be_watched_in_a_file(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = tmp_path / "new" / "preview.png"
    seen: list[bytes] = []

    def look(image: Image.Image, path: Path, *, overwrite: bool) -> Path:
        saved = save_image(image, path, overwrite=overwrite)
        assert [file.name for file in watched.parent.iterdir()] == ["preview.png"]
        seen.append(watched.read_bytes())
        return saved

    monkeypatch.setattr("kdrt.cli.preview_file.save_image", look)
    outcome = cli(
        *("generate", demo, PROMPT, "a green star", "-o", tmp_path / "a.png"),
        *("--steps", "3", "--no-progress", "--seed", "1", "--batch-size", "2"),
        *("--preview", watched),
    )
    assert outcome.code == 0, outcome.err
    assert len(set(seen)) == 3
    assert Image.open(watched).size == (32, 16)
    refusal = cli("generate", demo, PROMPT, *FAST, "--preview", tmp_path / "a.tiff").refusal()
    assert refusal.startswith("cannot save")


def test_a_preview_replaces_no_file_of_before(cli: Cli, demo: str, tmp_path: Path) -> None:
    kept = tmp_path / "keep.png"
    kept.write_text("mine")
    command = ("generate", demo, PROMPT, "-o", tmp_path / "a.png", *FAST, "--preview", kept)
    assert "--overwrite" in cli(*command).refusal()
    assert kept.read_text() == "mine"
    assert not (tmp_path / "a.png").exists()
    outcome = cli(*command, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert Image.open(kept).size == (16, 16)


def test_a_preview_does_not_replace_a_file_that_came_meanwhile(tmp_path: Path) -> None:
    class Step:
        def preview(self) -> list[Image.Image]:
            return [Image.new("RGB", (8, 8))]

    watched = tmp_path / "preview.png"
    save = preview_file(watched)
    watched.write_text("mine")
    with pytest.raises(OutputExistsError):
        save(Step())  # type: ignore[arg-type]
    assert watched.read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        *("-o a.png --grid a.png", "-o a.png --preview ./a.png", "-o a.webp --preview link.webp"),
        *("-o b.png --grid c.png --preview c.png", "-o b.png --count 3 --grid b-2.png"),
        *("-o b.png --count 3 --preview b-3.png", "--preview out.png"),
    ],
)
def test_options_that_name_one_file(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.webp").symlink_to("a.webp")
    Path("loop.png").symlink_to("loop.png")
    assert "loop.png" in cli("generate", "nothing", PROMPT, "--preview", "loop.png").refusal()
    refusal = cli("generate", "nothing", PROMPT, *options.split(), "--overwrite").refusal()
    assert "give each a file of its own" in refusal


def test_a_name_that_no_image_takes_is_free_for_previews(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ("-o a.png --preview a-2.png", "-o a.png --count 2 --preview a-3.png"):
        assert "no bundle" in cli("generate", "nothing", PROMPT, *options.split()).refusal()


def test_one_run_goes_on_with_the_latents_of_another(cli: Cli, demo: str, tmp_path: Path) -> None:
    latents, image, whole = (tmp_path / name for name in ("a.safetensors", "a.png", "whole.png"))
    common = (
        *("generate", demo, PROMPT, "--steps", "4", "--no-progress", "--seed", "3"),
        *("--sampler", "euler", "--schedule", "trailing"),
    )
    first = cli(*common, "--denoising-end", "0.5", "-o", latents)
    assert (first.code, first.out) == (0, f"{latents}\tseed 3\n"), first.err
    noisy = cli(*common, "--denoising-end", "0.5", "-o", tmp_path / "noisy.png")
    assert noisy.err.startswith("note: --denoising-end left noise in the image")
    assert "note" not in first.err
    second = cli(*common, "--denoising-start", "0.5", "--latents", latents, "-o", image)
    assert second.code == 0, second.err
    assert cli(*common, "-o", whole).code == 0
    # They meet a little beside a level of the grid, so a step is cut in two.
    difference = ImageChops.difference(Image.open(image), Image.open(whole))
    assert np.asarray(difference).max() <= 8

    missing = cli(*common, "--denoising-start", "0.5", "--latents", tmp_path / "no.safetensors")
    assert missing.refusal().startswith("there is no file")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    bad = cli(*common, "--denoising-start", "0.5", "--latents", tmp_path / "bad.safetensors")
    assert "is no safetensors file" in bad.refusal()


def test_grids_and_noise_of_ones_own(cli: Cli, demo: str, tmp_path: Path) -> None:
    def known(*arguments: str) -> dict[str, str]:
        path = tmp_path / "a.png"
        options = ("-o", path, "--overwrite", "--no-progress")
        outcome = cli("generate", demo, PROMPT, *options, *arguments)
        assert outcome.code == 0, outcome.err
        return json.loads(cli("info", path, "--json").out)

    first = known(
        *("--steps", "2", "--schedule", "karras", "--schedule-option", "rho=5"),
        *("--schedule-option", "discard_penultimate=true", "--noise", "a1111"),
        *("--noise-option", "source=nv", "--noise-option", "eta_noise_seed_delta=31337"),
    )
    assert first["Schedule rho"] == "5"
    assert first["Discard penultimate sigma"] == "True"
    assert (first["RNG"], first["ENSD"]) == ("NV", "31337")
    second = known("--timesteps", "999,300", "--noise-seed", "7", "--sampler", "euler_ancestral")
    assert second["Steps"] == "2"
    assert second["Noise seed"] == "7"
    assert known("--sigmas", "9,2,0")["Sigmas"] == "9 2 0"


def test_several_images_are_numbered_and_seeded_one_by_one(
    cli: Cli, demo: str, tmp_path: Path
) -> None:
    prompts = ("a green star", "a yellow heart")
    outcome = cli(
        "generate", demo, *prompts, "--count", 2, "--seed", 5, "-o", tmp_path / "a.png", *FAST
    )
    paths = [tmp_path / f"a-{number}.png" for number in range(1, 5)]
    lines = [f"{path}\tseed {seed}" for seed, path in enumerate(paths, start=5)]
    assert outcome.out.splitlines() == lines
    known = [json.loads(cli("info", path, "--json").out) for path in paths]
    assert [k["Prompt"] for k in known] == ["a green star"] * 2 + ["a yellow heart"] * 2
    assert [k["Seed"] for k in known] == ["5", "6", "7", "8"]


def test_without_a_name_images_are_numbered_and_can_be_made_again(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (cli("generate", demo, PROMPT, *FAST) for _ in range(2))
    seed = first.out.rstrip().partition("out.png\tseed ")[2]
    assert second.out.startswith("out-2.png\tseed ")
    assert second.err == ""
    again = cli("generate", demo, PROMPT, *FAST, "--seed", seed)
    assert again.out == f"out-3.png\tseed {seed}\n"
    assert Image.open("out.png").tobytes() == Image.open("out-3.png").tobytes()
    assert Image.open("out.png").tobytes() != Image.open("out-2.png").tobytes()


def test_a_line_is_an_image_whatever_its_name(cli: Cli, demo: str, tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b[2J\u202e é.png"
    command = ("generate", demo, PROMPT, "-o", path, *FAST, "--seed", "7", "--overwrite")
    shown = tmp_path / r"a\nb\x1b[2J\u202e é.png"
    assert cli(*command).out == f"{shown}\tseed 7\n"
    assert path.is_file()
    assert json.loads(cli(*command, "--json").out)["path"] == str(path)


def test_a_name_that_is_taken_is_told_and_its_file_kept(
    cli: Cli, demo: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_text("mine")
    command = ("generate", demo, PROMPT, "-o", tmp_path / "a.png", *FAST)
    outcome = cli(*command)
    assert outcome.out.startswith(f"{tmp_path / 'a-2.png'}\t")
    assert outcome.err.startswith(f"note: {tmp_path / 'a.png'} is there and is kept")
    assert (tmp_path / "a.png").read_text() == "mine"
    outcome = cli(*command, "--overwrite")
    assert outcome.out.startswith(f"{tmp_path / 'a.png'}\t")
    assert outcome.err == ""
    assert Image.open(tmp_path / "a.png").format == "PNG"


def test_batches_of_any_size_make_the_same_images(cli: Cli, demo: str, tmp_path: Path) -> None:
    prompts = ("a green star", "a yellow heart", PROMPT)
    made = []
    for size in (1, 2, 3):
        folder = tmp_path / str(size)
        outcome = cli(
            *("generate", demo, *prompts, "--steps", "2", "--seed", "5", "--sampler"),
            *("euler_ancestral", "-o", folder / "a.png", "--batch-size", size),
        )
        assert outcome.code == 0, outcome.err
        told = [line.split()[0] for line in outcome.err.splitlines()]
        assert told == [f"[{min(done, 3)}/3]" for done in range(size, 3 + size, size)]
        made.append([Image.open(folder / f"a-{n}.png").tobytes() for n in (1, 2, 3)])
    assert made[0] == made[1] == made[2]
    assert len(set(made[0])) == 3


def test_prompts_from_a_file_labels_on_a_sheet_and_json(
    cli: Cli, demo: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("# shapes\na green star\n\na yellow heart\n")
    command = ("generate", demo, "--prompts-file", tmp_path / "prompts.txt", *FAST, "--json")
    outcome = cli(*command, "-o", tmp_path / "a.png", "--grid", tmp_path / "sheet.png", "--seed=7")
    assert outcome.code == 0, outcome.err
    assert [json.loads(line) for line in outcome.out.splitlines()] == [
        {"path": str(tmp_path / "a-1.png"), "seed": 7, "prompt": "a green star"},
        {"path": str(tmp_path / "a-2.png"), "seed": 8, "prompt": "a yellow heart"},
        {"path": str(tmp_path / "sheet.png"), "grid": 2},
    ]
    images = [Image.open(tmp_path / f"a-{number}.png") for number in (1, 2)]
    sheet = image_grid(images, ["seed 7: a green star", "seed 8: a yellow heart"])
    assert Image.open(tmp_path / "sheet.png").tobytes() == sheet.tobytes()
    latents = cli(*command, "-o", tmp_path / "a.safetensors", "--grid", tmp_path / "sheet.png")
    assert "latents are none" in latents.refusal()


def test_latents_of_several_batches_go_into_one_file(cli: Cli, demo: str, tmp_path: Path) -> None:
    common = ("generate", demo, PROMPT, "--count", 3, *FAST, "--seed", 4, "--batch-size", 2)
    outcome = cli(*common, "-o", tmp_path / "a.safetensors")
    assert outcome.out == f"{tmp_path / 'a.safetensors'}\tseeds 4, 5, 6\n"
    assert len(load_file(tmp_path / "a.safetensors")["latents"]) == 3


def test_syntax_that_is_not_read_is_hinted_at_once(cli: Cli, demo: str, tmp_path: Path) -> None:
    command = ("generate", demo, "a (red:1.3) circle", "a (green:1.2) star", *FAST)
    outcome = cli(*command, "-o", tmp_path / "a.png")
    assert outcome.err.startswith("hint: '(red:1.3)' is read as plain text: ")
    assert outcome.err.count("hint") == 1
    assert "--weighting a1111" in outcome.err
    assert cli(*command, "-o", tmp_path / "b.png", "--weighting", "a1111").err == ""


def test_prompts_of_an_ascii_terminal(cli: Cli, demo: str, tmp_path: Path) -> None:
    """Python hands over what is no ASCII as lone surrogates."""
    typed = os.fsencode("café").decode("ascii", errors="surrogateescape")
    for name, prompt in (("a.png", "café"), ("b.png", typed)):
        arguments = ("--negative", prompt, "--steps", "1", "--seed", "1", "-o", tmp_path / name)
        assert cli("generate", demo, prompt, *map(str, arguments)).code == 0
    images = [Image.open(tmp_path / name) for name in ("a.png", "b.png")]
    assert images[0].info == images[1].info
    assert "café" in images[0].info["parameters"]


def test_truncation_is_told_once(cli: Cli, demo: str, tmp_path: Path) -> None:
    prompt = "a red circle and " * 60 + "a purple heart"
    outcome = cli("generate", demo, prompt, "-o", tmp_path / "a.png", *FAST)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: the prompt is too long")
    assert outcome.err.rstrip().endswith("a purple heart'")
    assert (tmp_path / "a.png").is_file()


def test_with_weighting_a_long_prompt_is_read_whole(cli: Cli, demo: str, tmp_path: Path) -> None:
    prompt = "a (red:1.2) circle and " * 60 + "a purple heart"
    arguments = ["--weighting", "a1111", "-o", tmp_path / "a.png", *FAST]
    outcome = cli("generate", demo, prompt, *arguments)
    assert outcome.code == 0
    assert re.fullmatch(r"The longest prompt is read in \d+ chunks\.\n", outcome.err)
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sampler", "magic"], SAMPLERS),
        (["--schedule", "magic"], SCHEDULES),
        (["--width", "70"], ["--width must be a multiple of 4", "68", "72"]),
        (["--height", "-8"], ["--height must", "-8"]),
        (["--steps", "0"], ["--steps must", "at least 1"]),
        (["--count", "0"], ["--count must", "at least 1", "0"]),
        (["--seed", "-1"], ["--seed must", "at least 0"]),
        (["--guidance", "nan"], ["--guidance-scale must", "nan"]),
        (["--guidance-rescale", "2"], ["--guidance-rescale must", "at most 1"]),
        (["--strength", "0.5"], ["--strength says how much of an image to redo"]),
        (["--denoising-start", "0.5"], ["--denoising-start goes on", "same --denoising-end"]),
        (["--sampler", "clip_skip"], ["'clip_skip'"]),
        (["--guidance-interval", "1"], ["--guidance-interval", "0.3:5.4", "'1'"]),
        (["--guidance-interval", "5:1"], ["--guidance-interval", "the lower one first"]),
        (["--deep-cache", "1"], ["--deep-cache=1", "leave it out"]),
        (["--deep-cache", "3"], ["kdrt export demo --variant deepcache"]),
        (["--clip-skip", "99"], ["--clip-skip", "99"]),
        (["--freeu", "1,2,3"], ["--freeu", "four numbers"]),
        (["--freeu", "1,2,3,x"], ["--freeu", "four numbers"]),
        (["--freeu", "sd9"], ["no preset 'sd9'", "sd14, sd15, sd21, sdxl"]),
        (["--sampler-option", "eta"], ["NAME=VALUE"]),
        (["--sampler-option", "eta=0.5"], ["dpmpp_2m", "eta"]),
        (["--sampler", "euler", "--sampler-option", "s_churn=-1"], ["s_churn", "-1"]),
        (["--schedule-option", "rho"], ["--schedule-option", "rho=5"]),
        (["--schedule-option", "eta=1"], ["karras", "'eta'", "rho"]),
        (["--schedule-option", "discard_penultimate=yes"], ["True or False"]),
        (["--sigmas", "1,x"], ["--sigmas", "1,x"]),
        (["--sigmas", "1,2"], ["descend"]),
        (["--timesteps", "1000,2"], ["999"]),
        (["--noise", "magic"], ["per_image", "brownian", "a1111", "comfyui"]),
        (["--noise-option", "source=nv"], ["per_image", "source"]),
        (["--noise", "a1111", "--noise-seed", "3"], ["eta_noise_seed_delta"]),
        (["--engine", "magic"], ["magic", "onnxruntime"]),
        (["--engine", "torch"], ["--target torch"]),
        (["--threads", "0"], ["threads", "at least 1"]),
    ],
)
def test_a_wrong_option_says_what_is_allowed(
    cli: Cli, demo: str, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    refusal = cli("generate", demo, PROMPT, "-o", tmp_path / "a.png", *arguments).refusal()
    assert all(word in refusal for word in said), refusal
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps must be"),
        (["--strength", "0.5"], "--strength says"),
        (["--sampler", "magic"], "magic"),
        (["--schedule", "magic"], "magic"),
        (["--noise", "magic"], "magic"),
        (["--sigmas", "1,2"], "descend"),
        (["--width", "1"], "--width must be"),
    ],
)
def test_what_no_model_takes_is_refused_before_the_bundle_is_opened(
    cli: Cli, home: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    options = ("-o", tmp_path / "a.png", "--lora", "nothing.safetensors", *arguments)
    assert said in cli("generate", "nothing", PROMPT, *options).refusal()


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt(cli: Cli, demo: str, tmp_path: Path, prompt: str) -> None:
    outcome = cli("generate", demo, prompt, "-o", tmp_path / "a.png", *FAST, "--seed", 2**64 - 1)
    assert outcome.code == 0, outcome.err
    known = json.loads(cli("info", tmp_path / "a.png", "--json").out)
    assert known["Prompt"] == ""
    assert known["Seed"] == str(2**64 - 1)
    assert known["Program"].startswith("kdrt ")


def test_a_long_prompt_in_a_jpeg(cli: Cli, demo: str, tmp_path: Path) -> None:
    prompt = "a red circle, " * 3000
    outcome = cli("generate", demo, prompt, "-o", tmp_path / "a.jpg", *FAST, "--seed", "7")
    assert outcome.code == 0, outcome.err
    assert "warning: a JPEG holds 32500 characters of infotext" in outcome.err
    known = json.loads(cli("info", tmp_path / "a.jpg", "--json").out)
    assert known["Seed"] == "7"
    assert known["Prompt"].startswith(prompt[:30_000])


@pytest.mark.parametrize("command", [["inspect"], ["generate"]])
def test_a_missing_bundle(cli: Cli, home: Path, tmp_path: Path, command: list[str]) -> None:
    rest = [PROMPT, "-o", tmp_path / "a.png"] if command == ["generate"] else []
    refusal = cli(*command, "nothing", *rest).refusal()
    assert "nothing" in refusal
    assert "kdrt export" in refusal


@pytest.fixture
def copy(demo_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of one's own to damage."""
    ignored = shutil.ignore_patterns("engines")
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle", ignore=ignored))


def refusals(cli: Cli, bundle: Path, tmp_path: Path) -> set[str]:
    """What ``inspect`` and ``generate`` say, which must be the same."""
    inspected = cli("inspect", bundle).refusal()
    generated = cli("generate", bundle, PROMPT, "-o", tmp_path / "a.png").refusal()
    return {inspected, generated}


def test_a_flipped_byte(cli: Cli, copy: Path, tmp_path: Path) -> None:
    victim = max(copy.rglob("*"), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    (said,) = refusals(cli, copy, tmp_path)
    assert "damaged" in said
    assert victim.relative_to(copy).as_posix() in said


def test_a_missing_file(cli: Cli, copy: Path, tmp_path: Path) -> None:
    victim = next(copy.rglob("model.onnx"))
    victim.unlink()
    (said,) = refusals(cli, copy, tmp_path)
    assert victim.relative_to(copy).as_posix() in said


def test_an_unknown_schema(cli: Cli, copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 999}))
    (said,) = refusals(cli, copy, tmp_path)
    assert "999" in said
    assert "export the model again" in said


@pytest.mark.parametrize("text", ["", "{}", "[1]", "not json", '{"schema_version": 1}'])
def test_a_damaged_manifest(cli: Cli, copy: Path, tmp_path: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    (said,) = refusals(cli, copy, tmp_path)
    assert "manifest.json is damaged" in said


def test_a_folder_that_is_no_bundle(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (said,) = refusals(cli, tmp_path / "empty", tmp_path)
    assert "not a bundle" in said


@pytest.mark.parametrize("name", ["out", "out.bmp", "out.txt"])
def test_an_unknown_kind_of_image(cli: Cli, home: Path, tmp_path: Path, name: str) -> None:
    refusal = cli("generate", "nothing", PROMPT, "-o", tmp_path / name).refusal()
    assert ".png" in refusal


def test_an_unwritable_place_is_refused_before_the_bundle_is_opened(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    refusal = cli("generate", "nothing", PROMPT, "-o", tmp_path / "file" / "a.png").refusal()
    assert "cannot write" in refusal
    assert str(tmp_path / "file") in refusal
    (tmp_path / "a.png").mkdir()
    assert "folder" in cli("generate", "nothing", PROMPT, "-o", tmp_path / "a.png").refusal()
    os.mkfifo(tmp_path / "d-2.png")
    (tmp_path / "b.png").symlink_to("/dev/null")
    for option in ("--count=2 --overwrite -o d.png", "-o b.png", "-o c.png --preview b.png"):
        words = [str(tmp_path / w) if w.endswith("png") else w for w in option.split()]
        assert "device or a pipe" in cli("generate", "nothing", PROMPT, *words).refusal()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(cli: Cli, home: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    target = tmp_path / "locked" / "a.png"
    assert "cannot write" in cli("generate", "nothing", PROMPT, "-o", target).refusal()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_generate_lets_pass_can_be_saved(tmp_path: Path, suffix: str) -> None:
    save_image(Image.new("RGB", (8, 8)), tmp_path / f"a{suffix}")


def test_info_on_other_files(cli: Cli, tmp_path: Path) -> None:
    assert "No such file" in cli("info", tmp_path / "missing.png").refusal()
    (tmp_path / "text.png").write_text("no image")
    assert "not an image" in cli("info", tmp_path / "text.png").refusal()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert "no generation parameters" in cli("info", tmp_path / "plain.png").refusal()


def test_inspect_shows_networks_and_figures(cli: Cli, demo: str, demo_bundle: Path) -> None:
    outcome = cli("inspect", demo)
    assert outcome.code == 0
    manifest = json.loads((demo_bundle / "manifest.json").read_text())
    for name, component in manifest["components"].items():
        assert name in outcome.out
        assert f"{component['parameters']:,}" in outcome.out
        for check in component["verification"]:
            assert f"{check['relative_error']:.1e}" in outcome.out
    assert json.loads(cli("inspect", demo, "--json").out) == manifest


def test_generating_loads_nothing_of_the_exporter(demo_home: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from kdrt import cli; "
        f"code = cli.run(['generate', 'demo', {PROMPT!r}, '--steps', '1', '-o', 'a.png']); "
        "foreign = {'kdrt_export', 'diffusers', 'transformers', 'onnx', 'onnxscript', 'peft'}; "
        "sys.exit(f'loaded: {foreign & set(sys.modules)}' if foreign & set(sys.modules) else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={
            **os.environ,
            "KDRT_HOME": str(demo_home),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.png").is_file()


def test_networks_in_turn_make_the_same_image(cli: Cli, demo: str, tmp_path: Path) -> None:
    paths = tmp_path / "at-once.png", tmp_path / "in-turn.png"
    for path, options in zip(paths, ((), ("--low-vram", "--cuda-graph", "off")), strict=True):
        outcome = cli("generate", demo, PROMPT, "-o", path, *FAST, "--seed", "7", *options)
        assert outcome.code == 0, outcome.err
    assert Image.open(paths[0]).tobytes() == Image.open(paths[1]).tobytes()


def test_graphs_without_cuda_are_refused(cli: Cli, demo: str, tmp_path: Path) -> None:
    command = ("generate", demo, PROMPT, "-o", tmp_path / "a.png", "--engine", "onnxruntime")
    assert "cuda_graph='loop' needs CUDA" in cli(*command, "--cuda-graph", "loop").refusal()
    assert "unknown cuda_graph 'all'" in cli(*command, "--cuda-graph", "all").refusal()
    assert "cannot have a fallback" in cli(*command, "--low-vram", "--fallback", "torch").refusal()


def test_a_warning_where_memory_is_short(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdrt.pipeline.memory.free_memory", lambda device: 1000)
    outcome = cli("generate", demo, PROMPT, "-o", tmp_path / "a.png", *FAST)
    assert outcome.code == 0
    assert "warning: this needs at least" in outcome.err
    assert "--low-vram" in outcome.err
    inspected = cli("inspect", demo)
    assert "at once" in inspected.out
