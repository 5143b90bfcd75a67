"""Tuning: what is compared, what wins, and that it is kept and used only where it holds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdrt
from kdrt.backends import tuned
from kdrt.backends.doctor import examine
from kdrt.backends.fallback import FallbackWarning
from kdrt.backends.loading import load_engines
from kdrt.backends.trust import trust_bundle
from kdrt.backends.tuned import TunedComponent, keep_tuned, tuned_components
from kdrt.backends.tuned_loader import TunedLoader
from kdrt.build.tune import median_interval, tune
from kdrt.bundle import Bundle, remove_bundle
from kdrt.cli import run
from kdrt.errors import InvalidRequestError
from kdrt_engines.onnxruntime.engine import OrtEngine
from kdrt_export.report import Silent
from tests.support.linked_bundle import linked_bundle
from tests.support.openvino import needs_openvino
from tests.support.timed_engine import Clock, Costs, TimedEngine, TimedLoader

STEADY, FASTER, HARDLY = (1.0, 1.1), (0.5, 0.6), (0.9, 1.3)


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> Bundle:
    return linked_bundle(demo_bundle, tmp_path / "demo")


def tuned_with(
    bundle: Bundle, costs: Costs, factor: float = 1.0, component: str = "text_encoder"
) -> TunedComponent:
    """``factor`` is that of the results of all engines but ONNX Runtime."""
    clock = Clock()

    def make(of: Bundle, name: str) -> TimedLoader:
        return TimedLoader(of, clock, costs[name], 1.0 if name == "onnxruntime" else factor)

    found = tune(
        bundle,
        components=[component],
        report=Silent(),
        engines=list(costs),
        make=make,
        clock=clock,
    )
    return found[component]


def test_the_faster_engine_wins(bundle: Bundle) -> None:
    found = tuned_with(bundle, {"onnxruntime": STEADY, "openvino": FASTER})
    assert (found.engine, found.automatic, found.rounds) == ("openvino", "onnxruntime", 10)
    assert found.dims == {"B": 1, "L": 32}
    by_engine = {timing.engine: timing for timing in found.timings}
    assert by_engine["openvino"].median == pytest.approx(0.55)
    assert (by_engine["onnxruntime"].low, by_engine["onnxruntime"].high) == pytest.approx(STEADY)
    assert found.why() == (
        "openvino 550 ms (500 to 600), faster than onnxruntime 1.05e+03 ms (1e+03 to 1.1e+03); "
        "medians of 10 runs at B=1 L=32"
    )


def test_without_a_sure_winner_nothing_changes(bundle: Bundle) -> None:
    found = tuned_with(bundle, {"onnxruntime": (1.0, 1.3), "openvino": HARDLY})
    assert found.engine == "onnxruntime"
    assert "and none is faster beyond doubt: openvino" in found.why()


@pytest.mark.parametrize(
    ("engine", "factor", "reason"),
    [
        ("inductor", 1.0, "it is compiled for some sizes, and runs the others as torch does"),
        ("openvino:bf16", 1.0, "it computes in bfloat16, not in float32"),
        ("openvino", 1.004, "its results differ by 4.0e-03 relative"),
        ("onnxruntime-cuda", 1.0, "its tensors are on another device (cuda)"),
        ("torch", None, "it is not in this bundle"),
    ],
)
def test_only_equals_are_compared(
    bundle: Bundle, engine: str, factor: float | None, reason: str
) -> None:
    costs = {"onnxruntime": STEADY, engine: None if factor is None else FASTER}
    found = tuned_with(bundle, costs, factor or 1.0)
    assert found.left_out == {engine: reason}
    assert found.engine == "onnxruntime"
    assert "the only one that could be compared" in found.why()


def test_engines_take_turns(bundle: Bundle) -> None:
    order: list[str] = []

    def noted(name: str) -> Iterator[float]:
        while True:
            order.append(name)
            yield 1.0

    a, b = "onnxruntime", "openvino"
    tuned_with(bundle, {a: noted(a), b: noted(b)})
    assert order == [a, b, *[a, b, b, a] * 5], "first the results, then the rounds"


def test_what_most_images_leave_off_is_off(bundle: Bundle) -> None:
    """With FreeU, ONNX Runtime would compute the whole network in place of the reduced one."""
    clock = Clock()
    loader = TimedLoader(bundle, clock, STEADY)
    tune(
        bundle,
        components=["unet"],
        report=Silent(),
        engines=["onnxruntime"],
        make=lambda *_: loader,
        clock=clock,
    )
    (binding,) = loader.bindings
    assert (binding.inputs["freeu"] == 1).all()
    assert binding.inputs["sample"].std() > 0.5


@pytest.mark.parametrize("count", [6, 10, 15, 40])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    draw = random.Random(count)
    held = 0
    for _ in range(2000):
        low, high = median_interval([draw.random() for _ in range(count)])
        held += low <= 0.5 <= high
    # Three standard deviations below 95 percent, and not as wide as all values.
    assert held / 2000 > 0.95 - 3 * (0.95 * 0.05 / 2000) ** 0.5
    assert count == 6 or held / 2000 < 0.999


def test_it_is_kept_for_this_machine_and_these_versions(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuned_with(bundle, {"onnxruntime": STEADY, "openvino": FASTER})
    assert tuned_components(bundle) == {}
    keep_tuned(bundle, {"text_encoder": found})
    keep_tuned(bundle, {"unet": found})
    assert tuned_components(bundle) == {"text_encoder": found, "unet": found}
    for name in ("processor", "installed_version", "cores"):
        with monkeypatch.context() as patch:
            patch.setattr(tuned, name, lambda *_: "another")
            assert tuned_components(bundle) == {}
    remove_bundle(bundle.path)
    assert not bundle.path.exists()


def test_it_is_kept_for_each_network_by_itself(bundle: Bundle) -> None:
    found = tuned_with(bundle, {"onnxruntime": STEADY, "openvino": FASTER})
    keep_tuned(bundle, {"text_encoder": found, "unet": found})
    manifest = bundle.manifest
    another = {**manifest.files, manifest.components["unet"].onnx: "0" * 64}
    changed = Bundle(bundle.path, manifest.model_copy(update={"files": another}))
    assert tuned_components(changed) == {"text_encoder": found}
    more = {**manifest.components, "unet-control": manifest.components["vae_decoder"]}
    added = Bundle(bundle.path, manifest.model_copy(update={"components": more}))
    assert tuned_components(added) == {"text_encoder": found, "unet": found}


def test_what_somebody_else_measured_is_not_used_until_it_is_trusted(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuned_with(bundle, {"onnxruntime": STEADY, "openvino": FASTER})
    place = keep_tuned(bundle, {"unet": found})
    monkeypatch.setenv("KDRT_HOME", str(tmp_path / "another"))
    assert tuned_components(bundle) == {}
    assert trust_bundle(bundle) == [place]
    assert tuned_components(bundle) == {"unet": found}
    place.write_text(place.read_text().replace("0.5", "0.4"))
    assert tuned_components(bundle) == {}
    place.write_text("{")
    assert tuned_components(bundle) == {}


def test_an_engine_without_a_timing_is_not_used(bundle: Bundle) -> None:
    found = tuned_with(bundle, {"onnxruntime": STEADY, "openvino": FASTER})
    place = keep_tuned(bundle, {"unet": found})
    place.write_text(place.read_text().replace('"engine": "openvino"', '"engine": "torch"', 1))
    trust_bundle(bundle)
    assert tuned_components(bundle) == {}
    assert examine().tuned == {}


@needs_openvino
def test_a_pipeline_uses_it_where_no_engine_is_named(bundle: Bundle) -> None:
    found = tuned_with(bundle, {"onnxruntime": STEADY, "openvino": FASTER})
    keep_tuned(bundle, {"text_encoder": found})
    engines = load_engines(bundle)
    assert type(engines["text_encoder"]).__name__ == "OpenVinoEngine"
    assert isinstance(engines["text_encoder_2"], OrtEngine)
    assert isinstance(load_engines(bundle, "onnxruntime")["text_encoder"], OrtEngine)
    keep_tuned(bundle, {"text_encoder": found.model_copy(update={"automatic": "tensorrt"})})
    assert isinstance(load_engines(bundle)["text_encoder"], OrtEngine), "then all is different"


def test_an_engine_that_has_gone_is_said_and_replaced(bundle: Bundle) -> None:
    usual = TimedLoader(bundle, Clock(), STEADY)
    loader = TunedLoader(
        usual, "onnxruntime", {"unet": "torch"}, lambda _: TimedLoader(bundle, Clock(), None)
    )
    with pytest.warns(FallbackWarning, match="unet runs on onnxruntime: it is not in this bundle"):
        assert isinstance(loader.load("unet"), TimedEngine)
    assert isinstance(loader.load("text_encoder"), TimedEngine)


def test_the_commands(
    demo_bundle: Path, home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bundle = linked_bundle(demo_bundle, home / "bundles" / "mine")
    assert run(["tune", "mine", "--component", "text_encoder"]) == 0
    out, err = capsys.readouterr()
    assert "used from now on" in out
    assert "torch is not compared: the bundle has no torch engine" in err
    (name,) = tuned_components(bundle)
    assert name == "text_encoder"
    assert "medians of 10 runs at B=1 L=32" in examine().tuned["mine"]["text_encoder"]
    assert run(["doctor"]) == 0
    assert "mine, by kdrt tune on this machine" in capsys.readouterr().out
    assert run(["tune", "mine", "--rounds", "9"]) == 2
    assert "rounds must be" in capsys.readouterr().err
    assert kdrt.load(bundle)("a star", steps=1).images


def test_too_few_rounds_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InvalidRequestError, match="rounds must be"):
        tune(bundle, rounds=5, report=Silent())
