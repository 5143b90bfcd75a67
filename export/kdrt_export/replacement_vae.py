"""Another VAE in place of a model's own (``--vae``), and the precision VAEs are exported in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from kdrt_export.errors import SourceError
from kdrt_export.report import Report

PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_DOWNLOAD = ["config.json", "*.safetensors", "vae/*.json", "vae/*.safetensors"]


def replacement_vae(
    source: str,
    own: Callable[[], AutoencoderKL],
    download: Callable[[str, list[str]], Path],
    *,
    allow_pickle: bool = False,
) -> AutoencoderKL:
    """Load a VAE by itself.

    Args:
        source: a folder of an ``AutoencoderKL`` or of a pipeline with one, a checkpoint file of
            either layout, or a hub id.
        own: gives the model's own VAE, whose architecture a checkpoint file is read as: such
            files hold weights alone.
        download: fetches files of a hub id, by patterns.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: it means nothing, or cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        vae = _from_file(path, own(), allow_pickle)
    elif path.is_dir():
        vae = _from_folder(path)
    elif source.count("/") == 1 and path.suffix not in {".safetensors", *PICKLES}:
        vae = _from_folder(download(source, _DOWNLOAD))
    else:
        raise SourceError(
            f"'{source}' is no VAE: give a diffusers folder, a checkpoint file or a hub id "
            "(owner/name), such as madebyollin/sdxl-vae-fp16-fix"
        )
    return vae.eval().requires_grad_(False)


def _from_folder(path: Path) -> AutoencoderKL:
    folder = path if (path / "config.json").is_file() else path / "vae"
    if not (folder / "config.json").is_file():
        raise SourceError(f"{path} holds no VAE: it has neither config.json nor a folder 'vae'")
    if not list(folder.glob("*.safetensors")):
        raise SourceError(f"{folder} has no .safetensors weights")
    try:
        return AutoencoderKL.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SourceError(f"cannot load a VAE from {folder}: {_reason(error)}") from error


def _from_file(path: Path, own: AutoencoderKL, allow_pickle: bool) -> AutoencoderKL:
    if path.suffix in PICKLES and not allow_pickle:
        raise SourceError(
            f"{path.name} is a pickle, which can run code when opened: get a .safetensors file, "
            "or allow it with --allow-pickle (weights_only)"
        )
    with tempfile.TemporaryDirectory() as config:
        own.save_config(config)
        try:
            return AutoencoderKL.from_single_file(
                str(path), config=config, local_files_only=True, torch_dtype=torch.float32
            )
        except Exception as error:  # diffusers raises whatever the file's content leads it to
            raise SourceError(f"{path.name} is no VAE of this model: {_reason(error)}") from error


def vae_name(source: str) -> str:
    """What a bundle says of a VAE's source: a hub id as it is, of a path the last part."""
    path = Path(source).expanduser()
    return path.resolve().name if path.exists() else source


def vae_dtype(
    vae: AutoencoderKL, precision: torch.dtype, own: torch.dtype | None, report: Report
) -> torch.dtype:
    """The dtype a VAE is exported in.

    Args:
        vae: the VAE.
        precision: of the other networks.
        own: the one asked for; None follows the others, except that a VAE which says of itself
            that it overflows in float16 (``force_upcast``, as SDXL's does) stays in float32. In
            bfloat16, with the range of float32, none overflows.
        report: told where they differ.
    """
    if own is not None:
        if own == torch.float16 and vae.config.force_upcast:
            report.note(
                "this VAE says that it overflows in float16 (force_upcast); pictures that do are "
                "refused, not shown black"
            )
        return own
    if precision == torch.float16 and vae.config.force_upcast:
        report.note("the VAE overflows in float16 (force_upcast): exported in float32")
        return torch.float32
    return precision


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
