"""``kdrt generate``: images from a bundle."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import kdrt
    from kdrt.adapters.lora_file import LoraFile

_IMAGE, _SAMPLING, _RUNNING = "Image", "Sampling", "Running"
_BEGINNING = "From an image"


def generate(
    bundle: Annotated[
        str,
        typer.Argument(metavar="BUNDLE", show_default=False, help="Name or folder of a bundle."),
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", show_default=False, help="What to draw; several make several images."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            rich_help_panel=_IMAGE,
            show_default="out.png",
            help="Where to save: .png, .jpg or .webp. Several images are numbered: "
            "[cyan]out-1.png[/], [cyan]out-2.png[/] and so on; one image is where the name is "
            "taken. Latents go to .safetensors, all in one file.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=_IMAGE,
            help="Replace files that are there, in place of taking the next number.",
        ),
    ] = False,
    grid: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_IMAGE,
            show_default=False,
            help="Put all images and their labels on one sheet too.",
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts-file",
            metavar="FILE",
            rich_help_panel=_IMAGE,
            show_default=False,
            help="Read prompts from a file, one on each line; [cyan]-[/] is standard input. Lines "
            "that begin with # are skipped.",
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option(
            "--negative",
            metavar="TEXT",
            rich_help_panel=_IMAGE,
            show_default=False,
            help="What the image should not show.",
        ),
    ] = None,
    weighting: Annotated[
        Literal["none", "a1111", "a1111_no_norm"],
        typer.Option(
            metavar="NAME",
            rich_help_panel=_IMAGE,
            help="How to read [cyan](x:1.2)[/], BREAK and long prompts: [cyan]none[/] as text, "
            "[cyan]a1111[/] as that web UI does, [cyan]a1111_no_norm[/].",
        ),
    ] = "none",
    width: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            rich_help_panel=_IMAGE,
            show_default="the model's",
            help="Width of the image.",
        ),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            rich_help_panel=_IMAGE,
            show_default="the model's",
            help="Height of the image.",
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_IMAGE, help="Images for each prompt.")
    ] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_IMAGE,
            show_default="random",
            help="Seed of the first image; the next ones count up.",
        ),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_BEGINNING,
            show_default=False,
            help="An image to begin with. Its size is the result's, unless --width or --height "
            "say otherwise.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            rich_help_panel=_BEGINNING,
            show_default="0.8, with a mask 1",
            help="How much of the image to make anew.",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_BEGINNING,
            show_default=False,
            help="Repaint only what is white here, and keep what is black.",
        ),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_BEGINNING,
            show_default=False,
            help="Latents to begin with, from [cyan]-o latents.safetensors[/].",
        ),
    ] = None,
    denoising_start: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            rich_help_panel=_BEGINNING,
            show_default=False,
            help="Go on with --latents of a run with the same --denoising-end.",
        ),
    ] = None,
    denoising_end: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            rich_help_panel=_BEGINNING,
            show_default=False,
            help="Stop there, with noise left, for another model to go on: save to .safetensors.",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_SAMPLING, help="Steps of the sampler.")
    ] = 20,
    sampler: Annotated[
        str,
        typer.Option(metavar="NAME", rich_help_panel=_SAMPLING, help="See [cyan]kdrt samplers[/]."),
    ] = "dpmpp_2m",
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME", rich_help_panel=_SAMPLING, help="See [cyan]kdrt schedules[/]."
        ),
    ] = "karras",
    sampler_option: Annotated[
        list[str] | None,
        typer.Option(
            "--sampler-option",
            metavar="NAME=VALUE",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="An option of the sampler, such as [cyan]eta=0.5[/]; may be repeated.",
        ),
    ] = None,
    schedule_option: Annotated[
        list[str] | None,
        typer.Option(
            "--schedule-option",
            metavar="NAME=VALUE",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="An option of the schedule, such as [cyan]rho=5[/]; may be repeated.",
        ),
    ] = None,
    sigmas: Annotated[
        str | None,
        typer.Option(
            metavar="S0,S1,...",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="Noise levels of your own, in place of steps and schedule.",
        ),
    ] = None,
    timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="T0,T1,...",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="The same as training timesteps.",
        ),
    ] = None,
    noise: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_SAMPLING,
            help="Whose noise a seed stands for: per_image, brownian, a1111 or comfyui.",
        ),
    ] = "per_image",
    noise_seed: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_SAMPLING,
            show_default="the image's",
            help="Seed of the noise that samplers add on the way.",
        ),
    ] = None,
    noise_option: Annotated[
        list[str] | None,
        typer.Option(
            "--noise-option",
            metavar="NAME=VALUE",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="An option of the noise, such as [cyan]eta_noise_seed_delta=31337[/].",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            metavar="SCALE",
            rich_help_panel=_SAMPLING,
            show_default="the model's",
            help="How closely to follow the prompt; 1 turns guidance off.",
        ),
    ] = None,
    guidance_rescale: Annotated[
        float,
        typer.Option(
            metavar="0..1",
            rich_help_panel=_SAMPLING,
            help="Pull the contrast that strong guidance adds back to normal.",
        ),
    ] = 0.0,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="LO:HI",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="Guidance only at noise levels above LO and up to HI, as in [cyan]0.3:5.4[/]; "
            "the other steps cost half. Another image.",
        ),
    ] = None,
    deep_cache: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="Run the whole UNet once in N evaluations, and its outermost layers in between. "
            "Another image; needs [cyan]kdrt export … --variant deepcache[/].",
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="Leave out the last N layers of the text encoders.",
        ),
    ] = None,
    freeu: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY|B1,B2,S1,S2",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="Turn FreeU on, as suits sd14, sd15, sd21 or sdxl, or with four numbers such as "
            "[cyan]1.3,1.4,0.9,0.2[/].",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="Add a LoRA to the weights, as [cyan]style.safetensors:0.8[/]; may be repeated.",
        ),
    ] = None,
    strict_lora: Annotated[
        bool,
        typer.Option(
            "--strict-lora",
            rich_help_panel=_SAMPLING,
            help="Refuse a LoRA if any of its layers has no effect on this model.",
        ),
    ] = False,
    ip_adapter_image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_SAMPLING,
            show_default=False,
            help="An image as prompt, for bundles exported with an IP-Adapter.",
        ),
    ] = None,
    ip_adapter_scale: Annotated[
        float,
        typer.Option(
            metavar="SCALE",
            rich_help_panel=_SAMPLING,
            help="How much that image counts; 0 is off.",
        ),
    ] = 1.0,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_RUNNING,
            show_default="the best here",
            help="What runs the networks; see [cyan]kdrt doctor[/].",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_RUNNING,
            show_default="one a core",
            help="CPU threads.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            rich_help_panel=_RUNNING,
            show_default="1 on a CPU, 4 on a GPU",
            help="Images to make at once; they are saved when all of them are done.",
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_RUNNING,
            show_default=False,
            help="Keep a first look at the images in this file, new after every step.",
        ),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_RUNNING,
            show_default=False,
            help="Another engine, for networks that the first was not built for.",
        ),
    ] = None,
    cuda_graph: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            rich_help_panel=_RUNNING,
            show_default="step on CUDA, else off",
            help="What to capture in CUDA graphs: off, step or loop.",
        ),
    ] = None,
    low_vram: Annotated[
        bool,
        typer.Option(
            "--low-vram",
            rich_help_panel=_RUNNING,
            help="Load the networks one after another, for when not all of them fit.",
        ),
    ] = False,
    progress: Annotated[
        bool,
        typer.Option(
            "--progress/--no-progress",
            rich_help_panel=_RUNNING,
            help="Say how far it is and how long the rest will take.",
        ),
    ] = True,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=_RUNNING,
            help="Print a JSON object for each image, one a line: path, seed, prompt.",
        ),
    ] = False,
) -> None:
    """
    Make images.

    Each is saved as soon as it is done, and its path and seed are printed. A file that is there
    is never replaced, unless you say --overwrite. The parameters are written into the image, where
    [cyan]kdrt info[/cyan] and the tools of the AUTOMATIC1111 web UI find them. Every image has its
    own seed: made alone or in a batch, it is the same.

    [bold]Examples[/bold]

      [cyan]kdrt generate demo "a red circle on a blue background" -o circle.png[/cyan]
      [cyan]kdrt generate demo "a green star" "a yellow heart" --seed 7 -o shapes.png[/cyan]
      [cyan]kdrt generate demo --prompts-file prompts.txt --grid sheet.png[/cyan]
      [cyan]kdrt generate demo "a red star" --image circle.png --strength 0.6 -o star.png[/cyan]
      [cyan]kdrt generate demo "a small white square" --sampler euler_ancestral \\
          --schedule exponential --steps 30 --sampler-option eta=0.8[/cyan]
    """
    from kdrt.adapters.lora_file import lora_option, read_lora
    from kdrt.cli.batches import Series
    from kdrt.cli.image_run import is_latents, make_images, open_output
    from kdrt.cli.latents_file import read_latents
    from kdrt.cli.notices import told_warnings
    from kdrt.cli.preview_file import preview_file
    from kdrt.cli.prompts_file import as_text, given_prompts

    series = Series.of(
        {
            "prompt": given_prompts(prompts or [], prompts_file),
            "negative_prompt": None if negative is None else as_text(negative),
            "prompt_weighting": weighting,
            "height": height,
            "width": width,
            "steps": steps,
            "sampler": sampler,
            "schedule": schedule,
            "image": _opened(image),
            "mask_image": _opened(mask),
            "strength": strength,
            "latents": None if latents is None else read_latents(latents),
            "denoising_start": denoising_start,
            "denoising_end": denoising_end,
            "output_type": "latent" if is_latents(output) else "pil",
            "sampler_options": _options("--sampler-option", sampler_option, "eta=0.5"),
            "schedule_options": _options("--schedule-option", schedule_option, "rho=5"),
            "sigmas": _numbers("--sigmas", sigmas, "14.6,6,2.5,1,0.4,0"),
            "timesteps": _numbers("--timesteps", timesteps, "999,749,499,249"),
            "noise": noise,
            "noise_seed": noise_seed,
            "noise_options": _options("--noise-option", noise_option, "source=nv"),
            "guidance_scale": guidance,
            "guidance_rescale": guidance_rescale,
            "guidance_interval": _interval(guidance_interval),
            "deep_cache": deep_cache,
            "images_per_prompt": count,
            "seed": seed,
            "clip_skip": clip_skip,
            "freeu": _freeu(freeu),
            "ip_adapter_image": _opened(ip_adapter_image),
            "ip_adapter_scale": ip_adapter_scale,
        }
    )
    images = open_output(series, output, grid=grid, overwrite=overwrite, as_json=as_json)
    watch = None if preview is None else preview_file(preview)
    loras = [(read_lora(path), scale) for path, scale in map(lora_option, lora or [])]
    with told_warnings():
        pipe = _loaded(bundle, loras, strict_lora, engine, threads, cuda_graph, fallback, low_vram)
        _load_loras(pipe, loras, strict=strict_lora)
        make_images(pipe, series, images, batch_size=batch_size, preview=watch, progress=progress)


def _loaded(
    name: str,
    loras: list[tuple[LoraFile, float]],
    strict_lora: bool,
    engine: str | None,
    threads: int | None,
    cuda_graph: str | None,
    fallback: str | None,
    low_vram: bool,
) -> kdrt.Pipeline:
    """The pipeline, after a look at what it will take and at the LoRAs that it will get."""
    import sys
    from typing import cast

    import kdrt
    from kdrt.adapters.lora import LoraStack
    from kdrt.bundle import open_bundle
    from kdrt.cli.notices import note
    from kdrt.pipeline.memory import estimate_memory

    opened = open_bundle(name)
    stack = LoraStack(opened)
    for file, scale in loras:
        stack.check(file, scale, strict=strict_lora)
    level = cast(Any, cuda_graph)  # checked where it is used
    memory = estimate_memory(opened, engine, cuda_graph=level, low_vram=low_vram)
    if sys.stderr.isatty():
        typer.echo(memory.line(), err=True)
    advice = memory.advice()
    if advice is not None:
        note("warning", advice)
    return kdrt.load(
        opened,
        engine=engine,
        threads=threads,
        cuda_graph=level,
        fallback=fallback,
        low_vram=low_vram,
    )


def _load_loras(pipe: kdrt.Pipeline, loras: list[tuple[LoraFile, float]], *, strict: bool) -> None:
    if not loras:
        return
    scales: dict[str, float] = {}
    for file, scale in loras:
        pipe.adapters.load_lora(file, scale=0, strict=strict)
        scales[list(pipe.adapters.loras)[-1]] = scale
    swap = pipe.adapters.set_loras(scales)
    names = ", ".join(f"{name} at {scale:g}" for name, scale in scales.items())
    typer.echo(f"LoRA {names}: {swap.weights} weights changed in {swap.seconds:.1f} s", err=True)


def _opened(path: Path | None) -> Any:
    """The image in a file; a PIL image, with its pixels."""
    import warnings

    from kdrt.images.files import open_image, readable

    if path is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damage that it works around
        with open_image(path) as image, readable(str(path)):
            image.load()
            return image


_WORDS = {"true": True, "false": False, "none": None}


def _options(flag: str, pairs: list[str] | None, example: str) -> dict[str, Any]:
    from kdrt.errors import InvalidRequestError

    options: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InvalidRequestError(f"{flag} takes NAME=VALUE, as in {example}, not '{pair}'")
        options[name] = _value(value)
    return options


def _value(text: str) -> Any:
    """A switch, a number, or a word as in solver_type=heun."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _numbers(flag: str, text: str | None, example: str) -> list[float] | None:
    from kdrt.errors import InvalidRequestError

    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise InvalidRequestError(f"{flag} takes numbers, as in {example}, not '{text}'") from error


def _interval(text: str | None) -> tuple[float, float] | None:
    from kdrt.errors import InvalidRequestError

    if text is None:
        return None
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise InvalidRequestError(
            f"--guidance-interval takes two noise levels, as in 0.3:5.4, not '{text}'"
        ) from error
    return low, high


def _freeu(text: str | None) -> tuple[float, float, float, float] | None:
    from kdrt.denoise.freeu import preset
    from kdrt.errors import InvalidRequestError

    if text is None:
        return None
    if "," not in text:
        return preset(text)
    try:
        b1, b2, s1, s2 = map(float, text.split(","))
    except ValueError as error:
        raise InvalidRequestError(
            f"--freeu takes four numbers, as in 1.3,1.4,0.9,0.2, not '{text}'"
        ) from error
    return b1, b2, s1, s2
