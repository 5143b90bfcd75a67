"""``components`` and its views ask for no engine before they are read."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kdrt.bundle import Bundle
from kdrt.compat import StableDiffusionKDiffusionPipeline, StableDiffusionXLKDiffusionPipeline
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Engine
from tests.support.tiny_model import Family, tiny_model


class RecordingStore(Mapping[str, Engine]):
    """Engines by component; ``asked`` lists the components that were asked for."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines
        self.asked: list[str] = []

    def __getitem__(self, name: str) -> Engine:
        self.asked.append(name)
        return self._engines[name]

    def __contains__(self, name: object) -> bool:
        return name in self._engines

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)


Compat = StableDiffusionKDiffusionPipeline | StableDiffusionXLKDiffusionPipeline


def drop_in(bundle: Bundle, store: RecordingStore) -> Compat:
    pipeline = Pipeline(bundle, store)
    if bundle.manifest.family == "sd":
        return StableDiffusionKDiffusionPipeline(pipeline)
    return StableDiffusionXLKDiffusionPipeline(pipeline)


@pytest.fixture(params=["sd", "sdxl"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Compat, RecordingStore]:
    family: Family = request.param
    made = tiny_model(tmp_path, family).pipeline
    store = RecordingStore(made.engines)
    pipe = drop_in(made.bundle, store)
    store.asked.clear()
    return pipe, store


def test_components_ask_for_no_engine(recorded: tuple[Compat, RecordingStore]) -> None:
    pipe, store = recorded
    components = pipe.components
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= components.keys()
    assert store.asked == []
    assert pipe.config["unet"] == ("diffusers", "UNet2DConditionModel")
    assert store.asked == []


def test_a_view_asks_for_its_own_engine_alone(recorded: tuple[Compat, RecordingStore]) -> None:
    pipe, store = recorded
    assert pipe.components["unet"].config.in_channels == 4
    assert set(store.asked) == {"unet"}
    store.asked.clear()
    assert pipe.components["vae"].dtype == pipe.components["text_encoder"].dtype
    assert set(store.asked) == {"vae_decoder", "text_encoder"}


def test_a_view_shows_the_engine_that_runs_at_present(
    recorded: tuple[Compat, RecordingStore],
) -> None:
    pipe, _ = recorded
    unet, before = pipe.unet, pipe.unet.engine
    other = copy.copy(before)
    pipe.pipeline.replace_engines({"unet": other})
    assert unet.engine is other
