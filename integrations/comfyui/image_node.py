"""The node that makes whole images with kdrt: prompt, sampling and decoding."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io

import kdrt
from kdrt.request.field import Field, fields_of
from kdrt.request.fields import RequestFields
from kdrt.sampling import SAMPLERS, SCHEDULES

from .pipelines import AUTOMATIC, ENGINE_CHOICES, bundle_choices, bundle_version, pipeline_of

_OWN_SIZE, _OWN_GUIDANCE = 0, -1.0
"""What stands for the model's own values: an input of ComfyUI cannot be empty."""

_MAX_SEED = 2**64 - 1


class KdrtImage(io.ComfyNode):
    """Images from a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        fields = fields_of(RequestFields)
        return io.Schema(
            node_id="KdrtImage",
            display_name="kdrt image",
            category="kdrt",
            description="Images made by kdrt alone, as `kdrt generate` makes them.",
            inputs=[
                io.Combo.Input(
                    "bundle",
                    options=bundle_choices(),
                    tooltip="Made by `kdrt export`; those in $KDRT_HOME are listed.",
                ),
                io.String.Input("prompt", multiline=True, default=""),
                io.String.Input(
                    "negative_prompt", multiline=True, default="", tooltip="Empty is none."
                ),
                _int("steps", fields["steps"]),
                io.Float.Input(
                    "guidance_scale",
                    default=_OWN_GUIDANCE,
                    min=_OWN_GUIDANCE,
                    max=fields["guidance_scale"].maximum,
                    step=0.1,
                    tooltip="-1 is the model's own; up to 1 turns guidance off.",
                ),
                _combo("sampler", SAMPLERS, fields["sampler"]),
                _combo("schedule", SCHEDULES, fields["schedule"]),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=_MAX_SEED,
                    control_after_generate=True,
                    tooltip="Of the first image; the next ones count up.",
                ),
                *(
                    io.Int.Input(
                        side,
                        default=_OWN_SIZE,
                        min=_OWN_SIZE,
                        max=fields[side].maximum,
                        step=8,
                        tooltip="In pixels, a multiple of 8; 0 is the model's own.",
                    )
                    for side in ("width", "height")
                ),
                _int("images_per_prompt", fields["images_per_prompt"]),
                io.Combo.Input(
                    "engine",
                    options=[*ENGINE_CHOICES],
                    default=AUTOMATIC,
                    tooltip="`kdrt doctor` lists those that this machine can run.",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle: str, **others: object) -> int:
        return bundle_version(bundle)

    @classmethod
    def execute(
        cls,
        bundle: str,
        engine: str,
        prompt: str,
        negative_prompt: str,
        guidance_scale: float,
        width: int,
        height: int,
        **fields: Any,
    ) -> io.NodeOutput:
        """``fields``: those of a request that need no translation."""
        pipeline = pipeline_of(bundle, engine)
        generation = pipeline.stream(
            prompt,
            negative_prompt or None,  # for SDXL an empty one is another
            guidance_scale=None if guidance_scale == _OWN_GUIDANCE else guidance_scale,
            width=width or None,
            height=height or None,
            output_type="np",
            **fields,
        )
        shows = args.preview_method != LatentPreviewMethod.NoPreviews and _has_previews(pipeline)
        bar = comfy.utils.ProgressBar(len(generation))
        # Closed at once: an interrupted generation would keep the pipeline from the next one.
        with closing(generation):
            for step in generation:
                preview = ("JPEG", step.preview()[0], args.preview_size) if shows else None
                bar.update_absolute(step.index + 1, len(generation), preview)
                comfy.model_management.throw_exception_if_processing_interrupted()
            return io.NodeOutput(torch.from_numpy(generation.result().images))


def _has_previews(pipeline: kdrt.Pipeline) -> bool:
    manifest = pipeline.bundle.manifest
    return manifest.latents.preview is not None or "preview_decoder" in manifest.components


def _int(name: str, field: Field) -> io.Int.Input:
    """The input of a field that is a whole number within limits."""
    return io.Int.Input(
        name, default=field.default, min=field.minimum, max=field.maximum, tooltip=field.help
    )


def _combo(name: str, options: Any, field: Field) -> io.Combo.Input:
    """The input of a field that is one of several names."""
    return io.Combo.Input(name, options=[*options], default=field.default)
