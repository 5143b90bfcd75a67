"""Image to image: the same composition with another subject.

    python examples/image_to_image.py [BUNDLE]

``strength`` is how much is made anew: near 0 the image stays, at 1 only its size is kept. Writes
``before.png`` and, for three strengths, ``after-….png``.
"""

from __future__ import annotations

import sys

import kdrt


def main(bundle: str = "demo") -> None:
    pipe = kdrt.load(bundle)
    before = pipe("a red circle on a blue background", seed=7)
    before.save("before.png")
    for strength in (0.3, 0.6, 0.9):
        after = pipe(
            "a green star on a blue background",
            image=before.images[0],
            strength=strength,
            seed=7,
        )
        print(after.save(f"after-{strength}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
