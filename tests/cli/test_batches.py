"""A series of images in bounded batches, by a pipeline that only writes down what it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch

from kdrt.cli.batches import Series, chosen_batch_size, generate_batches
from kdrt.errors import InvalidRequestError, OutOfMemoryError
from kdrt.pipeline.result import Result


class Unet:
    """An engine's device and limits."""

    def __init__(self, device: str, rows: tuple[int, int] | None) -> None:
        self.device = torch.device(device)
        self._rows = rows

    def limits(self) -> Mapping[str, tuple[int, int]]:
        return {} if self._rows is None else {"B": self._rows}


class Recorder:
    """A pipeline with room for so many images at once."""

    def __init__(
        self, room: int = 100, device: str = "cpu", rows: tuple[int, int] | None = None
    ) -> None:
        self.room = room
        self.requests: list[dict[str, Any]] = []
        self.engines = {"unet": Unet(device, rows)}

    def __call__(self, **request: Any) -> Result[Any]:
        self.requests.append(request)
        if len(request["prompt"]) > self.room:
            raise OutOfMemoryError("memory ran out")
        return Result(images=[], seeds=request["seed"])

    @property
    def sizes(self) -> list[int]:
        return [len(request["prompt"]) for request in self.requests]


def series(images: int = 5, **fields: Any) -> Series:
    return Series.of({"prompt": [f"prompt {n}" for n in range(images)], "seed": 7} | fields)


def made(pipe: Recorder, images: Series, size: int) -> Iterator[int]:
    for result in generate_batches(pipe, images, size):  # type: ignore[arg-type]
        yield from result.seeds


def test_every_image_is_made_once_with_its_own_prompt_and_seed() -> None:
    pipe = Recorder()
    latents = torch.arange(6.0).reshape(6, 1, 1, 1)
    images = series(3, images_per_prompt=2, noise_seed=20, steps=4, latents=latents)
    assert list(made(pipe, images, 4)) == [7, 8, 9, 10, 11, 12]
    first, second = pipe.requests
    assert first["prompt"] == ["prompt 0", "prompt 0", "prompt 1", "prompt 1"]
    assert second["prompt"] == ["prompt 2", "prompt 2"]
    assert (first["noise_seed"], second["noise_seed"]) == ([20, 21, 22, 23], [24, 25])
    assert second["latents"].flatten().tolist() == [4, 5]
    assert first["steps"] == second["steps"] == 4
    assert "images_per_prompt" not in first


def test_seeds_that_are_drawn_count_up() -> None:
    seeds = series(4, seed=None).seeds
    assert [seed - seeds[0] for seed in seeds] == [0, 1, 2, 3]
    assert series(4, seed=None).seeds != seeds


def test_a_batch_is_made_when_it_is_asked_for() -> None:
    pipe = Recorder()
    batches = generate_batches(pipe, series(5), 2)  # type: ignore[arg-type]
    next(batches)
    assert pipe.sizes == [2]


def test_where_memory_runs_out_batches_shrink_and_no_image_is_lost() -> None:
    pipe = Recorder(room=2)
    assert list(made(pipe, series(7), 5)) == [7, 8, 9, 10, 11, 12, 13]
    assert pipe.sizes == [5, 2, 2, 2, 1]
    with pytest.raises(OutOfMemoryError):
        list(made(Recorder(room=0), series(2), 2))


@pytest.mark.parametrize(
    ("device", "rows", "size"),
    [
        ("cpu", None, 1),
        ("cuda", None, 4),
        ("cuda", (1, 4), 2),
        ("cuda", (1, 2), 1),
        ("cuda", (1, 1), 1),
        ("cuda", (16, 16), 8),
        ("cuda", (2, 64), 4),
    ],
)
def test_a_batch_is_as_large_as_the_engine_takes(
    device: str, rows: tuple[int, int] | None, size: int
) -> None:
    pipe = Recorder(device=device, rows=rows)
    assert chosen_batch_size(series(), pipe, None) == size  # type: ignore[arg-type]
    assert chosen_batch_size(series(), pipe, 3) == 3  # type: ignore[arg-type]


def test_noise_of_a_whole_batch_is_not_split() -> None:
    images, pipe = series(5, noise="comfyui"), Recorder()
    assert chosen_batch_size(images, pipe, None) == 5  # type: ignore[arg-type]
    assert chosen_batch_size(images, pipe, 5) == 5  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="leave --batch-size out"):
        chosen_batch_size(images, pipe, 4)  # type: ignore[arg-type]


def test_series_that_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="count must be at most"):
        series(images_per_prompt=10**23)
    with pytest.raises(InvalidRequestError, match="make them in several runs"):
        series(1000, images_per_prompt=10_000)
    with pytest.raises(InvalidRequestError, match="seed must be a whole number"):
        series(seed=-1)
    with pytest.raises(InvalidRequestError, match="2 latents for 5 images"):
        series(latents=torch.zeros(2, 4, 8, 8))
    with pytest.raises(InvalidRequestError, match="--batch-size must be"):
        chosen_batch_size(series(), Recorder(), 0)  # type: ignore[arg-type]
