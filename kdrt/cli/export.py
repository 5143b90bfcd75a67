"""``kdrt export``: make a bundle from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdrt.cli.build import GPU_HELP, HERE_HELP, PROFILE_HELP, PROFILE_METAVAR

_FOR_TENSORRT = "With --target tensorrt or tensorrt-rtx"


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            show_default=False,
            help="[cyan]demo[/]; a well-known model ([cyan]sd15[/], [cyan]sd21[/], "
            "[cyan]sdxl[/], [cyan]sdxl-turbo[/]); a Hugging Face id, optionally followed by "
            "[cyan]@revision[/] or [cyan]:file[/]; a diffusers folder; or a "
            "[cyan].safetensors[/] or [cyan].ckpt[/] checkpoint.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", show_default=False, help="Folder of the new bundle."
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Name of the bundle. The default is made from SOURCE.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="auto|fp32|fp16|bf16",
            help="Number format of the networks. [cyan]auto[/] is fp16 if PyTorch finds a CUDA "
            "device or TensorRT is a target, otherwise fp32.",
        ),
    ] = "auto",
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-fp32",
            metavar="auto|[COMPONENT:]GLOB",
            show_default=False,
            help="Modules to keep in fp32 in an fp16 export, with everything inside them, such as "
            "[cyan]'vae_decoder:decoder.up_blocks.3'[/]; may be repeated. [cyan]auto[/] finds the "
            "fewest modules that bring the error of fp16 below its bound.",
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            metavar="float|int8",
            help="How the weights of the UNet and the text encoders are stored. [cyan]int8[/] "
            "makes the bundle smaller and changes the images slightly; the speed stays the same.",
        ),
    ] = "float",
    unet: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default="the model's",
            help="Another UNet, such as that of Lightning, Hyper-SD or DMD2: a file, a diffusers "
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
            help="Number format of the VAE. [cyan]auto[/] is the format of the other networks, "
            "but fp32 instead of fp16 if the VAE's configuration says that it overflows.",
        ),
    ] = "auto",
    preview_decoder: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            show_default=False,
            help="A tiny autoencoder for full-size previews: a diffusers folder, a "
            "[cyan].safetensors[/] file, or a Hugging Face id such as "
            "[cyan]madebyollin/taesdxl[/].",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="onnxruntime|torch|tensorrt|tensorrt-rtx",
            show_default="onnxruntime",
            help="Engines to prepare; may be repeated. [cyan]onnxruntime[/] adds graphs optimised "
            "for this CPU, [cyan]torch[/] programs that PyTorch runs without diffusers, and the "
            "TensorRT targets what [cyan]kdrt build[/] makes.",
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
            help="A diffusers folder that describes a checkpoint file, if kdrt cannot tell what "
            "it is.",
        ),
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            metavar="epsilon|v_prediction|sample",
            show_default="as detected",
            help="What the model predicts, if the source does not say so or is wrong.",
        ),
    ] = None,
    fuse_qkv: Annotated[
        bool,
        typer.Option(
            "--fuse-qkv/--no-fuse-qkv",
            help="Compute the query, key and value of each attention with one matrix.",
        ),
    ] = True,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:SCALE]",
            show_default=False,
            help="Merge a LoRA into the weights; may be repeated.",
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
            metavar="unfused-qkv|fused-qkv|deepcache|pag",
            show_default=False,
            help="Also keep another form of the networks; may be repeated. [cyan]unfused-qkv[/] "
            "and [cyan]fused-qkv[/] are for [cyan]pipe.adapters.use_variant[/], "
            "[cyan]deepcache[/] (a shallow UNet) is for [cyan]--deep-cache[/], and "
            "[cyan]pag[/] is for [cyan]--pag-scale[/].",
        ),
    ] = None,
    pag_layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="mid",
            help="With [cyan]--variant pag[/]: where self-attention is perturbed, by diffusers' "
            "names, such as [cyan]down_blocks.1[/]; may be repeated.",
        ),
    ] = None,
    ip_adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|HUB:FILE",
            show_default=False,
            help="Also keep a variant of the UNet with this IP-Adapter, for images as prompts; may "
            "be repeated. It takes options, as in [cyan]FILE:name=face,images=2[/].",
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|HUB:DIR",
            show_default="image_encoder beside the IP-Adapter",
            help="The CLIP vision model of the IP-Adapters.",
        ),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE[:NAME]",
            show_default=False,
            help="Add a ControlNet, which takes an image that says where things go; may be "
            "repeated. SOURCE is a file, a diffusers folder, a Hugging Face id or [cyan]demo[/] "
            "(outlines for the demo model); NAME is what requests call it.",
        ),
    ] = None,
    t2i_adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE[:NAME]",
            show_default=False,
            help="Add a T2I-Adapter, in the same way; may be repeated.",
        ),
    ] = None,
    upscaler: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:NAME]",
            show_default=False,
            help="Add a network such as ESRGAN, which enlarges an image between two passes; may be "
            "repeated. NAME is what requests call it. Needs "
            "[cyan]pip install 'kdrt\\[upscalers]'[/].",
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
            help="Export the real architecture with random weights, for benchmarks, without a "
            "download.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of --random-weights.")] = 0,
) -> None:
    """
    Make a [bold]bundle[/bold] from a model.

    kdrt traces the networks to ONNX with dynamic batch, size and prompt length, then compares them
    with PyTorch at sizes other than the traced one. If the error exceeds the bound of the
    precision, no bundle is written. An interrupted export leaves nothing behind.

    [bold]Examples[/bold]

      [cyan]kdrt export demo[/cyan]
      [cyan]kdrt export sdxl --precision fp16[/cyan]
      [cyan]kdrt export sd21 --precision fp16 --keep-fp32 auto[/cyan]
      [cyan]kdrt export ./my-model.safetensors --name mine[/cyan]
      [cyan]kdrt export ./my-diffusers-folder -o ./my-bundle[/cyan]
      [cyan]kdrt export sd15 --lora ./style.safetensors:0.8 --name sd15-style[/cyan]
      [cyan]kdrt export sdxl --unet ./sdxl_lightning_4step_unet.safetensors[/cyan]
      [cyan]kdrt export sd15 --controlnet lllyasviel/control_v11p_sd15_canny:canny[/cyan]
      [cyan]kdrt export sd15 --random-weights[/cyan]
      [cyan]kdrt export sdxl --target tensorrt-rtx --gpu sm89 --profile portrait[/cyan]
    """
    import time

    from kdrt.bundle import folder_name, open_bundle
    from kdrt.cli import build
    from kdrt.cli.bundle_rows import folder_size
    from kdrt.cli.export_checks import (
        builds_of,
        check_effect,
        exporter,
        own_targets,
        quiet_libraries,
        read_loras,
    )
    from kdrt.common.terminal_report import TerminalReport
    from kdrt.common.units import duration, size

    quiet_libraries()
    if name is not None:
        folder_name(name)  # also where -o says where it goes
    check_effect(source, revision, config, ip_adapter or [], image_encoder)
    builds = builds_of(str(output or name or source), target or [], gpu or [], here, profile)
    if builds and precision == "auto":
        precision = "fp16"
    loras = read_loras(lora or [], allow_pickle=allow_pickle)
    started = time.perf_counter()
    with exporter() as export_bundle, TerminalReport() as report:
        path = export_bundle(
            source,
            output,
            name=name,
            precision=precision,
            weights=weights,
            keep_fp32=tuple(keep_fp32 or ()),
            unet=unet,
            vae=vae,
            vae_precision=vae_precision,
            preview_decoder=preview_decoder,
            targets=own_targets(target or []),
            random_weights=random_weights,
            seed=seed,
            fuse_qkv=fuse_qkv,
            variants=tuple(variant or ()),
            pag_layers=tuple(pag_layers or ()),
            ip_adapter=ip_adapter or (),
            image_encoder=image_encoder,
            controlnets=tuple(controlnet or ()),
            t2i_adapters=tuple(t2i_adapter or ()),
            upscalers=tuple(upscaler or ()),
            loras=loras,
            strict_loras=strict_lora,
            safety_checker=safety_checker,
            allow_pickle=allow_pickle,
            revision=revision,
            config=config,
            prediction_type=prediction_type,
            report=report,
        )
    for flavour, capabilities in builds:
        build.run(open_bundle(path), flavour, capabilities, profile or [])
    handle = str(output) if output else open_bundle(path).manifest.name
    typer.echo(f"{path}  ({size(folder_size(path))}, {duration(time.perf_counter() - started)})")
    typer.echo(f'next: kdrt generate {handle} "your prompt"', err=True)
