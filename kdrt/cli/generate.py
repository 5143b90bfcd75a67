"""``kdrt generate``: images from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdrt.cli.engine_options import RUNNING, CudaGraphOption, EngineOption, FallbackOption
from kdrt.cli.request_options import takes_request
from kdrt.request.field import IMAGE, SAMPLING
from kdrt.request.fields import Request


@takes_request
def generate(
    bundle: Annotated[
        str,
        typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder of a bundle."),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            show_default=False,
            help="What to draw; several prompts make several images.",
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=IMAGE,
            show_default="out.png",
            help="Where to save: .png, .jpg or .webp. Several images are numbered "
            "[cyan]out-1.png[/], [cyan]out-2.png[/] and so on; a single image is numbered if the "
            "file exists. A .safetensors file gets the latents of all images. With --from, a "
            "folder (by default [cyan]out[/]), which gets [cyan]0001.png[/] for line 1 and so on.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=IMAGE,
            help="Replace files that exist, instead of taking the next number.",
        ),
    ] = False,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=IMAGE,
            show_default=False,
            help="Also put all images, with labels, on one sheet.",
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts-file",
            metavar="FILE",
            rich_help_panel=IMAGE,
            show_default=False,
            help="Read prompts from a file, one per line; [cyan]-[/] is standard input. Lines that "
            "begin with # are skipped.",
        ),
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            rich_help_panel=IMAGE,
            show_default=False,
            help="Read requests from a file, one JSON object per line, and make them as fast as "
            "this machine can; [cyan]-[/] is standard input. Options apply to every line that does "
            "not set them itself. Run the same command again to continue where it stopped.",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=IMAGE,
            show_default=False,
            help="Make the image in this file again. Options given here replace its own settings.",
        ),
    ] = None,
    request: Request,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            rich_help_panel=SAMPLING,
            show_default=False,
            help="Apply a LoRA at a scale, as in [cyan]style.safetensors:0.8[/], or at scales by "
            "network and block, as in "
            "[cyan]style.safetensors:0.8,text_encoder=0,mid_block=0.5[/]; may be repeated.",
        ),
    ] = None,
    strict_lora: Annotated[
        bool,
        typer.Option(
            "--strict-lora",
            rich_help_panel=SAMPLING,
            help="Refuse a LoRA if any of its layers has no effect on this model.",
        ),
    ] = False,
    engine: EngineOption = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=RUNNING,
            show_default="one per core",
            help="CPU threads.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            rich_help_panel=RUNNING,
            show_default="1 on a CPU, 4 on a GPU",
            help="Images to make at once; they are saved when the whole batch is done.",
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=RUNNING,
            show_default=False,
            help="Write a preview of the images to this file after every step. The file must not "
            "exist yet, unless you give --overwrite.",
        ),
    ] = None,
    fallback: FallbackOption = None,
    cuda_graph: CudaGraphOption = None,
    low_vram: Annotated[
        bool,
        typer.Option(
            "--low-vram",
            rich_help_panel=RUNNING,
            help="Load the networks one after another, if they do not all fit into memory.",
        ),
    ] = False,
    progress: Annotated[
        bool,
        typer.Option(
            "--progress/--no-progress",
            rich_help_panel=RUNNING,
            help="Show how far the run is and how long the rest will take.",
        ),
    ] = True,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=RUNNING,
            help="Print a line with a JSON object for each image: its path, seed and prompt.",
        ),
    ] = False,
) -> None:
    """
    Make images from prompts.

    kdrt saves each image as soon as it is done, and prints its path and seed. It never replaces a
    file that exists, unless you give --overwrite. The parameters are stored in the image, where
    [cyan]kdrt info[/cyan] and the tools of the AUTOMATIC1111 web UI find them. Every image has its
    own seed, and is the same whether it is made alone or in a batch.

    [bold]Examples[/bold]

      [cyan]kdrt generate demo "a red circle on a blue background" -o circle.png[/cyan]
      [cyan]kdrt generate demo "a green star" "a yellow heart" --seed 7 -o shapes.png[/cyan]
      [cyan]kdrt generate demo --prompts-file prompts.txt --grid sheet.png[/cyan]
      [cyan]kdrt generate demo --from requests.jsonl --steps 12 -o images[/cyan]
      [cyan]kdrt generate demo --like circle.png --steps 40 -o more-steps.png[/cyan]
      [cyan]kdrt generate demo "a red star" --image circle.png --strength 0.6 -o star.png[/cyan]
      [cyan]kdrt generate demo "a small white square" --sampler euler_ancestral \\
          --schedule exponential --steps 30 --sampler-option eta=0.8[/cyan]
    """
    from kdrt.cli.loading import PipelineOptions

    pipeline = PipelineOptions(
        bundle=bundle,
        loras=lora or (),
        strict_lora=strict_lora,
        engine=engine,
        threads=threads,
        cuda_graph=cuda_graph,
        fallback=fallback,
        low_vram=low_vram,
    )
    if requests is not None:
        from kdrt.cli.prompts_file import name_of
        from kdrt.cli.requests_options import asked_folder, asked_requests, told_lines

        refused = {
            "--prompts-file": prompts_file,
            "--like": like,
            "--grid": grid,
            "--preview": preview,
            "--batch-size": batch_size,
            "--low-vram": low_vram or None,
        }
        lines = asked_requests(requests, request, prompts or [], refused)

        from kdrt.cli.requests_run import RequestsRun, make_requests

        folder = asked_folder(output)
        run = RequestsRun(name_of(requests), lines, folder, overwrite=overwrite, as_json=as_json)
        with told_lines(requests):
            make_requests(run, pipeline, progress=progress)
        return

    from kdrt.cli.batches import Series
    from kdrt.cli.image_run import is_latents, make_images, open_output
    from kdrt.cli.like import other_model, requested
    from kdrt.cli.notices import note, printed_warnings
    from kdrt.cli.preview_file import preview_file
    from kdrt.cli.request_checks import check_without_model

    recorded = requested(request, prompts or [], prompts_file, like, loras=bool(lora))
    check_without_model(recorded.fields)
    output_type = "latent" if is_latents(output) else "pil"
    series = Series.of({**recorded.fields, "output_type": output_type})
    images = open_output(
        series, output, grid=grid, preview=preview, overwrite=overwrite, as_json=as_json
    )
    watch = None if preview is None else preview_file(preview, overwrite=overwrite)
    loras = pipeline.read_loras()
    with printed_warnings():
        recorded.warn_of_left_out()
        pipe = pipeline.load(loras)
        if (advice := other_model(recorded, pipe.bundle.manifest.name)) is not None:
            note("warning", advice)
        make_images(pipe, series, images, batch_size=batch_size, preview=watch, progress=progress)
    if output_type == "pil" and recorded.fields.get("denoising_end") is not None:
        note(
            "note",
            "--denoising-end left noise in the image; for another model to go on, save to "
            ".safetensors with -o",
        )
