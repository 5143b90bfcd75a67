"""The fields of a request, listed once.

:class:`Request` is what :meth:`kdrt.Pipeline.generate` takes, and what ``pipe(prompt, …)`` makes
from its arguments. The :class:`~kdrt.request.field.Field` beside each type provides the default,
the check of its range, the option of ``kdrt generate``, the entry in the JSON schema, the line in
the documentation of ``pipe(…)``, and the text that is stored in an image.
"""

# No `from __future__ import annotations`: the annotations are read at run time.
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from kdrt.common.literals import (
    COMMA_BACKTRACK,
    HIRES_STRENGTH,
    GuidanceMethodName,
    InpaintFill,
    WeightingMode,
)
from kdrt.common.validation import MAX_IMAGES, MAX_MASK_CHANGE, MAX_SIDE, MAX_STEPS
from kdrt.denoise.freeu import FreeU
from kdrt.request.field import BEGINNING, IMAGE, SDXL, Field, fields_of
from kdrt.request.text_forms import (
    CONTROL_FILE,
    FREEU,
    IMAGE_FILE,
    IMAGE_FILES,
    IMAGE_SCALE,
    LATENTS_FILE,
    POINT,
    RANGE,
    REGION,
    SIZE,
    numbers,
    pairs,
)

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from kdrt.adapters.image_mask import ImageMasks
    from kdrt.adapters.image_prompt import ImageEmbeds, ImagePrompt
    from kdrt.images.control import ControlImage
    from kdrt.images.region import Region
    from kdrt.images.safety import ImageFilter
    from kdrt.prompt import Conditioning
else:
    # The command line is made without torch.
    Conditioning = ControlImage = Generator = ImageEmbeds = ImageFilter = object
    ImageMasks = ImagePrompt = Region = Tensor = object

Seed = int | Sequence[int]
Size = tuple[int, int]
"""(height, width), or (top, left), in pixels."""


class Prompts(TypedDict, total=False):
    """The two fields that may be given by position."""

    prompt: Annotated[
        str | Sequence[str] | None,
        Field(
            help="What to draw; several prompts make a batch.",
            details="A list makes one image for each prompt, in order.",
            metavar="TEXT",
            panel=IMAGE,
            record="Prompt",
            settles=("prompt_2", "prompt_embeds"),
        ),
    ]
    negative_prompt: Annotated[
        str | Sequence[str] | None,
        Field(
            help="What the image should not show.",
            details="One for all prompts, or one for each. For most SDXL models, None is not the "
            'same as ``""``. Without guidance it has no effect.',
            metavar="TEXT",
            panel=IMAGE,
            flags=("--negative-prompt", "--negative"),
            record="Negative prompt",
            settles=("negative_prompt_2", "negative_prompt_embeds"),
        ),
    ]


class PromptFields(TypedDict, total=False):
    """How prompts are encoded."""

    prompt_2: Annotated[
        str | Sequence[str] | None,
        Field(
            help="Another prompt for the second text encoder.",
            metavar="TEXT",
            panel=SDXL,
            record="Prompt 2",
        ),
    ]
    negative_prompt_2: Annotated[
        str | Sequence[str] | None,
        Field(
            help="Another negative prompt for the second text encoder.",
            metavar="TEXT",
            panel=SDXL,
            record="Negative prompt 2",
        ),
    ]
    prompt_weighting: Annotated[
        WeightingMode,
        Field(
            help="How to read `(x:1.2)`, BREAK and long prompts: `none` takes them as plain text, "
            "`a1111` reads them as that web UI does, `a1111_no_norm` does so without its "
            "normalisation.",
            details="See :class:`kdrt.prompt.Weighting`.",
            default="none",
            metavar="NAME",
            panel=IMAGE,
            flags=("--prompt-weighting", "--weighting"),
            record="Emphasis",
        ),
    ]
    comma_backtrack: Annotated[
        int,
        Field(
            help="With a weighting: when a chunk of a long prompt is full, the text after its last "
            "comma moves to the next chunk if it has at most this many tokens.",
            default=COMMA_BACKTRACK,
            minimum=0,
            unit="tokens",
            metavar="N",
            panel=IMAGE,
            record="Comma backtrack",
        ),
    ]
    clip_skip: Annotated[
        int | None,
        Field(
            help="Leave out the last N layers of the text encoders.",
            details="The negative prompt still uses the usual hidden state.",
            minimum=0,
            metavar="N",
            record="Clip skip",
        ),
    ]
    images_per_prompt: Annotated[
        int,
        Field(
            help="Images for each prompt.",
            details="The images of one prompt follow each other.",
            default=1,
            minimum=1,
            maximum=MAX_IMAGES,
            metavar="N",
            panel=IMAGE,
            flags=("--count", "-n"),
        ),
    ]


