"""Many prompts: one a line, made together, each image saved as soon as it is done.

    python examples/many_prompts.py prompts.txt [BUNDLE]

Images are ``00000.png``, ``00001.png``, … in the folder ``-o``. Those that are there are not made
again, so an interrupted run goes on where it was. The seed of line n is n: an image does not depend
on its company.
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
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()

    lines = enumerate(arguments.prompts.read_text(encoding="utf-8").splitlines())
    todo = [
        (number, prompt, path)
        for number, prompt in lines
        if prompt.strip() and not (path := arguments.output / f"{number:05}.png").exists()
    ]
    requests: list[kdrt.Request] = [
        {"prompt": prompt, "seed": number, "steps": arguments.steps} for number, prompt, _ in todo
    ]
    begun = time.monotonic()
    with kdrt.load(arguments.bundle) as pipe, kdrt.Batcher(pipe) as batcher:
        for done, result in enumerate(batcher.map(requests), start=1):
            print(result.save(todo[done - 1][2]))
            left = (time.monotonic() - begun) / done * (len(todo) - done)
            print(f"{done} of {len(todo)}, {left:.0f} s left")


if __name__ == "__main__":
    main()
