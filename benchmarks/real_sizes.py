"""What models of the size that people use take here: seconds and memory, stage by stage.

    python benchmarks/real_sizes.py export sdxl --precision fp16 -o benchmarks/results
    python benchmarks/real_sizes.py image sdxl-random --side 1024 --steps 2 --low-vram
    python benchmarks/real_sizes.py image sd15-random --side 512 --steps 20 --vs diffusers

``export`` takes what ``kdrt export`` does; a short name stands for the architecture with random
weights. ``image`` takes a bundle, and with ``--vs diffusers`` makes the same image with diffusers'
pipeline, in turns. Everything is measured in a process of its own. Prints tables; with ``-o`` they
are added to ``real_sizes.json`` and ``real_sizes.md`` there, in place of those of the same title.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from kdrt.backends.doctor import examine
from kdrt.common.units import size
from kdrt.errors import KdrtError
from kdrt_bench.jobs import ImageWorkload, Strict
from kdrt_bench.models import model_of
from kdrt_bench.peers import find_peer
from kdrt_bench.stage_memory import StageRow, export_rows, image_rows, in_fresh_process, prepare
from kdrt_engines.installed import installed_version
from kdrt_engines.processors import cores

_PACKAGES = ("kdrt", "torch", "onnxruntime", "diffusers", "transformers")

Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder to write.")]
app = typer.Typer(add_completion=False, no_args_is_help=True)


class Measurement(Strict):
    """The stages of one export or image, and where it was made."""

    title: str
    machine: dict[str, str]
    rows: tuple[StageRow, ...]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(row.seconds for row in self.rows)

    @property
    def peak(self) -> int | None:
        """The most of all stages."""
        return max((row.peak for row in self.rows if row.peak is not None), default=None)


@app.command("export")
def export_command(
    source: str,
    precision: str = "fp32",
    weights: str = "float",
    output: Output = None,
) -> None:
    """Export a model, verified, into a folder that is removed afterwards."""
    random = not Path(source).exists()
    options: dict[str, Any] = {
        "precision": precision,
        "weights": weights,
        "random_weights": random,
        "safety_checker": False,
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as folder:
        rows = in_fresh_process(export_rows, source, Path(folder) / "bundle", options)
    kind = "random weights" if random else "a folder"
    stored = precision if weights == "float" else f"{precision}, weights {weights}"
    _tell(f"export of {Path(source).name}, {stored}, {kind}", rows, output)


@app.command("image")
def image_command(
    bundle: str,
    side: Annotated[int | None, typer.Option(help="Pixels; the model's own by default.")] = None,
    steps: int = 20,
    low_vram: Annotated[bool, typer.Option(help="Load the networks in turn.")] = False,
    vs: Annotated[str | None, typer.Option(help="A peer that makes it too.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often, in turns.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, show_default="all cores")] = None,
    output: Output = None,
) -> None:
    """Make an image, the first of a process."""
    model = model_of(bundle)
    workload = ImageWorkload(steps=steps, height=side, width=side)
    peers = {"kdrt": {"low_vram": "on"} if low_vram else {}}
    if vs is not None:
        find_peer(vs)
        peers[vs] = {}
    common = (model, workload, threads or cores())
    for peer, options in peers.items():
        in_fresh_process(prepare, peer, options, *common)
    for number in range(1, rounds + 1):
        for peer, options in peers.items():
            rows = in_fresh_process(image_rows, peer, options, *common)
            pixels = "its own size" if side is None else f"{side} x {side}"
            how = "".join(f", {name}" for name in options)
            turn = f", round {number}" if rounds > 1 else ""
            _tell(
                f"image of {model.name}, {pixels}, {steps} steps, {peer}{how}{turn}", rows, output
            )


def _tell(title: str, rows: list[StageRow], output: Path | None) -> None:
    measured = Measurement(title=title, machine=_machine(), rows=tuple(rows))
    typer.echo(table(measured))
    if output is not None:
        write(measured, output)


def table(measured: Measurement) -> str:
    """A measurement as Markdown."""
    lines = ["| stage | seconds | peak memory | of its own at the end |", "|---|---|---|---|"]
    lines += [
        f"| {row.stage} | {row.seconds:.1f} | {_size(row.peak)} | {_size(row.own)} |"
        for row in measured.rows
    ]
    lines.append(f"| **all** | {measured.seconds:.1f} | **{_size(measured.peak)}** | |")
    return f"## {measured.title}\n\n" + "\n".join(lines) + "\n"


def write(measured: Measurement, folder: Path) -> None:
    """Add a measurement to ``real_sizes.json`` and ``real_sizes.md``, in place of the one of the
    same title."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "real_sizes.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    others = [Measurement.model_validate(each) for each in known]
    kept = {each.title: each for each in others} | {measured.title: measured}
    listed = [each.model_dump(mode="json") for each in kept.values()]
    file.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    parts = []
    for each in kept.values():
        where = ", ".join(f"{name} {value}" for name, value in each.machine.items())
        parts.append(f"{table(each)}\n{where}.\n")
    heading = "# Models of real size\n\nMade by `benchmarks/real_sizes.py`, which says how.\n\n"
    (folder / "real_sizes.md").write_text(heading + "\n".join(parts), encoding="utf-8")


def _machine() -> dict[str, str]:
    seen = examine()
    versions = {name: found for name in _PACKAGES if (found := installed_version(name))}
    return {
        "processor": seen.processor,
        "cores": str(seen.cores),
        "memory": size(seen.memory),
        **versions,
    }


def _size(count: int | None) -> str:
    return "?" if count is None else size(count)


def main() -> None:
    """Run a command; what is wrong with what was asked for is one sentence, and exit code 2."""
    try:
        app()
    except KdrtError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
