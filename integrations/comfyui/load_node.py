"""The node that loads a bundle as a MODEL, for ComfyUI's own samplers."""

from __future__ import annotations

from comfy_api.latest import io

from .model import engine_model
from .pipelines import AUTOMATIC, ENGINE_CHOICES, bundle_choices, bundle_version, pipeline_of


class KdrtLoadModel(io.ComfyNode):
    """A MODEL whose UNet is a kdrt engine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KdrtLoadModel",
            display_name="kdrt load model",
            category="kdrt",
            description="A MODEL whose UNet is an engine of kdrt, for any sampler. CLIP and VAE "
            "come from elsewhere, and must be those of the same model.",
            inputs=[
                io.Combo.Input(
                    "bundle",
                    options=bundle_choices(),
                    tooltip="Made by `kdrt export`; those in $KDRT_HOME are listed.",
                ),
                io.Combo.Input(
                    "engine",
                    options=[*ENGINE_CHOICES],
                    default=AUTOMATIC,
                    tooltip="`kdrt doctor` lists those that this machine can run.",
                ),
                io.Boolean.Input(
                    "whole_timesteps",
                    default=True,
                    tooltip="On: the UNet is told the nearest training timestep, as by ComfyUI's "
                    "own models. Off: the one in between, as by kdrt.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, bundle: str, **others: object) -> int:
        return bundle_version(bundle)

    @classmethod
    def execute(cls, bundle: str, engine: str, whole_timesteps: bool) -> io.NodeOutput:
        pipeline = pipeline_of(bundle, engine)
        return io.NodeOutput(engine_model(pipeline, whole_timesteps=whole_timesteps))
