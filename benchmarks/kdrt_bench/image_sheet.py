"""Images beside each other, with labels."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from PIL import Image, ImageDraw, ImageFont

WIDTH = 128
"""At which an image is shown: the demo model's own are small."""
GAP, LINE, LABEL_WIDTH = 4, 15, 132
LETTERS = 20
"""Of a line of a label, so that it fits the width of an image."""


class Sheet:
    """Images in rows, with a label for every column and row."""

    def __init__(self, columns: Sequence[str], width: int = WIDTH) -> None:
        self.columns, self.width = [fill(text, LETTERS) for text in columns], width
        self.rows: list[tuple[str, list[Image.Image]]] = []

    def add(self, label: str, images: Sequence[Image.Image]) -> None:
        """One more row, with as many images as there are columns."""
        if len(images) != len(self.columns):
            raise ValueError(f"{label}: {len(images)} images for {len(self.columns)} columns")
        self.rows.append((fill(label, LETTERS), [self._shown(image) for image in images]))

    def draw(self) -> Image.Image:
        """The sheet as one image."""
        margin = LABEL_WIDTH if any(label for label, _ in self.rows) else 0
        head = LINE * (1 + max(text.count("\n") for text in self.columns)) + 2 * GAP
        widths = [max(row[i].width for _, row in self.rows) + GAP for i in range(len(self.columns))]
        heights = [max(image.height for image in row) + GAP for _, row in self.rows]
        canvas = Image.new("RGB", (margin + sum(widths), head + sum(heights)), "white")
        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
        left = margin
        for text, width in zip(self.columns, widths, strict=True):
            middle = (left + (width - GAP) // 2, head // 2)
            pen.multiline_text(middle, text, "black", font, anchor="mm", align="center")
            left += width
        top = head
        for (label, images), height in zip(self.rows, heights, strict=True):
            middle = (margin - 8, top + (height - GAP) // 2)
            pen.multiline_text(middle, label, "black", font, anchor="rm", align="right")
            left = margin
            for image, width in zip(images, widths, strict=True):
                canvas.paste(image, (left, top))
                left += width
            top += height
        return canvas

    def _shown(self, image: Image.Image) -> Image.Image:
        height = round(image.height * self.width / image.width)
        return image.convert("RGB").resize((self.width, height), Image.Resampling.LANCZOS)
