"""Answers as clients of the web UI read them: images, the texts that go with them, errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

from PIL import Image

from kdrt._version import __version__
from kdrt.images.infotext import parse_infotext
from kdrt.images.metadata import PARAMETERS
from kdrt.pipeline.metadata import Infotext
from kdrt.pipeline.result import Result
from kdrt.serve.a1111.bodies import ImageBody, ImagesBody, TextBody
from kdrt.serve.errors import Fault
from kdrt.serve.images import ImageFormat, base64_of

_FORMATS: dict[str, ImageFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


ERROR_DOCS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What is wrong: a word for programs in `error`, a sentence in `detail`.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["error", "detail", "body", "errors"],
                    "properties": {
                        name: {"type": "string"} for name in ("error", "detail", "body", "errors")
                    },
                }
            }
        },
    }
}
"""What the schema of the interface says of `error_body`."""


def error_body(fault: Fault) -> dict[str, Any]:
    """An error as the web UI writes it."""
    return {
        "error": fault.kind,
        "detail": fault.message,
        "body": "",
        "errors": fault.message,
    }


def answer(body: ImagesBody, model: str, timestamp: str, result: Result[Any]) -> dict[str, Any]:
    """The answer to a request.

    Args:
        body: what the client sent.
        model: that made it.
        timestamp: when it came.
        result: the images.
    """
    images = cast(list[Image.Image], result.images)
    overrides = body.overrides
    kind = _FORMATS[overrides.samples_format or "png"]
    has_text = overrides.enable_pnginfo is not False
    sent = [] if body.send_images is False else list(zip(images, result.infotexts, strict=True))
    return {
        "images": [
            base64_of(image, kind, infotext if has_text else None, quality=overrides.jpeg_quality)
            for image, infotext in sent
        ],
        "parameters": _parameters(body),
        "info": json.dumps(_info(body, model, timestamp, images, result)),
    }


def _parameters(body: ImagesBody) -> dict[str, Any]:
    """What the client sent, without its images unless it wants them back."""
    # Through JSON: what is not a finite number there becomes null.
    parameters: dict[str, Any] = json.loads(body.model_dump_json())
    if isinstance(body, ImageBody) and not body.include_init_images:
        parameters |= {"init_images": None, "mask": None}
    return parameters


def _info(
    body: ImagesBody,
    model: str,
    timestamp: str,
    images: Sequence[Image.Image],
    result: Result[Any],
) -> dict[str, Any]:
    first: Infotext = result.infotexts[0]
    count = len(result.seeds)
    prompt, negative = body.prompt or "", body.negative_prompt or ""
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * count,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * count,
        "seed": result.seeds[0],
        "all_seeds": result.seeds,
        "subseed": result.seeds[0],
        "all_subseeds": result.seeds,
        "subseed_strength": 0,
        "width": images[0].width,
        "height": images[0].height,
        "sampler_name": first.sampler,
        "cfg_scale": first.guidance_scale,
        "steps": first.steps,
        "batch_size": body.batch_size or 1,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": body.denoising_strength if _has_strength(body) else None,
        "extra_generation_params": {"Schedule type": first.schedule},
        "index_of_first_image": 0,
        "infotexts": [str(each) for each in result.infotexts],
        "styles": [],
        "job_timestamp": timestamp,
        "clip_skip": body.overrides.CLIP_stop_at_last_layers or body.clip_skip or 1,
        "is_using_inpainting_conditioning": False,
        "version": f"kdrt {__version__}",
        "nsfw": result.nsfw or [False] * count,
    }


def _has_strength(body: ImagesBody) -> bool:
    """Whether its ``denoising_strength`` means anything."""
    return isinstance(body, ImageBody) or (isinstance(body, TextBody) and bool(body.enable_hr))


def png_info(texts: dict[str, str]) -> dict[str, Any]:
    """What an image file says of itself.

    Args:
        texts: in the file, by key.
    """
    text = texts.get(PARAMETERS, "")
    parameters = parse_infotext(text) if text else {}
    width, cross, height = parameters.get("Size", "").partition("x")
    if cross:
        parameters |= {"Size-1": width, "Size-2": height}
    return {"info": text, "items": texts, "parameters": parameters}
