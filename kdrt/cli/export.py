"""``kdrt export``: make a bundle from a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdrt.cli.build import GPU_HELP, HERE_HELP, PROFILE_HELP, PROFILE_METAVAR

if TYPE_CHECKING:
    from kdrt_engines.tensorrt.flavour import Flavour

_FOR_TENSORRT = "With --target tensorrt or tensorrt-rtx"

_PACKAGES = {
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "transformers",
}
"""What the extra ``export`` installs, by import name."""


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="[cyan]demo[/]; a well-known model ([cyan]sd15[/], [cyan]sd21[/], "
            "[cyan]sdxl[/], [cyan]sdxl-turbo[/]); a Hugging Face id, with [cyan]@revision[/] or "
            "[cyan]:file[/] behind it if need be; a diffusers folder; or a "
            "[cyan].safetensors[/] or [cyan].ckpt[/] checkpoint.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", show_default=False, help="Write the bundle here."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Name of the bundle; without it the name follows from SOURCE.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16|bf16",
            help="Number format of the networks. [cyan]auto[/] is fp16 where PyTorch finds a CUDA "
            "device or TensorRT is a target, else fp32.",
        ),
    ] = "auto",
    weights: Annotated[
        str,
        typer.Option(
            metavar="float|int8",
            help="How the weights of UNet and text encoders are stored: [cyan]int8[/] makes the "
            "bundle smaller and its images slightly others, at the same speed.",
        ),
    ] = "float",
    unet: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default="the model's",
            help="Another UNet, such as those of Lightning, Hyper-SD and DMD2: a file, a diffusers "
            "folder, a Hugging Face id, or [cyan]owner/name:file[/] on the hub.",
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default="the model's",
            help="Another VAE: a diffusers folder, a file, a Hugging Face id such as "
            "[cyan]madebyollin/sdxl-vae-fp16-fix[/], or [cyan]owner/name:file[/] on the hub.",
        ),
    ] = None,
    vae_precision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16|bf16",
            help="Number format of the VAE. [cyan]auto[/] is that of the other networks, but fp32 "
            "instead of fp16 where the VAE says that it overflows.",
        ),
    ] = "auto",
    preview_decoder: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default=False,
            help="A tiny autoencoder for previews of full size: a diffusers folder, a "
            "[cyan].safetensors[/] file, or a hub id such as [cyan]madebyollin/taesdxl[/].",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="onnxruntime|torch|tensorrt|tensorrt-rtx",
            show_default="onnxruntime",
            help="Engines to prepare; may be given more than once. [cyan]torch[/] adds programs "
            "that PyTorch runs without diffusers, the others what [cyan]kdrt build[/] makes.",
        ),
    ] = None,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU", show_default=False, help=GPU_HELP, rich_help_panel=_FOR_TENSORRT
        ),
    ] = None,
    here: Annotated[
        bool, typer.Option("--here", help=HERE_HELP, rich_help_panel=_FOR_TENSORRT)
    ] = False,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar=PROFILE_METAVAR,
            show_default="any",
            help=PROFILE_HELP,
            rich_help_panel=_FOR_TENSORRT,
        ),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="REV", show_default=False, help="Branch, tag or commit of a Hugging Face id."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="A diffusers folder that says what a checkpoint file is, where kdrt cannot tell.",
        ),
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            metavar="epsilon|v_prediction|sample",
            show_default="as detected",
            help="What the model predicts, where the source does not say it or is wrong.",
        ),
    ] = None,
    fuse_qkv: Annotated[
        bool,
        typer.Option(
            "--fuse-qkv/--no-fuse-qkv",
            help="Compute query, key and value of an attention with one matrix.",
        ),
    ] = True,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            show_default=False,
            help="Merge a LoRA into the weights; may be given more than once.",
        ),
    ] = None,
    strict_lora: Annotated[
        bool,
        typer.Option("--strict-lora", help="Refuse a LoRA if any part of it has no effect."),
    ] = False,
    safety_checker: Annotated[
        bool | None,
        typer.Option(
            "--safety-checker/--no-safety-checker",
            show_default="if the model has one",
            help="Export the model's safety checker, which blacks out what it flags.",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            metavar="unfused-qkv|fused-qkv|deepcache",
            show_default=False,
            help="Keep the networks the other way too, for [cyan]pipe.adapters.use_variant[/]; or "
            "a shallow UNet, for [cyan]--deep-cache[/].",
        ),
    ] = None,
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|HUB:FILE",
            show_default=False,
            help="Keep a variant of the UNet with this IP-Adapter, for images as prompts.",
        ),
    ] = None,
    image_encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            show_default="image_encoder beside the IP-Adapter",
            help="The CLIP vision model of the IP-Adapter.",
        ),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read [cyan].ckpt[/] and [cyan].bin[/] files, which are pickles, with PyTorch's "
            "restricted unpickler.",
        ),
    ] = False,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="The real architecture with random weights: for benchmarks, no download.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of --random-weights.")] = 0,
) -> None:
    """
    Make a [bold]bundle[/bold] from a model.

    The networks are traced to ONNX with dynamic batch, size and prompt length, then checked
    against PyTorch at other sizes than the traced one. A model that is off by more than the
    bound of its precision is not written. An interrupted export leaves nothing behind.

    [bold]Examples[/bold]

      [cyan]kdrt export demo[/cyan]
      [cyan]kdrt export sdxl --precision fp16[/cyan]
      [cyan]kdrt export ./my-model.safetensors --name mine[/cyan]
      [cyan]kdrt export ./my-diffusers-folder -o ./my-bundle[/cyan]
      [cyan]kdrt export sd15 --lora ./style.safetensors:0.8 --name sd15-style[/cyan]
      [cyan]kdrt export sdxl --unet ./sdxl_lightning_4step_unet.safetensors[/cyan]
      [cyan]kdrt export sd15 --random-weights[/cyan]
      [cyan]kdrt export sdxl --target tensorrt-rtx --gpu sm89 --profile portrait[/cyan]
    """
    import os
    import time

    # Bars and remarks of the libraries would run through our own display.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    from kdrt.adapters.lora_file import lora_option
    from kdrt.bundle import folder_name, open_bundle
    from kdrt.cli import build
    from kdrt.common.terminal_report import TerminalReport
    from kdrt.common.units import duration, size
    from kdrt.errors import ExportError

    if name is not None:
        folder_name(name)  # also where -o says where it goes
    _check_effect(source, revision, config, ip_adapter, image_encoder)
    builds = _builds(str(output or name or source), target or [], gpu or [], here, profile)
    if builds and precision == "auto":
        precision = "fp16"
    started = time.perf_counter()
    try:
        from kdrt_export.stage import export as export_bundle

        with TerminalReport() as report:
            path = export_bundle(
                source,
                output,
                name=name,
                precision=precision,
                weights=weights,
                unet=unet,
                vae=vae,
                vae_precision=vae_precision,
                preview_decoder=preview_decoder,
                targets=_without_builds(target or []),
                random_weights=random_weights,
                seed=seed,
                fuse_qkv=fuse_qkv,
                variants=tuple(variant or ()),
                ip_adapter=ip_adapter,
                image_encoder=image_encoder,
                loras=[lora_option(text) for text in lora or ()],
                strict_loras=strict_lora,
                safety_checker=safety_checker,
                allow_pickle=allow_pickle,
                revision=revision,
                config=config,
                prediction_type=prediction_type,
                report=report,
            )
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise ExportError(
            f"exporting needs the package '{package}', which is not installed: "
            "pip install 'kdrt[export]'"
        ) from error
    for flavour, capabilities in builds:
        build.run(open_bundle(path), flavour, capabilities, profile or [])
    total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    handle = str(output) if output else open_bundle(path).manifest.name
    typer.echo(f"{path}  ({size(total)}, {duration(time.perf_counter() - started)})")
    typer.echo(f'next: kdrt generate {handle} "your prompt"', err=True)


def _check_effect(
    source: str,
    revision: str | None,
    config: Path | None,
    ip_adapter: str | None,
    image_encoder: Path | None,
) -> None:
    """Raises ExportError: an option would have no effect."""
    from kdrt.common.paths import user_path
    from kdrt.errors import ExportError

    if image_encoder is not None and ip_adapter is None:
        raise ExportError("--image-encoder belongs to --ip-adapter; give both or neither")
    path = user_path(source)
    if revision is not None and (source == "demo" or path.exists()):
        raise ExportError(
            f"--revision is for models of the hub, and '{source}' is on this machine; leave it out"
        )
    if config is not None and (source == "demo" or path.is_dir()):
        raise ExportError(
            f"--config describes a checkpoint file, and '{source}' is none; leave it out"
        )


def _without_builds(targets: list[str]) -> tuple[str, ...]:
    """The targets the exporter itself prepares."""
    return tuple(t for t in targets if not t.startswith("tensorrt")) or ("onnxruntime",)


def _builds(
    bundle: str, targets: list[str], gpu: list[str], here: bool, profile: list[str] | None
) -> list[tuple[Flavour, tuple[int, ...]]]:
    """What to build after the export; what is wrong with it is said before."""
    from kdrt.cli.build import targets_of
    from kdrt.errors import InvalidRequestError

    engines = [target for target in dict.fromkeys(targets) if target.startswith("tensorrt")]
    if not engines and (gpu or here or profile):
        raise InvalidRequestError(
            "--gpu, --here and --profile say what to build; add --target tensorrt-rtx or tensorrt"
        )
    return [targets_of(bundle, engine, gpu, here) for engine in engines]
