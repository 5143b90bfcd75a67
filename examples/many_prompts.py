"""Many prompts: one a line, in batches, each image saved as soon as it is done.

    python examples/many_prompts.py prompts.txt [BUNDLE] --batch 4

Images are ``00000.png``, ``00001.png``, … in the folder ``-o``. Those that are there are not made
again, so an interrupted run goes on where it was. The seed of line n is n: an image does not depend
on its batch.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import kdrt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=Path)
    parser.add_argument("bundle", nargs="?", default="demo")
    parser.add_argument("-o", "--output", type=Path, default=Path("images"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()

    lines = enumerate(arguments.prompts.read_text(encoding="utf-8").splitlines())
    todo = [
        (number, prompt, path)
        for number, prompt in lines
        if prompt.strip() and not (path := arguments.output / f"{number:05}.png").exists()
    ]
    pipe = kdrt.load(arguments.bundle)
    begun = time.monotonic()
    for start in range(0, len(todo), arguments.batch):
        numbers, prompts, paths = zip(*todo[start : start + arguments.batch], strict=True)
        result = pipe(prompts, seed=numbers, steps=arguments.steps)
        for index, path in enumerate(paths):
            print(result.save(path, index))
        done = start + len(paths)
        left = (time.monotonic() - begun) / done * (len(todo) - done)
        print(f"{done} of {len(todo)}, {left:.0f} s left")


if __name__ == "__main__":
    main()
