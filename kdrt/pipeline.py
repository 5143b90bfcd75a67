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

from kdrt.adapters.ip_adapter import VARIANT as IP_ADAPTER
from kdrt.adapters.ip_adapter import ImagePrompts, Pictures
from kdrt.adapters.lora import Changed, Lora, LoraStack, LoraSwap, Scale
from kdrt.adapters.lora_file import LoraFile
from kdrt.bundle import Bundle, open_bundle
from kdrt.denoiser import Denoiser, is_doubled
from kdrt.engine_store import load_engine, load_engines
from kdrt.errors import InvalidRequest
from kdrt.images import Images, OutputType, save_image, to_images
from kdrt.latents import Decoder, check_latents
from kdrt.parameters import Parameters, parameters_of
from kdrt.prompt import Conditioning, PromptEncoder, Truncation, TruncationWarning, zeros_like
from kdrt.recent import Recent
from kdrt.request import Job, Request, latent_shape, resolve
from kdrt.sampling import NoiseSchedule, SeededNoise, Step, run
from kdrt.size_conditioning import Size, SizeConditioning
from kdrt.variants import ComponentLoader, Variants
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
    """

    images: Images
    seeds: list[int]
    parameters: list[Parameters]
    truncations: tuple[Truncation, ...] = ()
    is_latent: bool = False

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
    return Pipeline(
        bundle,
        load_engines(bundle, engine, threads=threads),
        lambda component: load_engine(bundle, component, engine, threads=threads),
    )


class Pipeline:
    """Text to image with one model.

    Buffers are made for a size when it is first asked for and used again for the next pictures of
    that size, so a pipeline is not for several threads at once.

    Args:
        bundle: the model's facts, tokenizers and token embeddings.
        engines: by component: ``unet``, every text encoder, ``vae_decoder``.
        load_component: loads one more; without it there are no variants.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        load_component: ComponentLoader | None = None,
    ) -> None:
        self.bundle = bundle
        self.engines = dict(engines)
        self._unet = engines["unet"]
        facts = bundle.manifest.scheduler
        self._noise_schedule = NoiseSchedule.from_betas(
            facts.beta_start,
            facts.beta_end,
            facts.beta_schedule,
            facts.num_train_timesteps,
            facts.trained_betas,
        )
        self._prompts = PromptEncoder(bundle, engines)
        self._decoder = Decoder(engines["vae_decoder"])
        self._denoisers: Recent[tuple[int, int, int, int, bool], Denoiser] = Recent(_DENOISERS)
        self._loras = LoraStack(bundle)
        self._variants = Variants(bundle.manifest, load_component)
        self._image_prompts = ImagePrompts(bundle.manifest, load_component)

    @property
    def loras(self) -> dict[str, Lora]:
        """Every loaded LoRA by name, those at scale 0 too."""
        return self._loras.loras

    def load_lora(
        self,
        path: str | os.PathLike[str] | LoraFile,
        name: str | None = None,
        scale: Scale = 1.0,
        *,
        allow_pickle: bool = False,
    ) -> LoraSwap:
        """Add a LoRA to the weights of the running engines.

        Args:
            path: a file in kohya's, diffusers' or peft's format, or one that was read before.
            name: for :meth:`set_loras`; None is the file's name without its suffix.
            scale: how strong it is; below 0 and above 1 too. A mapping gives ``unet``,
                ``text_encoder`` and ``text_encoder_2`` each their own.
            allow_pickle: read ``.pt`` and ``.bin`` files; only tensors are loaded.

        Raises:
            InvalidRequest: it is no LoRA, or for another model, or the name is taken.
            EngineError: the weights of this engine are fixed; the message says what to export.

        Warns:
            AdapterWarning: some of its layers do not exist in this model.
        """
        source = path if isinstance(path, LoraFile) else Path(path)
        return self._swap(
            self._loras.load(self.engines, source, name, scale, allow_pickle=allow_pickle)
        )

    def set_loras(self, scales: Mapping[str, Scale]) -> LoraSwap:
        """Use exactly these of the loaded LoRAs, at these scales; the others stay loaded, off.

        Raises:
            InvalidRequest: a name is not loaded, or a scale is no finite number.
        """
        return self._swap(self._loras.set(self.engines, scales))

    def unload_loras(self, *names: str) -> LoraSwap:
        """Forget these LoRAs, or all of them: then the weights are the bundle's, bit for bit.

        Raises:
            InvalidRequest: a name is not loaded.
        """
        return self._swap(self._loras.unload(self.engines, names or tuple(self.loras)))

    def use_variant(self, name: str | None, parts: Sequence[str] | None = None) -> None:
        """Compute another way from now on; LoRAs stay as they are.

        Args:
            name: one of ``bundle.manifest.variants``; None is what was exported without a name.
            parts: the components to change (``unet``, ``vae_decoder``, …); None is all.

        Raises:
            InvalidRequest: the bundle has no such variant; the message says what to export.
        """
        components = self._variants.choose(name, parts)
        engines = self._variants.load(components, self.engines)
        with_loras, _ = self._loras.move(components, self.engines | engines)
        self._variants.chosen(components)
        self._use(engines | with_loras)

    def _swap(self, change: Changed) -> LoraSwap:
        engines, swap = change
        self._use(engines)
        return swap

    def _use(self, engines: Mapping[str, Engine]) -> None:
        """Go on with other engines, by component, and without what was made with the old ones."""
        self.engines |= engines
        self._prompts.use(engines)
        if "unet" in engines:
            self._unet = engines["unet"]
            self._denoisers.clear()
        if "vae_decoder" in engines:
            self._decoder = Decoder(engines["vae_decoder"])

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
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        latents: Tensor | None = None,
        clip_skip: int | None = None,
        freeu: tuple[float, float, float, float] | None = None,
        ip_adapter_image: Pictures | None = None,
        ip_adapter_image_embeds: Tensor | None = None,
        ip_adapter_scale: float = 1.0,
        original_size: Size | None = None,
        crops_coords_top_left: Size = (0, 0),
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size = (0, 0),
        negative_target_size: Size | None = None,
        output_type: OutputType = "pil",
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
            schedule: one of ``kdrt.sampling.SCHEDULES``.
            sampler_options: the sampler's own: ``eta``, ``s_churn``, …
            sigmas: a descending grid of your own, in place of ``steps`` and ``schedule``.
            guidance_scale: w of classifier-free guidance; at 1 and below there is none, and half
                of the work is saved. None is the model's default.
            guidance_rescale: from 0 to 1, against over-exposure at high guidance (Lin et al.
                2023).
            images_per_prompt: pictures of each prompt; they follow each other.
            seed: s gives the pictures s, s + 1, …; a list gives each its own; None draws. A
                picture depends on its seed, not on its place or its company.
            latents: unit-variance noise ``[B, C, h, w]`` in place of the seeds' own.
            clip_skip: take the text encoders' hidden state that many layers earlier. The
                negative prompt keeps the usual one.
            freeu: (b1, b2, s1, s2), for bundles exported with it.
            ip_adapter_image: PIL images as prompts, one for all or one a prompt; for bundles
                exported with an IP-Adapter, whose variant is then used from here on.
            ip_adapter_image_embeds: in their place what the image encoder makes of them,
                ``[n, P]``.
            ip_adapter_scale: how much they count; 0 is exactly off.
            original_size: SDXL: see :class:`kdrt.size_conditioning.SizeConditioning`, also for
                the other sizes and crops, all as (height, width) or (top, left).
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``; see :class:`Result`.
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
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            images_per_prompt=images_per_prompt,
            seed=seed,
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
            output_type=output_type,
        )
        if request.has_image_prompt and not self._unet.spec.has_input("ip_scale"):
            self.use_variant(IP_ADAPTER, ["unet"])
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
        is_latent = output_type == "latent"
        return Result(
            images=final if is_latent else to_images(self._decoder(final), output_type),
            seeds=list(job.seeds),
            parameters=parameters_of(job, self.bundle.manifest, self.loras.values()),
            truncations=truncations,
            is_latent=is_latent,
        )

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
        denoiser.prepare_image_prompt(
            self._image_tokens(job, doubled=negative is not None), job.request.ip_adapter_scale
        )
        noise = SeededNoise(job.seeds, (channels, height, width), self._unet.device)
        latents = noise.latents()
        if job.request.latents is not None:
            latents.copy_(job.request.latents)
        latents.mul_(job.plan.sigmas[0])
        yield from run(job.plan, latents, denoiser, noise.draw(job.plan.slots))

    def _image_tokens(self, job: Job, *, doubled: bool) -> Tensor | None:
        request = job.request
        if not request.has_image_prompt:
            return None
        return self._image_prompts.encode(
            request.ip_adapter_image,
            request.ip_adapter_image_embeds,
            len(job.seeds),
            doubled=doubled,
        )

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
    """Size conditioning of the whole batch, ``[B, 6]``: the negative half first, as everywhere."""
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
