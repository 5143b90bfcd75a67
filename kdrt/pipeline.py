"""Text to image: the one object a user holds, and what it returns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdrt.bundle import Bundle, open_bundle
from kdrt.denoiser import Denoiser, is_doubled
from kdrt.engine_store import load_engines
from kdrt.errors import InvalidRequest
from kdrt.grid import training_table
from kdrt.images import Images, OutputType, save_image, to_images
from kdrt.init_image import begin
from kdrt.latents import check_latents
from kdrt.parameters import Parameters, parameters_of
from kdrt.prompt import Conditioning, PromptEncoder, Truncation, TruncationWarning, zeros_like
from kdrt.recent import Recent
from kdrt.request import Job, Request, latent_shape, noise_of, resolve
from kdrt.safety import ImageFilter, SafetyChecker, looked_at
from kdrt.sampling import Denoise, Step, run
from kdrt.size_conditioning import Size, SizeConditioning
from kdrt.vae import Vae, VaeSwitches
from kdrt_engines import Engine

_DENOISERS = 4
"""Sizes whose buffers are kept: enough for a service that alternates, little enough to fit."""


@dataclass(frozen=True)
class Result:
    """The pictures of one call.

    Attributes:
        images: as ``output_type`` asked: a list of PIL images; an array float32 ``[B, H, W, 3]``
            or a tensor float32 ``[B, 3, H, W]`` in [0, 1]; or latents float32 ``[B, C, h, w]``.
        seeds: the seed of each picture, drawn or given.
        parameters: how each was made; its ``str`` is what :meth:`save` stores in the file.
        truncations: every distinct prompt that was longer than a text encoder reads.
        nsfw: for each picture whether it was blacked out; None if nobody looked.
    """

    images: Images
    seeds: list[int]
    parameters: list[Parameters]
    truncations: tuple[Truncation, ...] = ()
    is_latent: bool = False
    nsfw: list[bool] | None = None

    def save(self, path: str | os.PathLike[str], index: int = 0) -> Path:
        """Save one picture with its parameters; see :func:`kdrt.save_image`.

        Raises:
            InvalidRequest: there is no picture ``index``, or these are latents.
            OutputError: the file cannot be written, or its suffix is unknown.
        """
        if self.is_latent:
            raise InvalidRequest(
                "latents cannot be saved as a picture; ask for another output_type"
            )
        if not 0 <= index < len(self.seeds):
            raise InvalidRequest(f"there are {len(self.seeds)} images, so no image {index}")
        return save_image(self.images[index], path, self.parameters[index])


def load(
    name_or_path: str | os.PathLike[str], *, engine: str | None = None, threads: int | None = None
) -> Pipeline:
    """Open a bundle and load its engines.

    Args:
        name_or_path: a bundle's folder, or its name in ``$KDRT_HOME``.
        engine: which engine runs it (``kdrt doctor`` lists them); None takes the best here.
        threads: CPU threads; None is one a core.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        EngineUnavailable: the engine is not on this machine, or not in the bundle.
        InvalidRequest: an unknown engine.
    """
    bundle = open_bundle(name_or_path)
    return Pipeline(bundle, load_engines(bundle, engine, threads=threads))


class Pipeline(VaeSwitches):
    """Text to image with one model.

    Buffers are made for a size when it is first asked for and used again for the next pictures of
    that size, so a pipeline is not for several threads at once.

    Attributes:
        safety_checker: blacks out what it flags; None where the bundle has none, or to turn it
            off. Latents and the previews of a callback are not looked at.

    Args:
        bundle: the model's facts, tokenizers and token embeddings.
        engines: by component: ``unet``, every text encoder, ``vae_decoder``.
    """

    def __init__(self, bundle: Bundle, engines: Mapping[str, Engine]) -> None:
        self.bundle = bundle
        self.engines = engines
        self._unet = engines["unet"]
        self._noise_schedule = training_table(bundle.manifest.scheduler)
        self._prompts = PromptEncoder(bundle, engines)
        self.vae = Vae(engines, bundle.manifest.latents)
        self.safety_checker: SafetyChecker | None = None
        if "safety_checker" in engines:
            self.safety_checker = SafetyChecker(engines["safety_checker"])
        self._denoisers: Recent[tuple[int, int, int, int, bool], Denoiser] = Recent(_DENOISERS)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int = 20,
        sampler: str = "dpmpp_2m",
        schedule: str = "karras",
        sampler_options: Mapping[str, float | int | str] | None = None,
        schedule_options: Mapping[str, float | int | str | bool] | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        image: object = None,
        mask_image: object = None,
        strength: float | None = None,
        keep_unmasked: bool = True,
        denoising_start: float | None = None,
        denoising_end: float | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: str = "per_image",
        noise_seed: int | Sequence[int] | None = None,
        noise_options: Mapping[str, int | str] | None = None,
        latents: Tensor | None = None,
        clip_skip: int | None = None,
        freeu: tuple[float, float, float, float] | None = None,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        aesthetic_score: float | None = None,
        negative_aesthetic_score: float | None = None,
        output_type: OutputType = "pil",
        image_filter: ImageFilter | None = None,
        callback: Callable[[Step], None] | None = None,
        progress: bool = False,
    ) -> Result:
        """Make pictures. Everything is checked before anything is computed.

        Args:
            prompt: what to show; a list makes one picture for each, in order.
            negative_prompt: what to avoid; one for all, or one a prompt. None is, for most SDXL
                models, not the same as ``""``. Without guidance it has no effect.
            prompt_2: SDXL: another prompt for the second text encoder.
            negative_prompt_2: SDXL: another negative prompt for the second text encoder.
            height: in pixels, a multiple of the VAE's scale (8); None is the model's default.
            width: likewise.
            steps: how many.
            sampler: a key of ``kdrt.sampling.SAMPLERS``, k-diffusion's name or a web UI's label.
            schedule: a key of ``kdrt.sampling.SCHEDULES``, ComfyUI's name or a web UI's label.
            sampler_options: the sampler's own: ``eta``, ``s_churn``, …
            schedule_options: the schedule's own: ``rho``, ``sigma_min``, …; see
                ``SCHEDULES[name].options``.
            sigmas: a descending grid of your own, in place of ``steps`` and ``schedule``.
            timesteps: the same as descending training timesteps; the final σ of 0 is added.
            image: a picture to begin with: PIL (resized to ``height`` by ``width``, by default its
                own size), an array ``[H, W, 3]``, a tensor ``[3, H, W]``, latents ``[B, C, h,
                w]``, or one for each prompt. See :mod:`kdrt.image_input`.
            mask_image: what of ``image`` to repaint: white is repainted, black is kept.
            strength: how much of ``image`` to make anew: that fraction of the steps is run. None
                is 0.8, with a mask 1.
            keep_unmasked: give back the picture's own pixels where nothing was masked.
            denoising_start: go on with ``latents``, those of a run with the same
                ``denoising_end``; as a fraction of the training timesteps (SDXL's refiner).
            denoising_end: stop there, with noise left; take ``output_type="latent"``.
            guidance_scale: w of classifier-free guidance; at 1 and below there is none, and half
                of the work is saved. None is the model's default.
            guidance_rescale: from 0 to 1, against over-exposure at high guidance (Lin et al.
                2023).
            images_per_prompt: pictures of each prompt; they follow each other.
            seed: s gives the pictures s, s + 1, …; a list gives each its own; None draws. A
                picture depends on its seed, not on its place or its company.
            generator: in place of ``seed``: draws a seed for each picture, and goes on.
            noise: whose noise a seed stands for, a key of ``kdrt.sampling.NOISES``.
            noise_seed: seeds of the noise on the way, given like ``seed``; None goes by the
                picture's seed.
            noise_options: the mode's own, such as ``eta_noise_seed_delta`` of ``a1111``.
            latents: unit-variance noise ``[B, C, h, w]`` in place of the seeds' own; with
                ``denoising_start``, the latents to go on with, as they are.
            clip_skip: take the text encoders' hidden state that many layers earlier. The
                negative prompt keeps the usual one.
            freeu: (b1, b2, s1, s2), for bundles exported with it.
            original_size: SDXL: see :class:`kdrt.size_conditioning.SizeConditioning`, also for
                the other sizes and crops, all as (height, width) or (top, left).
            aesthetic_score: SDXL's refiner: how beautiful, from 1 to 10; None is 6.
            negative_aesthetic_score: the same for the negative prompt; None is 2.5.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`Result`.
            image_filter: called with every picture as a PIL image; see
                :data:`kdrt.safety.ImageFilter`.
            callback: called after every step. Its tensors are valid during the call only.
            progress: show a progress bar on standard error.

        Raises:
            InvalidRequest: an argument is wrong; nothing has been computed.
            ShapeError: the engine was not made for this size.
            NonFiniteError: the network overflowed.

        Warns:
            TruncationWarning: a prompt is too long; see :attr:`Result.truncations`.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2,
            height=height,
            width=width,
            steps=steps,
            sampler=sampler,
            schedule=schedule,
            sampler_options=sampler_options,
            schedule_options=schedule_options,
            sigmas=sigmas,
            timesteps=timesteps,
            image=image,
            mask_image=mask_image,
            strength=strength,
            keep_unmasked=keep_unmasked,
            denoising_start=denoising_start,
            denoising_end=denoising_end,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            images_per_prompt=images_per_prompt,
            seed=seed,
            generator=generator,
            noise=noise,
            noise_seed=noise_seed,
            noise_options=noise_options,
            latents=latents,
            clip_skip=clip_skip,
            freeu=freeu,
            sizes=SizeConditioning(
                original_size=original_size,
                crops_coords_top_left=crops_coords_top_left,
                target_size=target_size,
                negative_original_size=negative_original_size,
                negative_crops_coords_top_left=negative_crops_coords_top_left,
                negative_target_size=negative_target_size,
            ),
            aesthetic_score=aesthetic_score,
            negative_aesthetic_score=negative_aesthetic_score,
            output_type=output_type,
            image_filter=image_filter,
        )
        job = resolve(request, self.bundle.manifest, self._unet.spec, self._noise_schedule)
        positive, negative, truncations = self._encode(job)
        for truncation in truncations:
            warnings.warn(str(truncation), TruncationWarning, stacklevel=2)

        with _progress_bar(job.plan.steps, progress) as advance:
            for step in self._run(job, positive, negative):
                if callback is not None:
                    callback(step)
                advance()
        final = step.latents
        check_latents(final)
        images, nsfw = self._images(job, final)
        return Result(
            images=images,
            seeds=list(job.seeds),
            parameters=parameters_of(job, self.bundle.manifest),
            truncations=truncations,
            is_latent=output_type == "latent",
            nsfw=nsfw,
        )

    def _images(self, job: Job, latents: Tensor) -> tuple[Images, list[bool] | None]:
        """What a job's last latents become, and which pictures were blacked out."""
        output_type = job.request.output_type
        if output_type == "latent":
            return latents, None
        pixels = self.vae.decoder(latents)
        if job.init_image is not None:
            pixels = job.init_image.paste(pixels)
        pixels, nsfw = looked_at(pixels, self.safety_checker, job.request.image_filter)
        return to_images(pixels, output_type), nsfw

    def _encode(self, job: Job) -> tuple[Conditioning, Conditioning | None, tuple[Truncation, ...]]:
        """Positive and negative conditioning; no negative where there is no second half."""
        positive, truncations = self._prompts.encode(job.prompts, job.clip_skip)
        if not is_doubled(self._unet.spec, job.guidance_scale):
            return positive, None, truncations
        if job.negatives is None:
            return positive, zeros_like(positive), truncations
        negative, others = self._prompts.encode(job.negatives)
        return positive, negative, tuple(dict.fromkeys(truncations + others))

    @torch.no_grad()
    def _run(
        self, job: Job, positive: Conditioning, negative: Conditioning | None
    ) -> Iterator[Step]:
        """Sample, step by step. The last step's latents are the result."""
        channels, height, width = latent_shape(self.bundle.manifest, job.height, job.width)
        denoiser = self._denoiser(
            images=len(job.seeds),
            height=height,
            width=width,
            tokens=positive.encoder_hidden_states.shape[1],
            doubled=negative is not None,
        )
        denoiser.prepare(
            positive,
            negative,
            guidance_scale=job.guidance_scale,
            guidance_rescale=job.request.guidance_rescale,
            time_ids=_time_ids(job, doubled=negative is not None),
            freeu=job.freeu,
        )
        noise = noise_of(job, (channels, height, width))
        latents = noise.latents().to(self._unet.device)
        if job.request.latents is not None:
            latents.copy_(job.request.latents)
        if job.request.denoising_start is None:
            latents.mul_(job.plan.sigmas[0])
        denoise: Denoise = denoiser
        if job.init_image is not None:
            scale = self.bundle.manifest.latents.scale
            latents, denoise = begin(
                job.init_image, latents, denoiser, self.vae.encode, scale=scale
            )
        yield from run(job.plan, latents, denoise, noise.draw(job.plan.slots).to(latents.device))

    def _denoiser(
        self, *, images: int, height: int, width: int, tokens: int, doubled: bool
    ) -> Denoiser:
        return self._denoisers.get(
            (images, height, width, tokens, doubled),
            lambda: Denoiser(
                self._unet,
                self._noise_schedule,
                self.bundle.manifest.scheduler.prediction_type,
                images=images,
                height=height,
                width=width,
                tokens=tokens,
                doubled=doubled,
            ),
        )


def _time_ids(job: Job, *, doubled: bool) -> Tensor | None:
    """Size conditioning of the whole batch, ``[B, 6]`` (the refiner's ``[B, 5]``): the negative
    half first, as everywhere."""
    if job.time_ids is None or job.negative_time_ids is None:
        return None
    halves = [job.negative_time_ids, job.time_ids] if doubled else [job.time_ids]
    return torch.tensor([ids for ids in halves for _ in job.seeds], dtype=torch.float32)


@contextmanager
def _progress_bar(steps: int, shown: bool) -> Iterator[Callable[[], object]]:
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    # In a log file a bar is only a line without meaning.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Sampling", total=steps)
        yield lambda: bar.advance(task)
