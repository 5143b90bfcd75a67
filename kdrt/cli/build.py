"""``kdrt build``: make TensorRT engines from a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kdrt.backends.kept import Kept
    from kdrt.bundle import Bundle
    from kdrt_engines.tensorrt.flavour import Flavour

GPU_HELP = (
    "GPUs to build for, by name or compute capability, such as [cyan]'RTX 4090'[/] or "
    "[cyan]sm86,sm89[/]. The default is Ampere to Blackwell: sm80, sm86, sm89 and sm120."
)
HERE_HELP = "Build for the GPU of this machine."
REFITTABLE_HELP = (
    "Let LoRAs change the weights at run time. The GPU must be in this machine, because kdrt "
    "compares the engine with ONNX Runtime before it keeps it."
)
PROFILE_HELP = (
    "Sizes to build for; may be repeated. [cyan]static:HxWxB[/] allows only H by W pixels and B "
    "images."
)
PROFILE_METAVAR = "square|portrait|landscape|any|static:HxWxB"


def build(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder.")
    ],
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="tensorrt|tensorrt-rtx|onnxruntime|openvino|inductor",
            show_default=False,
            help="Engine to build. The default is the flavour of TensorRT that supports the GPU.",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option(metavar="GPU", show_default=False, help=GPU_HELP)
    ] = None,
    here: Annotated[bool, typer.Option("--here", help=HERE_HELP)] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option(metavar=PROFILE_METAVAR, show_default="any", help=PROFILE_HELP),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="all",
            help="Networks to build; may be repeated.",
        ),
    ] = None,
    refittable: Annotated[bool, typer.Option("--refittable", help=REFITTABLE_HELP)] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild engines that exist and are valid.")
    ] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail, instead of warning, if the attention of the UNet is not compiled into "
            "fused kernels.",
        ),
    ] = False,
) -> None:
    """
    Build engines from a bundle with TensorRT, ONNX Runtime, OpenVINO or Inductor.

    TensorRT-RTX supports cards from Turing to Blackwell. One engine file can serve several of them,
    and building it needs no GPU. TensorRT supports the other GPUs and builds on the GPU itself.

    ONNX Runtime optimises the graphs for the CPU that builds them. An export does this for its own
    machine. On another CPU the bundle still runs, but loads more slowly until you build it there.

    OpenVINO compiles the networks for this machine, for one precision and for the sizes at which
    a profile is fastest. Without a build, it compiles when a pipeline first needs a size.

    Inductor compiles what `kdrt export --target torch` exported, for the GPU or CPU of this machine
    and for the same sizes. Other sizes run as they do with the engine torch.

    Engines that exist and are valid are not built again. Ctrl-C leaves nothing half-written.

    [bold]Examples[/bold]

      [cyan]kdrt build demo --engine tensorrt-rtx --gpu sm86,sm89,sm120[/cyan]
      [cyan]kdrt build sdxl --here --profile portrait --profile static:1024x1024x1[/cyan]
      [cyan]kdrt build demo --gpu 'RTX 2080 Ti' --component vae_decoder[/cyan]
      [cyan]kdrt build demo --engine onnxruntime[/cyan]
      [cyan]kdrt build demo --engine openvino:bf16 --profile static:64x64x1[/cyan]
      [cyan]kdrt build sdxl --engine inductor --profile static:1024x1024x1[/cyan]
      [cyan]kdrt build sdxl --refittable[/cyan]
    """
    from kdrt.backends.commands import bundle_argument
    from kdrt.build.quantized import first_gpu
    from kdrt.bundle import open_bundle
    from kdrt_engines.openvino.config import is_openvino

    opened = open_bundle(bundle)
    if engine is not None and is_openvino(engine):
        _check_for_tensorrt(
            "OpenVINO's networks are for this machine, and LoRAs compile them anew",
            {"gpu": gpu, "here": here, "refittable": refittable, "strict": strict},
        )
        compile_openvino(opened, engine, component or [], profile or [], force=force)
        return
    if engine == "inductor":
        _check_for_tensorrt(
            "Inductor's code is for this machine, and takes LoRAs as it is",
            {"gpu": gpu, "here": here, "refittable": refittable, "strict": strict},
        )
        compile_inductor(opened, component or [], profile or [], force=force)
        return
    if engine == "onnxruntime":
        _check_for_tensorrt(
            "ONNX Runtime's graphs are for this CPU and any size, and take LoRAs as they are",
            {
                "gpu": gpu,
                "here": here,
                "profile": profile,
                "refittable": refittable,
                "strict": strict,
            },
        )
        optimize(opened, component or [], force=force)
        return
    if refittable:
        from kdrt.build.refit import check_refittable

        check_refittable(opened, component or [])
        here = here or not gpu
    flavour, capabilities = targets_of(
        bundle_argument(opened), engine, gpu or [], here, first_gpu(opened.manifest)
    )
    run(
        opened,
        flavour,
        capabilities,
        profile or [],
        component or [],
        refittable=refittable,
        force=force,
        strict=strict,
    )


def targets_of(
    bundle: str, engine: str | None, gpu: Sequence[str], here: bool, first: int = 0
) -> tuple[Flavour, tuple[int, ...]]:
    """What the options ``--engine``, ``--gpu`` and ``--here`` ask for together; ``first`` is the
    lowest of the usual GPUs that the bundle can be built for."""
    from kdrt.build.gpu_names import gpu_capabilities
    from kdrt.build.targets import resolve_targets
    from kdrt.errors import InvalidRequestError
    from kdrt_engines.tensorrt.flavour import FLAVOURS

    if engine is not None and engine not in FLAVOURS:
        raise InvalidRequestError(
            f"'{engine}' is no engine to build; choose {', '.join(FLAVOURS)}, onnxruntime, "
            "openvino or inductor, or none of them and name a GPU"
        )
    flavour, capabilities = resolve_targets(
        bundle,
        None if engine is None else FLAVOURS[engine],
        gpu_capabilities(gpu) if gpu else (),
        here=here,
        first=first,
    )
    flavour.version()  # says how to install it, before any work is done
    return flavour, capabilities


def run(
    bundle: Bundle,
    flavour: Flavour,
    capabilities: tuple[int, ...],
    profiles: Sequence[str],
    components: Sequence[str] = (),
    *,
    refittable: bool = False,
    force: bool = False,
    strict: bool = False,
) -> None:
    """Build with the progress on the terminal, and print what was built."""
    from kdrt.backends.profiles import DEFAULT
    from kdrt.build.engines import build_engines
    from kdrt.cli.console import print_rows
    from kdrt.cli.engine_rows import row
    from kdrt.common.terminal_report import TerminalReport

    with TerminalReport() as report:
        records = build_engines(
            bundle,
            flavour,
            capabilities,
            profiles=tuple(profiles) or DEFAULT,
            components=components,
            refittable=refittable,
            force=force,
            strict=strict,
            report=report,
        )
    print_rows(f"{flavour.title} engines", [row(record) for record in records])


def optimize(bundle: Bundle, components: Sequence[str], *, force: bool) -> None:
    """Keep what ONNX Runtime makes of the networks on this CPU, and print where."""
    from kdrt.backends.ort_cache import keep_optimized
    from kdrt.build.engines import wanted_components
    from kdrt.common.terminal_report import TerminalReport

    names = wanted_components(bundle.manifest, components)
    with TerminalReport() as report:
        made = keep_optimized(bundle, names, report, force=force)
    for graphs in made:
        typer.echo(graphs.folder)
    if not made:
        typer.echo("nothing to do: every network that is kept for this CPU is there", err=True)


def compile_openvino(
    bundle: Bundle,
    engine: str,
    components: Sequence[str],
    profiles: Sequence[str],
    *,
    force: bool,
) -> None:
    """Keep what OpenVINO makes of the networks on this machine, and print what was kept."""
    from kdrt.backends.choice import known_engine
    from kdrt.backends.openvino_cache import OPENVINO, keep_networks
    from kdrt.backends.profiles import DEFAULT
    from kdrt.build.sizes import usual_sizes
    from kdrt.common.terminal_report import TerminalReport

    name = known_engine(engine)
    wanted = usual_sizes(bundle.manifest, components, tuple(profiles) or DEFAULT)
    with TerminalReport() as report:
        made = keep_networks(bundle, name, wanted, report, force=force)
    print_kept("OpenVINO", OPENVINO.left_out(bundle, name, wanted), made, "float32")


def compile_inductor(
    bundle: Bundle, components: Sequence[str], profiles: Sequence[str], *, force: bool
) -> None:
    """Keep what Inductor compiles for this machine, and print what was kept."""
    from kdrt.backends.inductor_cache import ENGINE, INDUCTOR, keep_compiled
    from kdrt.backends.profiles import DEFAULT
    from kdrt.build.sizes import usual_sizes
    from kdrt.common.terminal_report import TerminalReport

    wanted = usual_sizes(bundle.manifest, components, tuple(profiles) or DEFAULT)
    with TerminalReport() as report:
        made = keep_compiled(bundle, wanted, report, force=force)
    print_kept("Inductor", INDUCTOR.left_out(bundle, ENGINE, wanted), made, "eager PyTorch")


def print_kept(
    title: str, left_out: Sequence[str], made: Sequence[Kept], compared_with: str
) -> None:
    """Print which networks were compiled for this machine, and which were not."""
    from kdrt.cli.console import print_rows

    if made:
        rows = [(each.record.component, each.record.summary(compared_with)) for each in made]
        print_rows(f"{title}, compiled for this machine", rows)
    if left_out:
        typer.echo(f"left out, for want of memory or disk: {', '.join(left_out)}", err=True)
    elif not made:
        typer.echo("nothing to do: every network that is kept for these sizes is there", err=True)


def _check_for_tensorrt(why: str, options: Mapping[str, object]) -> None:
    """Refuse what another engine has no use for, and say why it has none."""
    from kdrt.errors import InvalidRequestError

    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        raise InvalidRequestError(f"{', '.join(given)} is for TensorRT; {why}: leave it out")
