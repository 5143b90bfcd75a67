"""Drawing the schedules, for ``kdrt schedules --plot``."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from kdrt.common.atomic_io import new_file
from kdrt.common.paths import user_path
from kdrt.common.validation import MAX_STEPS, check_int
from kdrt.errors import InvalidRequestError, OutputError
from kdrt.sampling import SCHEDULES, NoiseSchedule, sigmas_for

SUFFIXES = (".png", ".svg", ".pdf")
_COLUMNS = 6
_COLOURS = 32
_MOST = {"sd_turbo": 10, "consistency": 50}
"""Steps of the schedules that do not have any number of them."""


def plot_schedules(path: Path, steps: int) -> Path:
    """Draw every schedule on the training table of Stable Diffusion, one small panel each.

    Args:
        path: a file ending in one of `SUFFIXES`.
        steps: of the run; schedules that do not have so many get as many as they have.

    Raises:
        InvalidRequestError: matplotlib is not installed, or there cannot be so many steps.
        OutputError: the file cannot be written.
    """
    steps = check_int("steps", steps, 2, MAX_STEPS)
    path = user_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"cannot draw '{path}': the name must end in {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequestError("drawing needs matplotlib: pip install 'kdrt[bench]'") from error

    table = NoiseSchedule.from_betas(0.00085, 0.012, "scaled_linear")
    grids = {
        name: sigmas_for(name, min(steps, _MOST.get(name, steps)), table) for name in SCHEDULES
    }
    rows = -(-len(grids) // _COLUMNS)
    figure = Figure(figsize=(2.4 * _COLUMNS, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True).flat
    for index, (panel, (name, grid)) in enumerate(zip(axes, grids.items(), strict=False)):
        for other in grids.values():
            panel.plot(other[other > 0], color="0.88", linewidth=0.7)
        panel.plot(grid[grid > 0], color="tab:blue", marker=".", markersize=4, linewidth=1.2)
        panel.set_title(name, fontsize=9)
        panel.set_yscale("log")
        panel.tick_params(labelbottom=index >= len(grids) - _COLUMNS)
    for panel in list(figure.axes)[len(grids) :]:
        panel.set_axis_off()
    figure.supxlabel("step", fontsize=9)
    figure.supylabel("noise level (sigma)", fontsize=9)
    with new_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:].lower(), dpi=150)
        if path.suffix.lower() == ".png":
            _make_small(partial)
    return path


def _make_small(path: Path) -> None:
    """Write a PNG again with a palette: lines in grey and blue need few colours."""
    with Image.open(path) as drawn:
        small = drawn.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE)
    small.save(path, format="PNG", optimize=True)
