"""The UNet of a pipeline, as diffusers shows it."""

from __future__ import annotations

from typing import Any, NoReturn

from kdrt.compat.config import Config, recorded
from kdrt.compat.network_view import NetworkView
from kdrt.denoise.bound_unet import GUIDANCE_INPUT
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline


class UNetView(NetworkView):
    """The UNet's configuration, dtype and switches."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline, "unet", "unet")

    @property
    def pooled_width(self) -> int | None:
        """P of SDXL's pooled embeddings; None where the UNet takes none."""
        return self._width("text_embeds")

    def _config(self) -> Config:
        spec, manifest = self.engine.spec, self.pipeline.bundle.manifest
        facts = manifest.latents
        sides = facts.default_height // facts.scale, facts.default_width // facts.scale
        return Config(
            recorded(self.pipeline.bundle, self.name)
            | {"_class_name": "UNet2DConditionModel", "_name_or_path": manifest.source},
            in_channels=int(spec.input("sample").shape[1]),
            out_channels=int(spec.outputs[0].shape[1]),
            sample_size=sides[0] if sides[0] == sides[1] else sides,
            cross_attention_dim=self._width("encoder_hidden_states"),
            time_cond_proj_dim=self._width(GUIDANCE_INPUT),
            addition_embed_type=None if self.pooled_width is None else "text_time",
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: the UNet runs inside of a call of the pipeline only."""
        raise InvalidRequestError(
            "the UNet is an engine, and runs inside of a pipeline's call only; for steps of your "
            "own use pipe.pipeline.stream(…), or a sampler of your own in pipe.pipeline(…, "
            "sampler=function)"
        )

    def _width(self, name: str) -> int | None:
        """The last dimension of an input; None where there is no such input."""
        spec = self.engine.spec
        return int(spec.input(name).shape[-1]) if spec.has_input(name) else None
