"""What becomes of the images of a command: files, a line about each, and a sheet of all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer
from PIL import Image
from torch import Tensor

from kdrt.cli.batches import Series
from kdrt.cli.console import one_line, print_json
from kdrt.cli.image_files import ImageFiles
from kdrt.cli.latents_file import save_latents
from kdrt.images.output import save_image
from kdrt.images.sheet import MAX_SHEET_SIDE, SheetLayout, image_grid, sheet_layout

if TYPE_CHECKING:
    from kdrt import Result


class ImageOutput:
    """Saves each image as soon as it is there, and prints a line with its path and seed.

    Attributes:
        saved: how many images are saved.

    Args:
        series: the images to come.
        files: for the images.
        sheet: for a sheet of all, or None.
        as_json: print JSON, one object a line.

    Raises:
        InvalidRequestError: so many images do not fit on a sheet.
    """

    def __init__(
        self, series: Series, files: ImageFiles, sheet: ImageFiles | None, *, as_json: bool
    ) -> None:
        self.saved = 0
        self._series = series
        self._files = files
        self._sheet = None if sheet is None else _Sheet(series, sheet)
        self._as_json = as_json

    def add(self, result: Result[Any]) -> None:
        """The next images are made."""
        for index, seed in enumerate(result.seeds):
            path = self._save(result, index)
            prompt = self._series.prompts[self.saved]
            self.saved += 1
            _print_line(self._as_json, path, f"seed {seed}", {"seed": seed, "prompt": prompt})

    def finish(self) -> None:
        """There are no more images."""
        if self._sheet is not None:
            path = self._sheet.save()
            _print_line(self._as_json, path, f"grid of {self.saved}", {"grid": self.saved})

    def _save(self, result: Result[Any], index: int) -> Path:
        if self._sheet is not None:
            self._sheet.add(result.images[index])
        return self._files.save(
            lambda path, overwrite: result.save(path, index, overwrite=overwrite)
        )


class LatentsOutput:
    """Keeps the latents of all images, for one file.

    Attributes:
        saved: how many images are saved: none before all of them are there.
    """

    def __init__(self, series: Series, files: ImageFiles, *, as_json: bool) -> None:
        self.saved = 0
        self._series = series
        self._files = files
        self._as_json = as_json
        self._latents: list[Tensor] = []

    def add(self, result: Result[Any]) -> None:
        """The next latents are made."""
        assert isinstance(result.images, Tensor)
        self._latents.append(result.images.cpu())

    def finish(self) -> None:
        """There are no more latents."""
        latents = torch.cat(self._latents)
        path = self._files.save(
            lambda path, overwrite: save_latents(latents, path, overwrite=overwrite)
        )
        self.saved = len(latents)
        seeds, prompts = list(self._series.seeds), list(self._series.prompts)
        told = ", ".join(map(str, seeds))
        _print_line(
            self._as_json,
            path,
            f"seed{'s' * (len(seeds) > 1)} {told}",
            {"seeds": seeds, "prompts": prompts},
        )


class _Sheet:
    """The images of a sheet, no larger than they will be on it."""

    def __init__(self, series: Series, files: ImageFiles) -> None:
        sheet_layout(len(series), (MAX_SHEET_SIDE, MAX_SHEET_SIDE))  # whether they fit at all
        self._series = series
        self._files = files
        self._layout: SheetLayout | None = None
        self._images: list[Image.Image] = []

    def add(self, image: Any) -> None:
        if self._layout is None:
            self._layout = sheet_layout(len(self._series), image.size)
        self._images.append(self._layout.shrunk(image))

    def save(self) -> Path:
        sheet = image_grid(self._images, self._labels())
        return self._files.save(
            lambda path, overwrite: save_image(sheet, path, overwrite=overwrite)
        )

    def _labels(self) -> list[str]:
        """The seeds, which are never cut, and the prompts where they differ."""
        differ = len(set(self._series.prompts)) > 1
        return [
            f"seed {seed}: {prompt}" if differ else f"seed {seed}"
            for seed, prompt in zip(self._series.seeds, self._series.prompts, strict=True)
        ]


def _print_line(as_json: bool, path: Path, told: str, facts: dict[str, Any]) -> None:
    if as_json:
        print_json({"path": str(path), **facts}, indent=None)
        sys.stdout.flush()  # a reader need not wait for the last image
    else:
        typer.echo(f"{one_line(path)}\t{told}")
