"""Another VAE in place of a model's own (``--vae``), and the precision VAEs are exported in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL

from kdrt_export.report import Report
from kdrt_export.sources.layouts import vae_tensors
from kdrt_export.sources.part import PartPlace
from kdrt_export.sources.weights import Weights

_NORMALISATION = ("latents_mean", "latents_std", "scaling_factor")
VAE = PartPlace("VAE", "vae", "madebyollin/sdxl-vae-fp16-fix")


def replacement_vae(
    source: str, own: Mapping[str, Any], *, allow_pickle: bool = False
) -> Weights[AutoencoderKL]:
    """Find a VAE by itself.

    Args:
        source: a folder of an ``AutoencoderKL`` or of a pipeline with one, a checkpoint file of
            either layout, a hub id, or ``owner/name:path`` for a file on the hub.
        own: the configuration of the model's own VAE, which a checkpoint file is read as: such
            files hold weights alone.
        allow_pickle: accept pickled weights.

    Raises:
        SourceError: it means nothing, cannot be read, or is of another architecture.
    """
    path = VAE.find(source, allow_pickle=allow_pickle)
    if path.is_dir():
        weights = VAE.from_folder(AutoencoderKL, path, allow_pickle=allow_pickle)
        config = dict(weights.config)
        if own.get("latents_mean") is not None and config.get("latents_mean") is None:
            # The UNet was trained on latents of these statistics, whichever VAE decodes them.
            config |= {key: own[key] for key in _NORMALISATION if key in own}
        return replace(weights, config=config)
    return Weights(
        AutoencoderKL,
        own,
        vae_tensors(path, own),
        path.name,
        "it is incomplete, or of another architecture than the model's own VAE",
    )


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
                "this VAE says that it overflows in float16 (force_upcast); images that do are "
                "refused, not shown black"
            )
        return own
    if precision == torch.float16 and vae.config.force_upcast:
        report.note("the VAE overflows in float16 (force_upcast): exported in float32")
        return torch.float32
    return precision