class RequestFields(PromptFields, total=False):
    """All fields that are given by name."""

    prompt_embeds: Annotated[
        Tensor | Conditioning | None,
        Field(
            help="Instead of a prompt: the result of encode_prompt, or a tensor [B, L, D].",
            details="The shorter of this and an encoded negative prompt is padded. Two sets of "
            "embeddings must be equally long.",
            flags=(),
            record="Prompt embeddings",
        ),
    ]
    negative_prompt_embeds: Annotated[
        Tensor | Conditioning | None,
        Field(
            help="The same for the negative prompt: one for all prompts, or one for each.",
            flags=(),
            record="Negative embeddings",
        ),
    ]
    pooled_prompt_embeds: Annotated[
        Tensor | None,
        Field(
            help="For SDXL, if prompt_embeds is a tensor: the pooled embeddings, [B, P].",
            flags=(),
            record="Pooled embeddings",
        ),
    ]
    negative_pooled_prompt_embeds: Annotated[
        Tensor | None,
        Field(
            help="The pooled embeddings of the negative prompt, [B, P].",
            flags=(),
            record="Negative pooled embeddings",
        ),
    ]
    width: Annotated[
        int | None,
        Field(
            help="Width of the image.",
            details="A multiple of the VAE's scale (8).",
            default_text="the model's",
            minimum=8,
            maximum=MAX_SIDE,
            unit="pixels",
            metavar="PIXELS",
            panel=IMAGE,
            record="Size",
        ),
    ]
    height: Annotated[
        int | None,
        Field(
            help="Height of the image.",
            details="A multiple of the VAE's scale (8).",
            default_text="the model's",
            minimum=8,
            maximum=MAX_SIDE,
            unit="pixels",
            metavar="PIXELS",
            panel=IMAGE,
            record="Size",
        ),
    ]
    hires_scale: Annotated[
        float | None,
        Field(
            help="Make the image, enlarge it by this factor, and denoise it again in a second "
            "pass. This adds detail at sizes where models repeat themselves.",
            minimum=1,
            maximum=16,
            metavar="FACTOR",
            panel=IMAGE,
            record="Hires upscale",
        ),
    ]
    hires_steps: Annotated[
        int | None,
        Field(
            help="Steps of the second pass; all of them are run.",
            default_text="as many as the first",
            minimum=1,
            maximum=MAX_STEPS,
            metavar="N",
            panel=IMAGE,
            record="Hires steps",
            requires="hires_scale",
        ),
    ]
    hires_strength: Annotated[
        float,
        Field(
            help="How much the second pass changes the enlarged image.",
            default=HIRES_STRENGTH,
            above=0,
            maximum=1,
            metavar="0..1",
            panel=IMAGE,
            record="Denoising strength",
            requires="hires_scale",
        ),
    ]
    hires_upscaler: Annotated[
        str,
        Field(
            help="How the image is enlarged: `latent` (also with `_antialiased`, `_bicubic`, "
            "`_bicubic_antialiased`, `_nearest`, `_nearest_exact`), `lanczos`, `nearest`, or "
            "the name of an upscaler in the bundle.",
            details="A key of ``kdrt.images.upscaling.UPSCALINGS`` or a web UI's label; or a name "
            "in the manifest's ``upscalers``.",
            default="latent",
            metavar="NAME",
            panel=IMAGE,
            record="Hires upscaler",
            requires="hires_scale",
        ),
    ]
    seed: Annotated[
        Seed | None,
        Field(
            help="Seed of the first image; every further image adds 1.",
            details="A list gives each image its own seed. An image depends on its seed, not on "
            "its place in the batch or on the other images.",
            default_text="random",
            metavar="N",
            panel=IMAGE,
            record="Seed",
        ),
    ]
    generator: Annotated[
        Generator | None,
        Field(
            help="Instead of seed: a generator that draws a seed for each image, and advances.",
            flags=(),
        ),
    ]
    image: Annotated[
        object,
        Field(
            help="An image to start from. The result has the same size, unless you give another.",
            details="A PIL image (resized), an array ``[H, W, 3]``, a tensor ``[3, H, W]``, "
            "latents ``[B, C, h, w]``, or one of them for each prompt; see "
            ":mod:`kdrt.images.input`.",
            form=IMAGE_FILE,
            panel=BEGINNING,
            record="Init image",
        ),
    ]
    strength: Annotated[
        float | None,
        Field(
            help="How much to change the image: this fraction of the steps is run.",
            default_text="0.8, or 1 with a mask",
            above=0,
            maximum=1,
            metavar="0..1",
            panel=BEGINNING,
            record="Denoising strength",
            requires="image",
        ),
    ]
    mask_image: Annotated[
        object,
        Field(
            help="Repaint only what is white here, and keep what is black.",
            form=IMAGE_FILE,
            panel=BEGINNING,
            flags=("--mask",),
            record="Masked",
            requires="image",
        ),
    ]
    keep_unmasked: Annotated[
        bool,
        Field(
            help="Keep the original pixels outside the mask.",
            default=True,
            panel=BEGINNING,
            record="Keep unmasked",
            requires="mask_image",
        ),
    ]
    mask_blur: Annotated[
        float,
        Field(
            help="Soften the edge of the mask.",
            details="The standard deviation of a Gaussian.",
            default=0.0,
            minimum=0,
            maximum=MAX_MASK_CHANGE,
            unit="pixels",
            metavar="PIXELS",
            panel=BEGINNING,
            record="Mask blur",
            requires="mask_image",
        ),
    ]
    mask_grow: Annotated[
        int,
        Field(
            help="Grow the white area of the mask before it is blurred; a negative value shrinks "
            "it.",
            default=0,
            minimum=-MAX_MASK_CHANGE,
            maximum=MAX_MASK_CHANGE,
            unit="pixels",
            metavar="PIXELS",
            panel=BEGINNING,
            record="Mask grow",
            requires="mask_image",
        ),
    ]
    mask_invert: Annotated[
        bool,
        Field(
            help="Repaint only what is black in the mask.",
            default=False,
            panel=BEGINNING,
            record="Mask inverted",
            requires="mask_image",
        ),
    ]
    soft_mask: Annotated[
        bool,
        Field(
            help="Take the grey of each mask pixel as its own strength: light pixels change much, "
            "dark ones little.",
            details="Differential diffusion, see :mod:`kdrt.denoise.known_region`.",
            default=False,
            panel=BEGINNING,
            record="Soft mask",
            requires="mask_image",
        ),
    ]
    inpaint_fill: Annotated[
        InpaintFill,
        Field(
            help="What is under the mask at the start: the `original` image, the colours around "
            "the mask (`blurred`), `noise` or `nothing`.",
            details="See :class:`kdrt.images.init_image.InitImage`.",
            default="original",
            metavar="NAME",
            panel=BEGINNING,
            record="Masked content",
            requires="mask_image",
        ),
    ]
    inpaint_padding: Annotated[
        int | None,
        Field(
            help="Cut out the masked part with this much of the image around it, make it at the "
            "requested size, and paste it back. The result is as large as the image.",
            minimum=0,
            maximum=MAX_SIDE,
            unit="pixels",
            metavar="PIXELS",
            panel=BEGINNING,
            record="Masked area padding",
            requires="mask_image",
        ),
    ]
    latents: Annotated[
        Tensor | None,
        Field(
            help="Latents to start from, saved with `-o latents.safetensors`.",
            details="Unit-variance noise ``[B, C, h, w]`` instead of the noise of the seeds; with "
            "``denoising_start``, the latents to continue from, which are used as they are.",
            form=LATENTS_FILE,
            panel=BEGINNING,
            record="Latents",
        ),
    ]
    denoising_start: Annotated[
        float | None,
        Field(
            help="Continue from the latents of a run with the same denoising_end; a fraction of "
            "the training timesteps.",
            above=0,
            below=1,
            metavar="0..1",
            panel=BEGINNING,
            record="Denoising start",
            requires="latents",
        ),
    ]
    denoising_end: Annotated[
        float | None,
        Field(
            help="Stop at this fraction of the training timesteps, with noise left, for another "
            "model to continue; save to .safetensors.",
            details='Use it with ``output_type="latent"``.',
            above=0,
            below=1,
            metavar="0..1",
            panel=BEGINNING,
            record="Denoising end",
        ),
    ]
    recipe: Annotated[
        str | None,
        Field(
            help="Settings of a few-step model, such as `lightning-4`, `lcm-4` or `turbo-1`: its "
            "sampler, schedule, steps and guidance, unless you set them yourself.",
            details="A key of ``kdrt.request.recipes.RECIPES``.",
            metavar="NAME",
            settles=(
                *("steps", "sampler", "sampler_options", "schedule", "schedule_options"),
                *("sigmas", "timesteps", "guidance_scale"),
            ),
        ),
    ]
    steps: Annotated[
        int,
        Field(
            help="Steps of the sampler.",
            default=20,
            minimum=1,
            maximum=MAX_STEPS,
            metavar="N",
            record="Steps",
            settles=("sigmas", "timesteps"),
        ),
    ]
    sampler: Annotated[
        str | Callable[..., Any],
        Field(
            help="The sampler (see `kdrt samplers`); `DPM++ 2M Karras` sets the schedule too.",
            details="A key of ``kdrt.sampling.SAMPLERS``, k-diffusion's name or a web UI's label; "
            "a function with the signature of k-diffusion's samplers; or ``k_diffusion.…`` for one "
            "of that package's own, see :func:`kdrt.sampling.run_foreign`.",
            default="dpmpp_2m",
            metavar="NAME",
            record="Sampler",
            settles=("sampler_options",),
        ),
    ]
    schedule: Annotated[
        str,
        Field(
            help="The noise schedule (see `kdrt schedules`).",
            details="A key of ``kdrt.sampling.SCHEDULES``, ComfyUI's name or a web UI's label.",
            default="karras",
            metavar="NAME",
            record="Schedule type",
            settles=("schedule_options", "sigmas", "timesteps"),
        ),
    ]
    sampler_options: Annotated[
        Mapping[str, Any] | None,
        Field(
            help="An option of the sampler, such as `eta=0.5`; may be repeated.",
            form=pairs("eta=0.5"),
            flags=("--sampler-option",),
            record="Sampler",
        ),
    ]
    schedule_options: Annotated[
        Mapping[str, float | int | str | bool] | None,
        Field(
            help="An option of the schedule, such as `rho=5`; may be repeated.",
            form=pairs("rho=5"),
            flags=("--schedule-option",),
            record="Schedule",
        ),
    ]
    sigmas: Annotated[
        Sequence[float] | None,
        Field(
            help="Your own noise levels, in descending order, instead of steps and schedule.",
            form=numbers("S0,S1,...", "14.6,6,2.5,1,0.4,0"),
            record="Sigmas",
            settles=("timesteps", "schedule_options"),
        ),
    ]
    timesteps: Annotated[
        Sequence[float] | None,
        Field(
            help="Your own noise levels, given as training timesteps; the final noise level of 0 "
            "is added.",
            form=numbers("T0,T1,...", "999,749,499,249"),
            record="Timesteps",
            settles=("sigmas", "schedule_options"),
        ),
    ]
    noise: Annotated[
        str,
        Field(
            help="Which noise a seed stands for: per_image, brownian, a1111 or comfyui.",
            default="per_image",
            metavar="NAME",
            record="Noise",
            settles=("noise_options",),
        ),
    ]
    noise_seed: Annotated[
        Seed | None,
        Field(
            help="Seed of the noise that samplers add during the run.",
            default_text="the image's",
            metavar="N",
            record="Noise seed",
        ),
    ]
    noise_options: Annotated[
        Mapping[str, int | str] | None,
        Field(
            help="An option of the noise, such as `eta_noise_seed_delta=31337`; may be repeated.",
            form=pairs("source=nv"),
            flags=("--noise-option",),
            record="Noise",
        ),
    ]
    guidance_scale: Annotated[
        float | None,
        Field(
            help="How closely to follow the prompt; 1 turns guidance off.",
            details="w of classifier-free guidance. Without guidance, a step costs half as much.",
            default_text="the model's",
            minimum=0,
            maximum=10_000,
            metavar="SCALE",
            flags=("--guidance-scale", "--cfg-scale", "--guidance"),
            record="CFG scale",
        ),
    ]
    guidance_rescale: Annotated[
        float,
        Field(
            help="Bring the contrast that strong guidance adds back to normal.",
            details="Lin et al. 2023.",
            default=0.0,
            minimum=0,
            maximum=1,
            metavar="0..1",
            record="Guidance rescale",
        ),
    ]
    guidance_method: Annotated[
        GuidanceMethodName,
        Field(
            help="How the predictions with and without the prompt are combined: `cfg`, `apg` "
            "(strong guidance without burnt colours) or `cfg_zero_star`.",
            details="See :mod:`kdrt.denoise.guidance_methods`.",
            default="cfg",
            metavar="NAME",
            record="Guidance method",
            settles=("guidance_rescale", "apg_eta", "apg_threshold"),
        ),
    ]
    apg_eta: Annotated[
        float,
        Field(
            help="For `apg`: how much to keep of the part that burns colours; 1 keeps all of it.",
            default=0.0,
            minimum=0,
            maximum=10,
            metavar="SHARE",
            record="APG eta",
        ),
    ]
    apg_threshold: Annotated[
        float,
        Field(
            help="For `apg`: how far guidance may go in a step, as a norm over the latents of an "
            "image; 0 means no limit.",
            default=15.0,
            minimum=0,
            maximum=1e6,
            metavar="NORM",
            record="APG threshold",
        ),
    ]
    pag_scale: Annotated[
        float,
        Field(
            help="Perturbed-attention guidance: how far to steer away from results without "
            "structure; 3 is usual, 0 is off. Adds a third row of work per image; needs `kdrt "
            "export … --variant pag`.",
            details="s of :mod:`kdrt.denoise.perturbed_attention`; works without guidance_scale "
            "too.",
            default=0.0,
            minimum=0,
            maximum=1000,
            metavar="SCALE",
            record="PAG scale",
            settles=("pag_adaptive_scale",),
        ),
    ]
    pag_adaptive_scale: Annotated[
        float,
        Field(
            help="How much pag_scale falls for every training timestep below 1000; it never falls "
            "below 0.",
            default=0.0,
            minimum=0,
            maximum=1000,
            metavar="SCALE",
            record="PAG adaptive scale",
        ),
    ]
    regions: Annotated[
        Sequence[Region] | None,
        Field(
            help="A prompt for the part of the image that is white in a mask, as in `left.png=a "
            "red circle`, or `left.png:0.5=…` with a weight; may be repeated. Each region adds a "
            "row of work per image.",
            details="See :class:`kdrt.Region`. Regions apply to all images of the request.",
            form=REGION,
            panel=IMAGE,
            flags=("--region",),
            record="Regions",
        ),
    ]
    region_base_weight: Annotated[
        float,
        Field(
            help="How much the image's own prompt counts inside regions, compared with their "
            "weight of 1; 0 keeps it out of them.",
            default=0.2,
            minimum=0,
            maximum=1000,
            metavar="WEIGHT",
            panel=IMAGE,
            record="Region base weight",
            requires="regions",
        ),
    ]
    guidance_interval: Annotated[
        tuple[float, float] | None,
        Field(
            help="Apply guidance only at noise levels above LO and up to HI, as in `0.3:5.4`; the "
            "other steps cost half. Changes the image.",
            details="See :mod:`kdrt.denoise.shortcuts`.",
            form=RANGE,
            record="Guidance interval",
        ),
    ]
    deep_cache: Annotated[
        int | None,
        Field(
            help="Run the whole UNet once in N evaluations, and only its outermost layers in "
            "between. Changes the image; needs `kdrt export … --variant deepcache`.",
            metavar="N",
            record="Deep cache",
        ),
    ]
    freeu: Annotated[
        FreeU | str | None,
        Field(
            help="Turn FreeU on, with the preset of sd14, sd15, sd21 or sdxl, or with four numbers "
            "such as `1.3,1.4,0.9,0.2`.",
            details="(b1, b2, s1, s2), or the name of a preset in :mod:`kdrt.denoise.freeu`. Needs "
            "a bundle exported with FreeU.",
            form=FREEU,
            record="FreeU",
        ),
    ]
    control: Annotated[
        ControlImage | Sequence[ControlImage] | None,
        Field(
            help="An image that says where things go, for a ControlNet or T2I-Adapter of the "
            "bundle, such as `edges.png:scale=0.8,end=0.6`; `photo.png:process=canny` makes it "
            "from a photo. May be repeated.",
            details="See :class:`kdrt.ControlImage`.",
            form=CONTROL_FILE,
            panel=BEGINNING,
            record="ControlNet 0",
        ),
    ]
    guess_mode: Annotated[
        bool,
        Field(
            help="Let the control image alone decide what the image shows, without a prompt.",
            details="ControlNets act on the conditional half only, and less on the outer layers.",
            default=False,
            panel=BEGINNING,
            record="Guess mode",
            requires="control",
        ),
    ]
    ip_adapter_image: Annotated[
        ImagePrompt | None,
        Field(
            help="An image as prompt, for bundles exported with an IP-Adapter. With several "
            "adapters, name the adapter of each image.",
            details="PIL images, one for all prompts or one for each; with several adapters, a "
            "mapping by the adapter's name. See :mod:`kdrt.adapters.image_prompt`. The pipeline "
            "uses the adapter's variant of the UNet from then on.",
            form=IMAGE_FILES,
            record="IP-Adapter image",
        ),
    ]
    ip_adapter_image_embeds: Annotated[
        ImageEmbeds | None,
        Field(
            help="Instead of ip_adapter_image: what the image encoder makes of it, [n, P], or the "
            "embedding of a face.",
            details="See :data:`kdrt.adapters.image_prompt.ImageEmbeds`.",
            flags=(),
            record="IP-Adapter embeddings",
        ),
    ]
    ip_adapter_scale: Annotated[
        float | Mapping[str, Any],
        Field(
            help="How much the image prompt counts; 0 is off. It may differ by part of the UNet, "
            "as in `up.block_0=0/1/0,mid=0.5`, or by adapter.",
            details="See :mod:`kdrt.adapters.image_scale`.",
            default=1.0,
            form=IMAGE_SCALE,
            record="IP-Adapter scale",
        ),
    ]
    ip_adapter_masks: Annotated[
        ImageMasks | None,
        Field(
            help="A mask that is white where the image prompt counts; one for each image prompt.",
            details="One for each image of an adapter, or those by the adapter's name; see "
            ":mod:`kdrt.adapters.image_mask`.",
            form=IMAGE_FILES,
            flags=("--ip-adapter-mask",),
            record="IP-Adapter masks",
        ),
    ]
    original_size: Annotated[
        Size | None,
        Field(
            help="The original size that the model is told.",
            details="As (height, width), see :mod:`kdrt.request.size_conditioning`.",
            default_text="the image's",
            form=SIZE,
            unit="pixels",
            panel=SDXL,
            record="Original size",
        ),
    ]
    crops_coords_top_left: Annotated[
        Size | None,
        Field(
            help="The crop position that the model is told.",
            details="As (top, left).",
            default_text="0,0",
            form=POINT,
            unit="pixels",
            panel=SDXL,
            record="Crops coords top left",
        ),
    ]
    target_size: Annotated[
        Size | None,
        Field(
            help="The target size that the model is told.",
            details="As (height, width).",
            default_text="the image's",
            form=SIZE,
            unit="pixels",
            panel=SDXL,
            record="Target size",
        ),
    ]
    negative_original_size: Annotated[
        Size | None,
        Field(
            help="The original size that the model is told, for the negative prompt.",
            default_text="as for the prompt",
            form=SIZE,
            unit="pixels",
            panel=SDXL,
            record="Negative original size",
        ),
    ]
    negative_crops_coords_top_left: Annotated[
        Size | None,
        Field(
            help="The crop position that the model is told, for the negative prompt.",
            default_text="0,0",
            form=POINT,
            unit="pixels",
            panel=SDXL,
            record="Negative crops coords top left",
        ),
    ]
    negative_target_size: Annotated[
        Size | None,
        Field(
            help="The target size that the model is told, for the negative prompt.",
            default_text="as for the prompt",
            form=SIZE,
            unit="pixels",
            panel=SDXL,
            record="Negative target size",
        ),
    ]
    aesthetic_score: Annotated[
        float | None,
        Field(
            help="For SDXL's refiner: the aesthetic score that the model is told, from 1 to 10.",
            default_text="6",
            minimum=0,
            maximum=1000,
            metavar="SCORE",
            panel=SDXL,
            record="Aesthetic score",
        ),
    ]
    negative_aesthetic_score: Annotated[
        float | None,
        Field(
            help="The aesthetic score for the negative prompt.",
            default_text="2.5",
            minimum=0,
            maximum=1000,
            metavar="SCORE",
            panel=SDXL,
            record="Negative aesthetic score",
        ),
    ]
    image_filter: Annotated[
        ImageFilter | None,
        Field(
            help="A function that gets every image as a PIL image; see "
            "kdrt.images.safety.ImageFilter.",
            flags=(),
        ),
    ]


class Request(Prompts, RequestFields, total=False):
    """What to make: a dictionary with some of the fields. Fields that are absent have their
    defaults.

    Type checkers check ``Request(prompt="a red circle", steps=30)`` as they check a call.
    ``pipe(**request)`` is the same as ``pipe.generate(request)``.
    """


FIELDS: Mapping[str, Field] = fields_of(Request)
"""By name, in order."""
