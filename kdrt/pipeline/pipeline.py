"""Text to image: the one object a user holds, and what it returns."""

from __future__ import annotations

import logging
import os
import warnings
from collections import ChainMap
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor

from kdrt.adapters.ip_adapter import VARIANT as IP_ADAPTER
from kdrt.adapters.ip_adapter import ImagePrompt
from kdrt.adapters.variants import ComponentLoader
from kdrt.backends.loading import load_engines
from kdrt.backends.offload import Offloader
from kdrt.bundle import Bundle, open_bundle
from kdrt.bundle.components import SHALLOW_UNET
from kdrt.common.memory import name_memory_failure
from kdrt.common.streams import OwnStream
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import check_bool, check_callable
from kdrt.denoise.cuda_graphs import CudaGraphLevel, cuda_graph_level
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.denoising import Denoising
from kdrt.errors import InvalidRequestError
from kdrt.images.output import Images, OutputType, to_images
from kdrt.images.safety import ImageFilter, SafetyChecker, check_images
from kdrt.pipeline.adapters import Adapters
from kdrt.pipeline.calls import Calls
from kdrt.pipeline.metadata import Infotext, infotexts_of
from kdrt.pipeline.prepare import prepare
from kdrt.pipeline.result import Generation, Result
from kdrt.pipeline.service import Service
from kdrt.prompt import (
    COMMA_BACKTRACK,
    Conditioning,
    PromptEncoder,
    PromptSyntaxWarning,
    Truncation,
    TruncationWarning,
    WeightingMode,
    zeros_like,
)
from kdrt.request.grid import training_table
from kdrt.request.request import Job, Request
from kdrt.request.resolve import resolve
from kdrt.request.size_conditioning import Size, SizeConditioning
from kdrt.sampling import ForeignPlan
from kdrt.vae.coder import check_latents
from kdrt.vae.preview import Previewer, PreviewStep
from kdrt.vae.vae import Vae
from kdrt_engines import Engine

_logger = logging.getLogger(__name__)


@in_neutral_modes
def load(
    name_or_path: str | os.PathLike[str] | Bundle,
    *,
    engine: str | None = None,
    threads: int | None = None,
    cuda_graph: CudaGraphLevel | None = None,
    fallback: str | None = None,
    low_vram: bool = False,
) -> Pipeline:
    """Open a bundle and load its engines.

    Args:
        name_or_path: a bundle's folder, or its name in ``$KDRT_HOME``; or one that is open.
        engine: which engine runs it (``kdrt doctor`` lists them); None takes the best here.
        threads: CPU threads; None is one a core.
        cuda_graph: how much of a run is captured in CUDA graphs, see
            :mod:`kdrt.denoise.cuda_graphs`: ``"off"``, ``"step"`` or ``"loop"``; None is ``"step"``
            on CUDA and ``"off"`` on a CPU, where there is nothing else.
        fallback: another engine, for components that the first has not or may not load.
        low_vram: load the components in turn, each image anew; see :mod:`kdrt.backends.offload`.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
        EngineUnavailableError: the engine is not on this machine, or not in the bundle.
        EngineRejectedError: a built engine is missing or must not be used, and there is no
            fallback.
        InvalidRequestError: an unknown engine or CUDA graph level, or one that is not possible
            here.
        OutOfMemoryError: it does not fit.

    Warns:
        FallbackWarning: a component runs on the other engine, and why.
    """
    try:
        bundle = name_or_path if isinstance(name_or_path, Bundle) else open_bundle(name_or_path)
        _logger.info(
            "opened bundle '%s' (%s) in %s",
            bundle.manifest.name,
            bundle.manifest.family,
            bundle.path,
        )
        offloader = Offloader() if check_bool("low_vram", low_vram) else None
        engines = load_engines(
            bundle,
            engine,
            threads=threads,
            fallback=fallback,
            offloader=offloader,
            own_cuda_graphs=cuda_graph not in ("off", None),
        )
        pipeline = Pipeline(
            bundle, engines, engines.reload, cuda_graph=cuda_graph, offloader=offloader
        )
        bundle.check_unchanged()  # while it was read
        return pipeline
    except Exception as error:
        name_memory_failure(error)
        raise


