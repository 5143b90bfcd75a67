"""The command line: ``kdrt``. One file a command; each imports what it needs when it runs, so
that help and version come at once.

A :class:`~kdrt.errors.KdrtError` becomes one line on standard error and exit code 2, Ctrl-C
exit code 130, SIGTERM 143. Any other exception is a bug: one line too, which names the file that
the traceback is in, and exit code 70. With ``--debug`` the traceback of every exception is shown
in place of the line; the exit codes are the same.

Its files:

    app              the typer application and its help
    generate         ``kdrt generate``
    request_options  its options that are fields of a request
    request_checks   what is refused before a model is loaded
    prompts_file     prompts from a file
    like             an image's own settings, under the options given
    command          a request as the command that makes it
    engine_options   options of every command that loads engines
    loading          the pipeline that a command asks for
    image_run        a series of images from the first batch to the last
    batches          many images as batches
    request_json     a request as a JSON object
    requests_file    requests from a file, all of them checked
    requests_options ``--from`` beside the other options
    requests_run     a run over a file of requests, and where it goes on
    control_option   a control image, and how it is used
    region_option    a region of an image, and its prompt
    ip_adapter_image images for IP-Adapters, and their masks
    request_digest   what tells one request from another
    run_record       which images are made
    many             many requests, in flight together
    interrupts       Ctrl-C where a thread is ready for it
    image_input      images that a command is given
    image_output     what becomes of the images: files, lines, a sheet
    image_files      the names of the files
    image_progress   how far a series is
    preview_file     previews in a file
    latents_file     latents in files
    info             ``kdrt info``
    export           ``kdrt export``
    add              ``kdrt add controlnet``, ``t2i-adapter`` and ``upscaler``
    export_checks    what is looked at before it loads anything
    build            ``kdrt build``
    compare          ``kdrt compare``
    quantize         ``kdrt quantize``
    size_option      the size of an image, as text
    bundles          ``kdrt list``
    rm               ``kdrt rm``
    inspect          ``kdrt inspect``
    lora             ``kdrt lora inspect``
    lora_option      a LoRA and its scale, as text
    bundle_rows      bundles as lines to read
    engine_rows      built engines as lines to read
    quantization_rows  what a quantised bundle lost, as lines to read
    tune             ``kdrt tune``
    doctor           ``kdrt doctor``
    trust            ``kdrt trust``
    serve            ``kdrt serve``
    serve_workers    ``kdrt serve --workers`` and ``--devices``
    serve_ray        ``kdrt serve --ray``
    deploy           ``kdrt deploy``
    samplers         ``kdrt samplers``
    schedules        ``kdrt schedules``
    schedule_plot    the drawing of ``--plot``
    bench            ``kdrt bench``, which is a package of its own
    extension        commands of other packages
    console          tables, sizes, times, JSON
    notices          warnings on standard error
    crash            the file with the traceback of a bug
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable
from itertools import takewhile
from types import FrameType
from typing import Annotated

import typer

from kdrt.cli import (
    add,
    bench,
    build,
    bundles,
    compare,
    deploy,
    doctor,
    export,
    generate,
    info,
    inspect,
    lora,
    quantize,
    rm,
    samplers,
    schedules,
    serve,
    trust,
    tune,
)
from kdrt.cli.app import add_command, new_app

__all__ = ["app", "interrupt", "run"]

INTERNAL_ERROR = 70
"""Exit code of a bug: ``EX_SOFTWARE`` of BSD's sysexits."""

_OUTPUT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}

_HELP = """
Make images from text with Stable Diffusion and SDXL, using the samplers of k-diffusion.

First export a model into a [bold]bundle[/bold]: one folder with its networks as ONNX, its
tokenizers and its noise schedule. Then generate images from the bundle; that needs neither
diffusers nor transformers.

[bold]Start here[/bold] (the demo model is part of kdrt; nothing is downloaded)

  [cyan]kdrt export demo[/cyan]
  [cyan]kdrt generate demo "a red circle on a blue background" -o circle.png[/cyan]
  [cyan]kdrt info circle.png[/cyan]

[bold]With your own model[/bold]

  [cyan]kdrt export ./my-model.safetensors --name mine[/cyan]
  [cyan]kdrt generate mine "a lighthouse at dusk" --steps 25 --sampler dpmpp_2m[/cyan]

Named bundles are stored in [cyan]$KDRT_HOME/bundles[/cyan]; [cyan]kdrt doctor[/cyan] shows where
that is.
"""


