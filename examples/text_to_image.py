"""Text to image.

    python examples/text_to_image.py [BUNDLE]

Writes ``text-to-image.png``, which holds its prompt and settings: ``kdrt info`` shows them.
"""

from __future__ import annotations

import sys

import kdrt


def main(bundle: str = "demo") -> None:
    pipe = kdrt.load(bundle)
    result = pipe("a red circle on a blue background", seed=7, steps=20, guidance_scale=5.0)
    print(result.save("text-to-image.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
