"""``kdrt add``: more for a bundle that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from kdrt.cli.app import add_command, new_app

add = new_app("add", "Add networks to a bundle without exporting its model again.")

_Bundle = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE", show_default=False, help="Name or folder of the bundle to add to."
    ),
]
_Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE[:NAME]...",
        show_default=False,
        help="A file, a diffusers folder or a Hugging Face id; NAME is what requests call it.",
    ),
]
_AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read [cyan].ckpt[/], [cyan].pth[/] and [cyan].bin[/] files, which are pickles, with "
        "PyTorch's restricted unpickler.",
    ),
]


def controlnet(
    bundle: _Bundle,
    source: _Sources,
    allow_pickle: _AllowPickle = False,
) -> None:
    """
    Add ControlNets to a bundle. They take an image that says where things go.

    Adding the first one also adds a second graph of the UNet, which reads the same weights. Engines
    that were built from the bundle stay valid. If the command fails, the bundle stays as it was.

    [bold]Examples[/bold]

      [cyan]kdrt add controlnet sd15 lllyasviel/control_v11p_sd15_canny:canny[/cyan]
      [cyan]kdrt add controlnet mine ./control-lines.safetensors[/cyan]
    """
    _add(bundle, controlnets=source, allow_pickle=allow_pickle)


def t2i_adapter(
    bundle: _Bundle,
    source: _Sources,
    allow_pickle: _AllowPickle = False,
) -> None:
    """
    Add T2I-Adapters to a bundle. They are smaller than ControlNets and run once per image.

    [bold]Examples[/bold]

      [cyan]kdrt add t2i-adapter sdxl TencentARC/t2i-adapter-canny-sdxl-1.0:canny[/cyan]
    """
    _add(bundle, t2i_adapters=source, allow_pickle=allow_pickle)


def upscaler(
    bundle: _Bundle,
    file: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE[:NAME]...",
            show_default=False,
            help="A [cyan].safetensors[/] file; NAME is what requests call it.",
        ),
    ],
    allow_pickle: _AllowPickle = False,
) -> None:
    """
    Add upscalers to a bundle: networks such as ESRGAN, which enlarge an image between two passes.

    Needs [cyan]pip install 'kdrt\\[upscalers]'[/cyan].

    [bold]Examples[/bold]

      [cyan]kdrt add upscaler sd15 ./4x-UltraSharp.safetensors[/cyan]
      [cyan]kdrt add upscaler sd15 ./RealESRGAN_x4plus.pth:real --allow-pickle[/cyan]
    """
    _add(bundle, upscalers=file, allow_pickle=allow_pickle)


def _add(
    bundle: str,
    controlnets: Sequence[str] = (),
    t2i_adapters: Sequence[str] = (),
    upscalers: Sequence[str] = (),
    *,
    allow_pickle: bool,
) -> None:
    import time

    from kdrt.bundle import bundle_path
    from kdrt.cli.bundle_rows import folder_size
    from kdrt.cli.export_checks import needs_export, quiet_libraries
    from kdrt.common.terminal_report import TerminalReport
    from kdrt.common.units import duration, size

    quiet_libraries()
    before = folder_size(bundle_path(bundle))
    started = time.perf_counter()
    with needs_export("adding to a bundle"), TerminalReport() as report:
        from kdrt_export.add import add as add_to_bundle

        path = add_to_bundle(
            bundle,
            controlnets=controlnets,
            t2i_adapters=t2i_adapters,
            upscalers=upscalers,
            allow_pickle=allow_pickle,
            report=report,
        )
    more = size(folder_size(path) - before)
    typer.echo(f"{path}  ({more} more, {duration(time.perf_counter() - started)})")


add_command(add, controlnet)
add_command(add, t2i_adapter, name="t2i-adapter")
add_command(add, upscaler)