app = new_app("kdrt", _HELP)


def _print_version(asked: bool) -> None:
    if asked:
        from kdrt._version import __version__

        typer.echo(f"kdrt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error.")
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose",
            "-v",
            count=True,
            metavar="",
            show_default=False,
            help="Print what is loaded, chosen and captured, and how long each takes.",
        ),
    ] = 0,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What comes before the command; ``run`` looks for --debug itself."""
    if verbose:
        from kdrt.common.log import print_log

        print_log(verbose)


def _add(panel: str, *commands: Callable[..., None]) -> None:
    for command in commands:
        add_command(app, command, rich_help_panel=panel)


_add("Models", export.export, build.build, inspect.inspect)
add_command(app, bundles.list_bundles, name="list", rich_help_panel="Models")
_add("Models", quantize.quantize, compare.compare, tune.tune, rm.rm, trust.trust)
app.add_typer(add.add, rich_help_panel="Models")
app.add_typer(lora.lora, rich_help_panel="Models")
_add("Images", generate.generate, info.info, serve.serve, deploy.deploy)
_add("What there is", samplers.samplers, schedules.schedules, doctor.doctor)
add_command(
    app,
    bench.bench,
    rich_help_panel="What there is",
    # The options are those of another package.
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)


_interrupted = False


def interrupt(number: int, frame: FrameType | None) -> None:
    """What answers Ctrl-C while a command runs. Libraries that are being imported make other
    exceptions of it, so that it was pressed must be known besides."""
    global _interrupted
    _interrupted = True
    signal.default_int_handler(number, frame)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        code = _run(arguments)
    except BaseException as error:  # libraries in Rust panic with one that is no Exception
        debug = "--debug" in takewhile(lambda a: a[:1] == "-", arguments)
        code = _traced(error) if debug else _failed(error)
    return code or _flushed()


def _run(arguments: list[str]) -> int:
    try:
        typer.main.get_command(app).main(arguments, prog_name="kdrt")
    except SystemExit as leave:
        if leave.code == 130:  # typer's answer to Ctrl-C
            _complain("interrupted", "")
        elif leave.code == 128 + signal.SIGTERM:
            _complain("terminated", "")
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0


def _traced(error: BaseException) -> int:
    """Show the traceback of an exception; the exit code."""
    import traceback

    with contextlib.suppress(OSError):  # nobody can be told that standard error is full
        traceback.print_exception(error)
    if _interrupted or isinstance(error, KeyboardInterrupt):
        return 130
    return INTERNAL_ERROR if _message(error) is None else 2


def _failed(error: BaseException) -> int:
    """Say what an exception means, in one line; the exit code."""
    if _interrupted or isinstance(error, KeyboardInterrupt):
        _complain("interrupted", "")
        return 130
    message = _message(error)
    if message is not None:
        _complain("error:", message)
        return 2
    from kdrt.cli.crash import save_traceback

    saved = save_traceback(error)
    place = f"the details are in {saved}" if saved else "the details cannot be saved"
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _complain(
        "error:",
        f"this is a fault of kdrt ({_line(reason)[:200]}); {place}; please report it with them, or "
        "run `kdrt --debug …` to see them",
    )
    return INTERNAL_ERROR


def _message(error: BaseException) -> str | None:
    """The sentence for the user, or None for a bug."""
    from kdrt.errors import KdrtError

    if isinstance(error, KdrtError):
        return _line(str(error))
    if isinstance(error, MemoryError):
        return "there is not enough memory for this; take a smaller size or fewer images at once"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _OUTPUT_ERRORS:
        return f"cannot write the output: {error.strerror}"
    return None


def _flushed() -> int:
    """Write what standard output still holds: only here can a full disk be told in a sentence."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # The rest would be tried again, and fail again, when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if error.errno != errno.EPIPE:  # whoever read has gone: nobody to tell
            _complain("error:", f"cannot write the output: {error.strerror}")
            return 2
        return 1
    return 0


def _line(text: str) -> str:
    """One line, which a terminal does not obey: it may hold what a file says of itself."""
    from kdrt.common.validation import printable

    return str(printable(" ".join(text.split())))


def _complain(prefix: str, message: str) -> None:
    with contextlib.suppress(OSError):  # nobody can be told that standard error is full
        typer.secho(prefix, err=True, fg=typer.colors.RED, bold=True, nl=False)
        typer.echo(f" {message}" if message else "", err=True)
