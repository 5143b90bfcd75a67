"""What clients of the web UI's API send. Fields that are not here are looked at by `refused`."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from kdrt.common.validation import MAX_IMAGES, MAX_SIDE, MAX_STEPS
from kdrt.serve.a1111.options import Overrides

Count = Annotated[int, pydantic.Field(ge=1, le=MAX_IMAGES)]
Side = Annotated[int | None, pydantic.Field(ge=8, le=MAX_SIDE, description="Null is the model's.")]


class ImagesBody(pydantic.BaseModel):
    """What text to image and image to image have in common. Null is the default."""

    model_config = pydantic.ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: Annotated[
        str | None,
        pydantic.Field(description="With `<lora:name:0.8>` for registered LoRAs."),
    ] = None
    negative_prompt: str | None = None
    seed: Annotated[int | None, pydantic.Field(description="-1 is a random one.")] = None
    steps: Annotated[int | None, pydantic.Field(ge=1, le=MAX_STEPS, description="Null is 50.")] = (
        None
    )
    cfg_scale: Annotated[
        float | None, pydantic.Field(ge=0, le=10_000, description="Null is 7.")
    ] = None
    width: Side = None
    height: Side = None
    sampler_name: Annotated[
        str | None, pydantic.Field(description="Null is `sampler_index`, or Euler.")
    ] = None
    sampler_index: Annotated[
        str | None, pydantic.Field(description="The old name of `sampler_name`.")
    ] = None
    scheduler: str | None = None
    batch_size: Count | None = None
    n_iter: Annotated[
        Count | None, pydantic.Field(description="Batches; they are made together.")
    ] = None
    clip_skip: Annotated[
        int | None,
        pydantic.Field(ge=1, le=12, description="The same as `CLIP_stop_at_last_layers`."),
    ] = None
    eta: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    denoising_strength: float | None = None
    override_settings: Overrides | None = None
    override_settings_restore_afterwards: Annotated[
        bool | None,
        pydantic.Field(description="False keeps the model for requests to come."),
    ] = None
    alwayson_scripts: dict[str, Any] | None = None
    send_images: bool | None = None
    force_task_id: str | None = None

    @property
    def images(self) -> int:
        """How many images it asks for."""
        return (self.batch_size or 1) * (self.n_iter or 1)

    @property
    def overrides(self) -> Overrides:
        """The settings, the defaults where there are none."""
        return self.override_settings or Overrides()


class TextBody(ImagesBody):
    """Of ``/txt2img``."""

    enable_hr: Annotated[
        bool | None,
        pydantic.Field(
            description="A second pass at a larger size, which begins with the enlarged image. It "
            "makes `denoising_strength` of it anew; null is 0.75."
        ),
    ] = None
    hr_scale: Annotated[float | None, pydantic.Field(ge=1, le=16, description="Null is 2.")] = None
    hr_upscaler: Annotated[
        str | None,
        pydantic.Field(description="Of `/upscalers` or `/latent-upscale-modes`; null is Latent."),
    ] = None
    hr_second_pass_steps: Annotated[
        int | None, pydantic.Field(ge=0, le=MAX_STEPS, description="0 is `steps`.")
    ] = None
    hr_resize_x: Annotated[
        int | None,
        pydantic.Field(ge=0, le=MAX_SIDE, description="Width, in place of `hr_scale`."),
    ] = None
    hr_resize_y: Annotated[
        int | None,
        pydantic.Field(ge=0, le=MAX_SIDE, description="Height, in place of `hr_scale`."),
    ] = None
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = None
    hr_negative_prompt: str | None = None
    hr_cfg: float | None = None


class ImageBody(ImagesBody):
    """Of ``/img2img``."""

    init_images: Annotated[
        list[str] | None, pydantic.Field(description="One, as base64 or a data URL.")
    ] = None
    include_init_images: bool | None = None
    resize_mode: Annotated[
        int | None, pydantic.Field(ge=0, le=3, description="0 stretches, 1 crops.")
    ] = None
    mask: Annotated[
        str | None, pydantic.Field(description="White is repainted; base64 or a data URL.")
    ] = None
    mask_blur: Annotated[int | None, pydantic.Field(ge=0, le=256)] = None
    mask_blur_x: Annotated[int | None, pydantic.Field(ge=0, le=256)] = None
    mask_blur_y: Annotated[int | None, pydantic.Field(ge=0, le=256)] = None
    inpainting_fill: Annotated[
        int | None,
        pydantic.Field(
            ge=0,
            le=3,
            description="What lies under the mask to begin with: 0 the colours around it, 1 the "
            "image, 2 noise, 3 nothing.",
        ),
    ] = None
    inpaint_full_res: Annotated[
        bool | int | None,
        pydantic.Field(description="Make the masked part at full size; null is true."),
    ] = None
    inpaint_full_res_padding: Annotated[int | None, pydantic.Field(ge=0, le=2**14)] = None
    inpainting_mask_invert: bool | int | None = None


class PngInfoBody(pydantic.BaseModel):
    """Of ``/png-info``."""

    image: str
