"""A page to try prompts on, with previews.

    pip install gradio
    python examples/gradio_app.py [BUNDLE]

Gradio takes requests in threads. A pipeline may be called from any of them: calls take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image

import kdrt
from kdrt.sampling import SAMPLERS, SCHEDULES

if TYPE_CHECKING:
    import gradio

SIZE = (512, 512)


class Generator:
    """Makes images for the page."""

    def __init__(self, pipe: kdrt.Pipeline) -> None:
        self._pipe = pipe

    def __call__(
        self, prompt: str, negative: str, sampler: str, schedule: str, steps: float, seed: float
    ) -> Iterator[tuple[Image.Image, str]]:
        """An image and a line below it, after every step; the finished image comes last."""
        generation = self._pipe.stream(
            prompt,
            negative or None,
            sampler=sampler,
            schedule=schedule,
            steps=int(steps),
            seed=None if seed < 0 else int(seed),
        )
        try:
            for step in generation:
                yield step.preview()[0].resize(SIZE), f"step {step.index + 1} of {len(generation)}"
            result = generation.result()
            yield result.images[0].resize(SIZE), str(result.infotexts[0])
        finally:
            generation.close()  # also when the visitor leaves half-way


def page(generate: Generator) -> gradio.Interface:
    """The page. Errors that the visitor can put right are shown as they are worded."""
    import gradio

    def shown(*arguments: Any) -> Iterator[tuple[Image.Image, str]]:
        try:
            yield from generate(*arguments)
        except kdrt.KdrtError as error:
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        shown,
        inputs=[
            gradio.Textbox("a red circle on a blue background", label="Prompt"),
            gradio.Textbox(label="Negative prompt"),
            gradio.Dropdown(list(SAMPLERS), value="dpmpp_2m", label="Sampler"),
            gradio.Dropdown(list(SCHEDULES), value="karras", label="Schedule"),
            gradio.Slider(1, 60, value=20, step=1, label="Steps"),
            gradio.Number(-1, precision=0, label="Seed (-1 draws one)"),
        ],
        outputs=[gradio.Image(label="Image"), gradio.Textbox(label="Parameters")],
        title="kdrt",
    )


if __name__ == "__main__":
    page(Generator(kdrt.load(*sys.argv[1:2] or ["demo"]))).queue().launch()
