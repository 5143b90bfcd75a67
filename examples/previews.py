"""Previews: take the steps yourself and look at the image on the way.

    python examples/previews.py [BUNDLE]

A preview is one small matrix product, far cheaper than the VAE. Writes ``making.webp``, an
animation of all steps, and ``previews.png``, the finished image. To cancel, leave the loop and
close the generation.
"""

from __future__ import annotations

import sys

import kdrt


def main(bundle: str = "demo") -> None:
    pipe = kdrt.load(bundle)
    generation = pipe.stream("a yellow star on a green background", seed=3, steps=12)
    frames = []
    for step in generation:
        print(f"{step.index + 1} of {len(generation)}: sigma {step.sigma:.2f}")
        frames.append(step.preview()[0].resize((256, 256)))
    result = generation.result()
    frames += [result.images[0].resize((256, 256))] * 5
    frames[0].save("making.webp", save_all=True, append_images=frames[1:], duration=150)
    print(result.save("previews.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
