"""The scripts of ``examples/`` run, and do what their first lines say."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageSequence

import kdrt

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, demo_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder where ``demo`` can be found."""
    monkeypatch.setenv("KDRT_HOME", str(demo_home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def pipe(demo_bundle: Path) -> kdrt.Pipeline:
    return kdrt.load(demo_bundle)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as a script; gives what it prints."""

    def run(name: str, *arguments: str) -> str:
        script = EXAMPLES / name
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


def module_of(name: str) -> ModuleType:
    """An example as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(path: Path | str) -> bytes:
    return Image.open(path).convert("RGB").tobytes()


def image_of(result: kdrt.Result[Any]) -> Image.Image:
    image = result.images[0]
    assert isinstance(image, Image.Image)
    return image


def test_text_to_image_makes_the_image_of_its_settings(run: Run, pipe: kdrt.Pipeline) -> None:
    assert "text-to-image.png" in run("text_to_image.py", "demo")
    prompt = "a red circle on a blue background"
    expected = image_of(pipe(prompt, seed=7, steps=20, guidance_scale=5.0))
    assert pixels("text-to-image.png") == expected.tobytes()
    assert str(kdrt.read_infotext("text-to-image.png")).startswith(prompt)


def test_image_to_image_stays_closer_at_a_lower_strength(run: Run) -> None:
    run("image_to_image.py", "demo")
    before = pixels("before.png")

    def distance(strength: float) -> int:
        after = pixels(f"after-{strength}.png")
        return sum(abs(a - b) for a, b in zip(after, before, strict=True))

    assert 0 < distance(0.3) < distance(0.6) < distance(0.9)


def test_the_sampler_of_ones_own_is_heun_without_a_threshold(run: Run) -> None:
    printed = run("custom_sampler.py", "demo")
    assert Image.open("custom-sampler.png").size == (64, 64)
    assert float(printed.rpartition(": ")[2]) < 1e-4


def test_the_schedule_of_ones_own_is_what_is_sampled(run: Run) -> None:
    printed = run("custom_schedule.py", "demo")
    sigmas = [float(level) for level in printed.splitlines()[0].split(", ")]
    assert len(sigmas) == 13
    assert sigmas == sorted(sigmas, reverse=True)
    assert (sigmas[0], sigmas[-1]) == (14.6, 0)
    assert Image.open("custom-schedule.png").size == (64, 64)


def test_many_prompts_go_on_where_they_were_interrupted(
    run: Run, folder: Path, pipe: kdrt.Pipeline
) -> None:
    (folder / "prompts.txt").write_text("a red circle\na green star\n\na yellow heart\n")
    options = ("prompts.txt", "demo", "--steps", "4", "-o", "made")
    printed = run("many_prompts.py", *options)
    assert sorted(path.name for path in Path("made").iterdir()) == [
        "00000.png",
        "00001.png",
        "00003.png",
    ]
    assert "3 of 3" in printed
    alone = image_of(pipe("a yellow heart", seed=3, steps=4))
    assert pixels("made/00003.png") == alone.tobytes()

    Path("made/00001.png").unlink()
    kept = Path("made/00000.png").stat().st_mtime_ns
    assert "1 of 1" in run("many_prompts.py", *options)
    assert Path("made/00001.png").is_file()
    assert Path("made/00000.png").stat().st_mtime_ns == kept


def test_previews_become_an_animation_with_a_frame_a_step(run: Run) -> None:
    printed = run("previews.py", "demo")
    assert "12 of 12" in printed
    assert len(ImageSequence.all_frames(Image.open("making.webp"))) > 10
    assert Image.open("previews.png").size == (64, 64)


def test_engines_are_built_without_a_gpu(run: Run) -> None:
    pytest.importorskip("tensorrt_rtx")
    run("build_engines.py", "demo", "--gpu", "sm89", "--component", "text_encoder", "-o", "built")
    (record,) = Path("built").rglob("record.json")
    built = json.loads(record.read_text())["built"]
    assert built["fused_attention"] == built["attention_sites"] > 0


def test_an_engine_without_fused_attention_is_named() -> None:
    def record(component: str, fused: int | None) -> dict[str, object]:
        key = {"component": component, "profiles": [{}, {}]}
        return {"key": key, "built": {"attention_sites": 3, "fused_attention": fused}}

    unfused = module_of("build_engines").unfused
    assert list(unfused([record("unet", 6), record("vae_decoder", 0)])) == []
    assert list(unfused([record("unet", 5)])) == ["unet: 5 of 6 attentions fused"]
    assert list(unfused([record("text_encoder", None)])) == [
        "text_encoder: None of 6 attentions fused"
    ]


def test_the_page_shows_every_step_and_then_the_image(pipe: kdrt.Pipeline) -> None:
    generate = module_of("gradio_app").Generator(pipe)
    shown = list(generate("a red circle", "", "euler", "karras", 3, 7))
    assert [line for _, line in shown[:3]] == [f"step {n} of 3" for n in (1, 2, 3)]
    image, line = shown[3]
    assert line.startswith("a red circle")
    assert "Seed: 7" in line
    alone = image_of(pipe("a red circle", sampler="euler", steps=3, seed=7))
    assert image.tobytes() == alone.resize(image.size).tobytes()


def test_a_visitor_who_leaves_frees_the_pipeline(pipe: kdrt.Pipeline) -> None:
    shown = module_of("gradio_app").Generator(pipe)("a red circle", "", "euler", "karras", 3, 7)
    next(shown)
    shown.close()
    assert pipe("a red circle", steps=1, seed=7).images


def test_the_page_is_built(pipe: kdrt.Pipeline) -> None:
    gradio = pytest.importorskip("gradio")
    app = module_of("gradio_app")
    assert isinstance(app.page(app.Generator(pipe)), gradio.Interface)


def test_every_example_is_in_the_list() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"[{path.name}]({path.name})" in readme for path in EXAMPLES.glob("*.py"))
