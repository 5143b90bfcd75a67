"""``kdrt quantize``: a bundle whose UNet multiplies in fewer bits, and what that loses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer


def quantize(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            show_default=False,
            help="A bundle in float32 or float16; it is not changed.",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            show_default=False,
            help="[cyan]fp8[/] (GPUs of compute capability 8.9 and later: Ada, Hopper, Blackwell), "
            "[cyan]int8[/] (7.5 and later, from Turing on), or [cyan]int4-weights[/] (8.0 and "
            "later; only the linear layers, which still multiply in 16 bits).",
        ),
    ],
    calibration: Annotated[
        str,
        typer.Option(
            metavar="PROMPTS|N",
            help="A file with one prompt per line, like the prompts you use the model with; or the "
            "number of kdrt's own prompts to use.",
        ),
    ] = "16",
    max_error: Annotated[
        float,
        typer.Option(
            metavar="E",
            help="Maximum relative error of one evaluation of the UNet. The most sensitive layers "
            "stay unquantised until the error is below it.",
        ),
    ] = 0.03,
    images: Annotated[
        int,
        typer.Option(metavar="N", help="Images to make before and after, to compare them."),
    ] = 4,
    by_blocks: Annotated[
        bool,
        typer.Option(
            "--by-blocks",
            help="Scan whole blocks instead of single layers, in a tenth of the time. The scan "
            "runs on the CPU; layer by layer it takes hours for a large model.",
        ),
    ] = False,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            show_default="the model's",
            help="Height and width of all images, in pixels.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="onnxruntime|onnxruntime-cuda",
            show_default="the GPU's if there is one",
            help="Engine that makes the images.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="BUNDLE-FORMAT", help="Name of the new bundle."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            show_default="one of that name in $KDRT_HOME",
            help="Folder of the new bundle.",
        ),
    ] = None,
) -> None:
    """
    Quantise the UNet of a bundle, and measure what that loses.

    kdrt makes images from the calibration prompts and measures the activations over all of their
    steps. Then it quantises every layer alone; the layers that change the output most stay in 16
    bits. The new bundle records this scan and what was measured: the error of each step, how alike
    images of the same seed are, and for the demo model how often it draws what it is asked for. A
    bundle that loses too much is not written.

    Needs [cyan]pip install 'kdrt\\[quantize]'[/cyan].

    [bold]Examples[/bold]

      [cyan]kdrt quantize sdxl --format fp8[/cyan]
      [cyan]kdrt quantize sdxl --format fp8 --calibration prompts.txt --max-error 0.02[/cyan]
      [cyan]kdrt quantize sd15 --format int8 --calibration 8 --at 512x512 -o ./sd15-int8[/cyan]
      [cyan]kdrt build sdxl-fp8 --engine tensorrt-rtx[/cyan]
    """
    import time

    from kdrt.bundle import read_manifest
    from kdrt.cli.bundle_rows import folder_size
    from kdrt.cli.export_checks import needs_export, quiet_libraries
    from kdrt.cli.quantization_rows import print_loss
    from kdrt.cli.size_option import height_and_width
    from kdrt.common.paths import user_path
    from kdrt.common.terminal_report import TerminalReport
    from kdrt.common.units import duration, size

    height, width = height_and_width(at)
    prompts = _calibration(calibration)
    quiet_libraries()
    started = time.perf_counter()
    with needs_export("quantising"), TerminalReport() as report:
        from kdrt_export.quantize.stage import quantize as quantize_bundle

        path = quantize_bundle(
            bundle,
            None if output is None else user_path(output),
            name=name,
            format=format,
            calibration=prompts,
            max_error=max_error,
            images=images,
            by_blocks=by_blocks,
            height=height,
            width=width,
            engine=engine,
            report=report,
        )
    facts = read_manifest(path).quantization
    assert facts is not None
    print_loss(facts)
    typer.echo()
    typer.echo(f"{path}  ({size(folder_size(path))}, {duration(time.perf_counter() - started)})")


def _calibration(text: str) -> int | list[str]:
    """How many prompts, or those of a file.

    Raises:
        InvalidRequestError: the file cannot be used.
    """
    from kdrt.cli.prompts_file import read_prompts
    from kdrt.errors import InvalidRequestError

    if re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?[\d.]+", text, re.ASCII) and not Path(text).exists():
        raise InvalidRequestError(
            f"--calibration takes a whole number or a file of prompts, not {text}"
        )
    return read_prompts(Path(text))