class Pipeline(Service):
    """Text to image with one model.

    Buffers are made for a size when it is first asked for and used again for the next images of
    that size. So calls take turns: one from another thread waits until that at work is over, and
    one from within a callback, or from within the steps of a generation, is refused. A pipeline
    belongs to the process that loaded it, not to those forked from it.

    Attributes:
        denoising: samples runs that `kdrt.pipeline.prepare` made.
        safety_checker: blacks out what it flags; None where the bundle has none, or to turn it
            off. Latents and the previews of a callback are not looked at.

    Args:
        bundle: the model's facts, tokenizers and token embeddings.
        engines: by component: ``unet``, every text encoder, ``vae_decoder``.
        load_component: loads one more; without it there are no variants.
        cuda_graph: see :func:`load`.
        offloader: of the engines, where they are loaded in turn.

    Raises:
        InvalidRequestError: that CUDA graph level is not possible on this device.
    """

    @in_neutral_modes
    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        load_component: ComponentLoader | None = None,
        *,
        cuda_graph: CudaGraphLevel | None = None,
        offloader: Offloader | None = None,
    ) -> None:
        self.bundle = bundle
        self.calls = Calls(self._release_buffers)
        # What is loaded when it is first asked for must not be asked for by making a copy.
        self.engines = ChainMap[str, Engine]({}, engines)  # type: ignore[arg-type]
        self._unet = engines["unet"]
        self.cuda_graph = cuda_graph_level(cuda_graph, self._unet)
        self.stream = OwnStream(self._unet.device, self._unet.stream)
        self.noise_schedule = training_table(bundle.manifest.scheduler)
        self.prompt_encoder = PromptEncoder(bundle, engines)
        self.vae = Vae(self.engines, bundle.manifest.latents, self.calls.part, self.calls.one)
        self.previewer = Previewer(bundle.manifest.latents, engines.get("preview_decoder"))
        self.safety_checker: SafetyChecker | None = None
        if "safety_checker" in engines:
            self.safety_checker = SafetyChecker(engines["safety_checker"], self.calls.one)
        self.adapters = Adapters(
            bundle,
            self.engines,
            self.prompt_encoder,
            self.calls,
            load_component,
            self.replace_engines,
        )
        self.denoising = Denoising(
            bundle.manifest.scheduler,
            self._unet,
            self.noise_schedule,
            shallow=lambda: self.engines[SHALLOW_UNET],
            cuda_graph=self.cuda_graph,
            stream=self.stream.stream,
        )
        if offloader is not None:
            offloader.on_release("text", self.prompt_encoder.release)
            offloader.on_release("unet", self.denoising.clear)
            offloader.on_release("vae", self._release_vae)

    def __reduce__(self) -> NoReturn:
        raise InvalidRequestError(
            "a pipeline cannot be pickled or copied, as engines belong to the process that loaded "
            "them: give the bundle's name, and call kdrt.load there; in one process share it"
        )

    def _release_vae(self) -> None:
        self.vae.release()
        if self.safety_checker is not None:
            self.safety_checker.release()

    def _release_buffers(self) -> None:
        """Free what the next call can make again."""
        self.prompt_encoder.release()
        self.denoising.clear()
        self._release_vae()
        torch.cuda.empty_cache()

    def replace_engines(self, engines: Mapping[str, Engine]) -> None:
        """Run other engines from now on, by component. Buffers and captured CUDA graphs of the old
        ones are dropped; so they are for an engine whose weights have changed in place."""
        self.engines.update(engines)
        self.prompt_encoder.use(engines)
        if "unet" in engines:
            self._unet = engines["unet"]
        if "unet" in engines or SHALLOW_UNET in engines:
            self.denoising.use(self._unet)
        self.vae.use(engines)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | Conditioning | None = None,
        negative_prompt_embeds: Tensor | Conditioning | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        prompt_weighting: WeightingMode = "none",
        comma_backtrack: int = COMMA_BACKTRACK,
        height: int | None = None,
        width: int | None = None,
        steps: int = 20,
        sampler: str | Callable[..., Any] = "dpmpp_2m",
        schedule: str = "karras",
        sampler_options: Mapping[str, Any] | None = None,
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
        guidance_interval: tuple[float, float] | None = None,
        deep_cache: int | None = None,
        images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | None = None,
        noise: str = "per_image",
        noise_seed: int | Sequence[int] | None = None,
        noise_options: Mapping[str, int | str] | None = None,
        latents: Tensor | None = None,
        clip_skip: int | None = None,
        freeu: tuple[float, float, float, float] | str | None = None,
        ip_adapter_image: ImagePrompt | None = None,
        ip_adapter_image_embeds: Tensor | None = None,
        ip_adapter_scale: float = 1.0,
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
        callback: Callable[[PreviewStep], object] | None = None,
        progress: bool = False,
    ) -> Result:
        """Make images. Everything is checked before anything is computed.

        Args:
            prompt: what to show; a list makes one image for each, in order.
            negative_prompt: what to avoid; one for all, or one a prompt. None is, for most SDXL
                models, not the same as ``""``. Without guidance it has no effect.
            prompt_2: SDXL: another prompt for the second text encoder.
            negative_prompt_2: SDXL: another negative prompt for the second text encoder.
            prompt_embeds: in place of a prompt, what :meth:`encode_prompt` made of one, or a
                tensor ``[B, L, D]``; whichever of the two halves is shorter is lengthened.
            negative_prompt_embeds: likewise, for all prompts or one for each.
            pooled_prompt_embeds: SDXL, with ``prompt_embeds`` as a tensor: ``[B, P]``.
            negative_pooled_prompt_embeds: likewise.
            prompt_weighting: ``"a1111"`` or ``"a1111_no_norm"`` reads ``(x:1.2)``, ``[x]`` and
                BREAK, and long prompts whole; see :class:`kdrt.prompt.Weighting`.
            comma_backtrack: see there too.
            height: in pixels, a multiple of the VAE's scale (8); None is the model's default.
            width: likewise.
            steps: how many.
            sampler: a key of ``kdrt.sampling.SAMPLERS``, k-diffusion's name or a web UI's label;
                a function with the signature of k-diffusion's samplers; or ``"k_diffusion.…"``, one
                of the package's own. See :func:`kdrt.sampling.run_foreign`.
            schedule: a key of ``kdrt.sampling.SCHEDULES``, ComfyUI's name or a web UI's label.
            sampler_options: the sampler's own: ``eta``, ``s_churn``, …
            schedule_options: the schedule's own: ``rho``, ``sigma_min``, …; see
                ``SCHEDULES[name].options``.
            sigmas: a descending grid of your own, in place of ``steps`` and ``schedule``.
            timesteps: the same as descending training timesteps; the final σ of 0 is added.
            image: an image to begin with: PIL (resized to ``height`` by ``width``, by default its
                own size), an array ``[H, W, 3]``, a tensor ``[3, H, W]``, latents ``[B, C, h,
                w]``, or one for each prompt. See :mod:`kdrt.images.input`.
            mask_image: what of ``image`` to repaint: white is repainted, black is kept.
            strength: how much of ``image`` to make anew: that fraction of the steps is run. None
                is 0.8, with a mask 1.
            keep_unmasked: give back the image's own pixels where nothing was masked.
            denoising_start: go on with ``latents``, those of a run with the same
                ``denoising_end``; as a fraction of the training timesteps (SDXL's refiner).
            denoising_end: stop there, with noise left; take ``output_type="latent"``.
            guidance_scale: w of classifier-free guidance; at 1 and below there is none, and half
                of the work is saved. None is the model's default.
            guidance_rescale: from 0 to 1, against over-exposure at high guidance (Lin et al.
                2023).
            guidance_interval: (σ_low, σ_high): guidance only where σ_low < σ ≤ σ_high, elsewhere
                the conditional prediction alone, for half of the work. Another image; see
                :mod:`kdrt.denoise.shortcuts`.
            deep_cache: N: of N evaluations of the UNet one is full, the others compute its
                outermost layers only; for bundles exported with ``--variant deepcache``. Another
                image.
            images_per_prompt: images of each prompt; they follow each other.
            seed: s gives the images s, s + 1, …; a list gives each its own; None draws. A
                image depends on its seed, not on its place or its company.
            generator: in place of ``seed``: draws a seed for each image, and goes on.
            noise: whose noise a seed stands for, a key of ``kdrt.sampling.NOISES``.
            noise_seed: seeds of the noise on the way, given like ``seed``; None goes by the
                image's seed.
            noise_options: the mode's own, such as ``eta_noise_seed_delta`` of ``a1111``.
            latents: unit-variance noise ``[B, C, h, w]`` in place of the seeds' own; with
                ``denoising_start``, the latents to go on with, as they are.
            clip_skip: take the text encoders' hidden state that many layers earlier. The
                negative prompt keeps the usual one.
            freeu: (b1, b2, s1, s2), or the name of a preset in :mod:`kdrt.denoise.freeu` such as
                ``"sdxl"``; for bundles exported with it.
            ip_adapter_image: PIL images as prompts, one for all or one a prompt; for bundles
                exported with an IP-Adapter, whose variant is then used from here on.
            ip_adapter_image_embeds: in their place what the image encoder makes of them,
                ``[n, P]``.
            ip_adapter_scale: how much they count; 0 is exactly off.
            original_size: SDXL: see :class:`kdrt.request.size_conditioning.SizeConditioning`,
                also for the other sizes and crops, all as (height, width) or (top, left).
            aesthetic_score: SDXL's refiner: how beautiful, from 1 to 10; None is 6.
            negative_aesthetic_score: the same for the negative prompt; None is 2.5.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`Result`.
            image_filter: called with every image as a PIL image; see
                :data:`kdrt.images.safety.ImageFilter`.
            callback: called after every step. Its tensors are valid during the call only. If it
                returns False, the call ends with CancelledError.
            progress: show a progress bar on standard error.

        Raises:
            InvalidRequestError: an argument is wrong; nothing has been computed.
            ShapeError: the engine was not made for this size.
            OutOfMemoryError: memory ran out on the way; the next call works.
            NonFiniteError: the network overflowed.
            EngineError: the pipeline was loaded in another process.
            CancelledError: :meth:`cancel` or the callback ended the call.
            PipelineClosedError: the pipeline is closed.

        Warns:
            TruncationWarning: a prompt is too long; see :attr:`Result.truncations`.
            PromptSyntaxWarning: part of a prompt is written for another program, and is read as
                plain text; see :mod:`kdrt.prompt.hints`.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            prompt_weighting=prompt_weighting,
            comma_backtrack=comma_backtrack,
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
            guidance_interval=guidance_interval,
            deep_cache=deep_cache,
            images_per_prompt=images_per_prompt,
            seed=seed,
            generator=generator,
            noise=noise,
            noise_seed=noise_seed,
            noise_options=noise_options,
            latents=latents,
            clip_skip=clip_skip,
            freeu=freeu,
            ip_adapter_image=ip_adapter_image,
            ip_adapter_image_embeds=ip_adapter_image_embeds,
            ip_adapter_scale=ip_adapter_scale,
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
        progress = check_bool("progress", progress)
        if callback is not None:
            check_callable("callback", callback)
            callback = self.calls.callback(callback)
        with self.calls.one():
            generation = self._generation(request, watched=progress or callback is not None)
            # Closed at once: a caller who keeps an exception of the callback keeps this frame.
            with closing(generation), _progress_bar(len(generation), progress) as advance:
                for step in generation:
                    if callback is not None:
                        callback(step)
                    advance()
                return generation.result()

    def steps(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        **arguments: Any,
    ) -> Generation:
        """Make images step by step: progress, preview and cancel are yours.

            generation = pipe.steps("a red circle", seed=7)
            for step in generation:
                print(step.index, step.sigma)
            generation.result().save("circle.png")

        From its first step until its last, or until it is closed or let go, no other call of the
        pipeline can begin. What has changed before the first step counts: a LoRA, a learned token.

        Args:
            prompt: what to show.
            negative_prompt: what to avoid.
            arguments: those of :meth:`__call__`, but for ``callback`` and ``progress``.

        Raises:
            InvalidRequestError: at once: an argument is wrong.
            TypeError: there is no such argument.

        Warns:
            TruncationWarning: a prompt is too long.
        """
        names = {each.name for each in fields(SizeConditioning)}
        sizes = {name: arguments.pop(name) for name in names & arguments.keys()}
        known = {each.name for each in fields(Request)} - {"sizes"}
        unknown = arguments.keys() - known
        if unknown:
            raise TypeError(f"steps() has no argument {', '.join(map(repr, sorted(unknown)))}")
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            sizes=SizeConditioning(**sizes),
            **arguments,
        )
        with self.calls.one():
            return self._generation(request)

    def _generation(self, request: Request, *, watched: bool = True) -> Generation:
        """Check, encode, and leave the rest to whoever asks for steps. Not ``watched``, the last
        step may be the only one."""
        if request.has_image_prompt and not self._unet.spec.has_input("ip_scale"):
            self.adapters.use_variant(IP_ADAPTER, ["unet"])
        unet = self._unet.spec
        job = self._resolved(request)
        asked = job.plan.needs_unconditional
        doubled = is_doubled(unet, job.guidance_scale, asked=asked)
        encoded = self._encode(job, doubled=doubled)
        version, truncations = self.prompt_encoder.version, encoded[2]
        for truncation in truncations:
            warnings.warn(str(truncation), TruncationWarning, stacklevel=3)
        for hint in self._hints(job):
            warnings.warn(hint, stacklevel=3)
        chunks = -(-encoded[0].length // self.bundle.manifest.text_encoders[0].max_length)
        parameters: list[Infotext] = []

        def run() -> Generator[PreviewStep, None, Tensor]:
            positive, negative, _ = encoded
            if self._unet.spec != unet:
                raise InvalidRequestError(
                    "another variant is in use than when these steps were asked for; ask again"
                )
            if self.prompt_encoder.version != version:
                positive, negative, _ = self._encode(job, doubled=doubled)
            parameters.extend(infotexts_of(job, self.bundle.manifest, self.adapters.loras.values()))
            return (yield from self._run(job, positive, negative, watched=watched))

        def finish(latents: Tensor) -> Result:
            check_latents(latents)
            images, nsfw = self._images(job, latents)
            return Result(
                images=images,
                nsfw=nsfw,
                seeds=list(job.seeds),
                parameters=parameters,
                truncations=truncations,
                is_latent=request.output_type == "latent",
                chunks=chunks,
            )

        steps = self.calls.over(self.stream.over(run()))
        return Generation(job.plan.steps, steps, self.calls.function(self.stream.calling(finish)))

    def _resolved(self, request: Request) -> Job:
        unet = self._unet
        job = resolve(request, self.bundle.manifest, unet.spec, self.noise_schedule, unet.device)
        # Its own functions run outside of the call.
        image_filter, plan = job.request.image_filter, job.plan
        if image_filter is not None:
            own = replace(job.request, image_filter=self.calls.users(image_filter))
            job = replace(job, request=own)
        if isinstance(plan, ForeignPlan):
            job = replace(job, plan=replace(plan, function=self.calls.users(plan.function)))
        return job

    def _images(self, job: Job, latents: Tensor) -> tuple[Images, list[bool] | None]:
        """What a job's last latents become, and which images were blacked out."""
        output_type = job.request.output_type
        if output_type == "latent":
            return latents, None
        pixels = self.vae.decoder(latents)
        if job.init_image is not None:
            pixels = job.init_image.paste(pixels)
        pixels, nsfw = check_images(pixels, self.safety_checker, job.request.image_filter)
        return to_images(pixels, output_type), nsfw

    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        images_per_prompt: int = 1,
        clip_skip: int | None = None,
        prompt_weighting: WeightingMode = "none",
        comma_backtrack: int = COMMA_BACKTRACK,
    ) -> tuple[Conditioning, Conditioning]:
        """What the UNet is told of prompts, to be changed, kept, and passed back.

            positive, negative = pipe.encode_prompt("a red circle", "blurry")
            pipe(prompt_embeds=positive, negative_prompt_embeds=negative)

        Arguments, errors and warnings are those of :meth:`__call__`.

        Returns:
            Positive and negative conditioning of ``len(prompt) * images_per_prompt`` images,
            equally long.
        """
        request = Request(
            prompt=prompt,
            negative_prompt=negative_prompt,
            prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2,
            images_per_prompt=images_per_prompt,
            clip_skip=clip_skip,
            prompt_weighting=prompt_weighting,
            comma_backtrack=comma_backtrack,
        )
        with self.calls.one():
            job = self._resolved(request)
            positive, negative, truncations = self._encode(job, doubled=True)
        assert negative is not None  # there is a second half
        for truncation in truncations:
            warnings.warn(str(truncation), TruncationWarning, stacklevel=2)
        for hint in self._hints(job):
            warnings.warn(hint, stacklevel=2)
        return positive, negative

    def _hints(self, job: Job) -> list[PromptSyntaxWarning]:
        columns = (*job.prompts, *(job.negatives or ()))
        return self.prompt_encoder.hints(chain.from_iterable(columns), job.weighting)

    def _encode(
        self, job: Job, *, doubled: bool
    ) -> tuple[Conditioning, Conditioning | None, tuple[Truncation, ...]]:
        """Positive and negative conditioning, equally long; no negative where there is no second
        half."""
        with self.stream.active():
            return self._encode_here(job, doubled=doubled)

    def _encode_here(
        self, job: Job, *, doubled: bool
    ) -> tuple[Conditioning, Conditioning | None, tuple[Truncation, ...]]:
        device = self._unet.device
        truncations: tuple[Truncation, ...] = ()
        if job.positive is not None:
            positive = job.positive.to(device)
        else:
            positive, truncations = self.prompt_encoder.encode(
                job.prompts, job.clip_skip, job.weighting
            )
        if not doubled:
            return positive, None, truncations
        if job.negative is not None:
            negative = job.negative.to(device)
        elif job.negatives is None:
            negative = zeros_like(positive)
        else:
            negative, others = self.prompt_encoder.encode(job.negatives, weighting=job.weighting)
            truncations = tuple(dict.fromkeys(truncations + others))
        length = max(positive.length, negative.length)
        positive = self.prompt_encoder.pad(positive, length, job.clip_skip)
        return positive, self.prompt_encoder.pad(negative, length), truncations

    def _run(
        self, job: Job, positive: Conditioning, negative: Conditioning | None, *, watched: bool
    ) -> Generator[PreviewStep, None, Tensor]:
        """Sample, step by step; the latents of the last are the result."""
        decode = self.calls.function(self.stream.calling(self.vae.decoder))
        preview = self.calls.function(self.previewer)
        run = prepare(
            job,
            positive,
            negative,
            manifest=self.bundle.manifest,
            unet=self._unet,
            encode=self.vae.encode,
            image_prompts=self.adapters.image_prompts,
        )
        for step in self.denoising.sample(run, watched=watched):
            yield PreviewStep(
                step.index,
                step.sigma,
                step.sigma_next,
                step.latents,
                step.denoised,
                preview,
                decode,
            )
        return step.latents.clone()  # others may use the buffers before this is decoded


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
