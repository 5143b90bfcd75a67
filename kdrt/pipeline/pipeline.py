"""Text to image: the one object a user holds."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Unpack, cast

import torch
from torch import Tensor

from kdrt.adapters.variants import ComponentLoader
from kdrt.bundle import Bundle
from kdrt.bundle.components import SHALLOW_UNET
from kdrt.common.literals import OutputType
from kdrt.common.streams import OwnStream
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import check_bool, check_callable
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.denoising import Denoising
from kdrt.denoise.graph_level import CudaGraphLevel, cuda_graph_level
from kdrt.denoise.inputs import SamplingRun
from kdrt.denoise.parts import Parts
from kdrt.denoise.scaling import Scaling
from kdrt.errors import InvalidRequestError
from kdrt.images.output import Images, to_images
from kdrt.images.safety import SafetyChecker, check_images
from kdrt.pipeline.adapters import Adapters
from kdrt.pipeline.calls import Calls
from kdrt.pipeline.encoding import EncodedPrompts, encode_prompts
from kdrt.pipeline.memory_check import MemoryCheck
from kdrt.pipeline.metadata import Settings, infotexts_of
from kdrt.pipeline.prepare import prepare
from kdrt.pipeline.progress import progress_bar
from kdrt.pipeline.result import Generation, Result
from kdrt.pipeline.second_pass import begin_second_pass, check_second_pass, needs_pixels
from kdrt.pipeline.service import Service
from kdrt.pipeline.signatures import Callback, Calling
from kdrt.prompt import Conditioning, PromptEncoder
from kdrt.request.complete import check_names, complete
from kdrt.request.fields import PromptFields, Prompts, Request
from kdrt.request.grid import training_table
from kdrt.request.job import Job, unet_rows, with_users_functions
from kdrt.request.prompts import resolve_prompts
from kdrt.request.resolve import resolve
from kdrt.request.signature import takes_fields
from kdrt.request.unet_features import unet_features
from kdrt.vae.coder import Decoder, check_latents
from kdrt.vae.preview import Previewer, PreviewStep, with_previews
from kdrt.vae.vae import Vae
from kdrt_engines import Engine

if TYPE_CHECKING:
    from kdrt.backends.offload import Offloader


class Pipeline(Calling, Service):
    """Text to image with one model.

    The pipeline makes buffers when a size is first requested, and reuses them for later images of
    that size. Calls therefore take turns. A call from another thread waits until the running call
    ends; a call from within a callback or the steps of a generation is refused. A pipeline works
    only in the process that loaded it, not in processes forked from that one.

    Attributes:
        adapters: LoRAs, textual inversions, variants and image prompts; see
            :class:`kdrt.pipeline.adapters.Adapters`.
        vae: the encoder and decoder of the VAE, and its switches for slices and tiles.
        engines: the engines in use, by component.
        prompt_encoder: tokenizers and text encoders.
        denoising: samples the runs that `kdrt.pipeline.prepare` makes.
        noise_schedule: σ of the training timesteps.
        memory_check: refuses images that no memory is enough for.
        offloader: loads the engines one after another; None if all of them stay loaded.
        safety_checker: blacks out the images it flags. None if the bundle has none; set it to None
            to turn it off. It does not check latents or the previews of a callback.

    Args:
        bundle: the model's facts, tokenizers and token embeddings.
        engines: by component: ``unet``, every text encoder, ``vae_decoder``.
        load_component: loads a further component; without it there are no variants.
        cuda_graph: see :func:`kdrt.load`.
        offloader: of the engines, if they are loaded one after another.

    Raises:
        InvalidRequestError: this CUDA graph level is not possible on this device.
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
        # Not a copy: that would load every lazy engine.
        self.engines = ChainMap[str, Engine]({}, engines)  # type: ignore[arg-type]
        self._unet = engines["unet"]
        self.cuda_graph = cuda_graph_level(cuda_graph, self._unet)
        self.cuda_stream = OwnStream(self._unet.device, self._unet.stream)
        self.noise_schedule = training_table(bundle.manifest.scheduler)
        self.prompt_encoder = PromptEncoder(bundle, engines)
        self.vae = Vae(
            self.engines, bundle.manifest.latents, self.calls.nested, self.calls.exclusive
        )
        self.memory_check = MemoryCheck(bundle, self.vae, self._unet.device)
        self.previewer = Previewer(bundle.manifest.latents, engines.get("preview_decoder"))
        self.safety_checker: SafetyChecker | None = None
        if "safety_checker" in engines:
            self.safety_checker = SafetyChecker(engines["safety_checker"], self.calls.exclusive)
        self.adapters = Adapters(
            bundle,
            self.engines,
            self.prompt_encoder,
            self.calls,
            load_component,
            self.replace_engines,
        )
        scheduler = bundle.manifest.scheduler
        sigma_data = scheduler.edm.sigma_data if scheduler.edm else None
        scaling = Scaling(scheduler.prediction_type, self.noise_schedule, sigma_data)
        self.denoising = Denoising(
            self._unet,
            scaling,
            shallow=lambda: self.engines[SHALLOW_UNET],
            control=self.engines.__getitem__,
            cuda_graph=self.cuda_graph,
            stream=self.cuda_stream.stream,
        )
        self.offloader = offloader
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
        self.adapters.release()
        self.prompt_encoder.release()
        self.denoising.clear()
        self._release_vae()
        torch.cuda.empty_cache()

    def replace_engines(self, engines: Mapping[str, Engine]) -> None:
        """Use other engines from now on, by component. The buffers and captured CUDA graphs of the
        old engines are dropped. Pass an engine again if its weights have changed in place."""
        self.engines.update(engines)
        self.prompt_encoder.use(engines)
        if "unet" in engines:
            self._unet = engines["unet"]
        if "unet" in engines or SHALLOW_UNET in engines:
            self.denoising.use(self._unet)
        self.vae.use(engines)

    def generate(
        self,
        request: Request,
        *,
        output_type: OutputType = "pil",
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Result[Any]:
        check_names(request)
        progress = check_bool("progress", progress)
        if callback is not None:
            check_callable("callback", callback)
            callback = self.calls.callback(callback)
        with self.calls.exclusive():
            generation = self._stream(
                request, output_type, watched=progress or callback is not None
            )
            shown = progress_bar(len(generation)) if progress else nullcontext()
            # Closed at once: a caller who keeps an exception of the callback keeps this frame.
            with closing(generation), shown as advance:
                for step in generation:
                    if callback is not None:
                        callback(step)
                    if advance is not None:
                        advance()
                return generation.result()

    def _stream(
        self, request: Request, output_type: OutputType, *, watched: bool = True
    ) -> Generation[Any]:
        """Resolve and encode now; sample when steps are asked for, and decode after the last.

        Not ``watched``, the last step may be the only one.
        """
        with self.calls.exclusive():
            job = self.resolve(request, output_type)
            self.adapters.use_unet(job.unet_features)
            encoded = self.encode(job)
        encoded.warn()
        unet = self._unet.spec
        lora_settings: Settings = ()

        def sample() -> Generator[PreviewStep, None, Tensor]:
            nonlocal lora_settings
            self.adapters.use_unet(job.unet_features)  # other calls may have come in between
            if self._unet.spec != unet:
                raise InvalidRequestError(
                    "another variant is in use than when these steps were asked for; ask again"
                )
            # What has changed since counts: LoRAs, learned tokens.
            current = (
                encoded if self.prompt_encoder.version == encoded.version else self.encode(job)
            )
            lora_settings = self.adapters.lora_settings
            preview = self.calls.nested_function(self.previewer)
            decoder = self.calls.nested_function(self.cuda_stream.calling(self.vae.decoder))
            steps = self.denoising.sample(self.prepare(job, current), watched=watched)
            latents = yield from with_previews(steps, preview, decoder)
            if job.second is None:
                return latents
            second = begin_second_pass(job.second, latents, self.vae, self.engines.__getitem__)
            steps = self.denoising.sample(self.prepare(second, current), watched=watched)
            return (yield from with_previews(steps, preview, decoder, taken=job.plan.steps))

        def decode(latents: Tensor) -> Result[Any]:
            return self.finish(job, encoded, latents, lora_settings)

        steps = self.calls.exclusive_steps(self.cuda_stream.over(sample()))
        finish = self.calls.nested_function(self.cuda_stream.calling(decode))
        return Generation(job.steps, steps, finish)

    def resolve(self, request: Request, output_type: OutputType) -> Job:
        """The job of a request: the first part of a call. The user's functions in it run outside
        the call. Before its images are made, call :meth:`Adapters.use_unet` with its features."""
        unet = self.adapters.unet_spec(unet_features(request))
        job = resolve(
            request,
            self.bundle.manifest,
            unet,
            self.noise_schedule,
            self._unet.device,
            output_type,
        )
        self.memory_check.check_job(job, unet, decoded=output_type != "latent")
        if job.second is not None:
            second = job.second.job
            if needs_pixels(job.second):
                self.vae.check_encoder()
            decoded = needs_pixels(job.second) or output_type != "latent"
            self.memory_check.check_job(second, unet, decoded=decoded)
            if job.second.model is not None:
                scale = job.second.model.scale
                self.memory_check.check_enlarged(scale * job.height, scale * job.width)
        return with_users_functions(job, self.calls.user_function)

    def encode(self, job: Job) -> EncodedPrompts:
        """Encode the prompts of a job for the UNet: the second part of a call."""
        with self.cuda_stream.active():
            return encode_prompts(
                self.prompt_encoder, job, self._unet.device, doubled=self.is_doubled(job)
            )

    def is_doubled(self, job: Job) -> bool:
        """Whether the images of a job have an unconditional half."""
        unconditional = job.plan.needs_unconditional
        return is_doubled(self._unet.spec, job.guidance_scale, asked=unconditional)

    def parts_of(self, job: Job) -> Parts:
        """The rows of the UNet's batch that an image of a job takes."""
        return Parts(
            unconditional=self.is_doubled(job),
            regions=len(job.region_prompts),
            perturbed=job.perturbed_attention is not None,
        )

    def prepare(self, job: Job, encoded: EncodedPrompts) -> SamplingRun:
        """The sampling run of a job: the third part of a call.

        Raises:
            ShapeError: the UNet was not made for the size of the second pass.
        """
        if job.second is not None:
            check_second_pass(job.second, self._unet, encoded.positive.length)
        return prepare(
            job,
            encoded.positive,
            encoded.negative,
            encoded.regions,
            manifest=self.bundle.manifest,
            unet=self._unet,
            encode=self.vae.encode,
            image_prompts=lambda: self.adapters.image_prompts,
            load=self.engines.__getitem__,
        )

    def finish(
        self,
        job: Job,
        encoded: EncodedPrompts,
        latents: Tensor,
        lora_settings: Settings,
        *,
        decoder: Decoder | None = None,
        safety_checker: SafetyChecker | None = None,
        in_flight: bool = False,
    ) -> Result[Any]:
        """The images of a job: the last part of a call.

        Args:
            job: what was sampled.
            encoded: its prompts.
            latents: ``[B, C, h, w]``, from its last step.
            lora_settings: what the infotext says about the LoRAs in use.
            decoder: decodes instead of :attr:`vae`.
            safety_checker: checks instead of :attr:`safety_checker`.
            in_flight: see :attr:`Result.in_flight`.
        """
        images, nsfw = self._images(
            job, latents, decoder or self.vae.decoder, safety_checker or self.safety_checker
        )
        return Result(
            images=images,
            seeds=list(job.seeds),
            truncations=encoded.truncations,
            is_latent=job.output_type == "latent",
            chunks=encoded.chunks,
            nsfw=nsfw,
            in_flight=in_flight,
            unet_rows=unet_rows(job, self.parts_of(job)),
            make_infotexts=partial(infotexts_of, job.snapshot, lora_settings),
        )

    def _images(
        self,
        job: Job,
        latents: Tensor,
        decoder: Callable[[Tensor], Tensor],
        safety_checker: SafetyChecker | None,
    ) -> tuple[Images, list[bool] | None]:
        """The images of a job's last latents, and which were blacked out."""
        check_latents(latents)
        if job.output_type == "latent":
            return latents, None
        pixels = decoder(latents)
        if job.init_image is not None:
            pixels = job.init_image.paste(pixels)
        nsfw = None
        if safety_checker is not None or job.image_filter is not None:
            pixels, nsfw = check_images(pixels, safety_checker, job.image_filter)
        return to_images(pixels, job.output_type), nsfw

    @takes_fields(Prompts, PromptFields)
    def encode_prompt(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        **fields: Unpack[PromptFields],
    ) -> tuple[Conditioning, Conditioning]:
        """Encode prompts for the UNet, to change them, keep them, or pass them back.

            positive, negative = pipe.encode_prompt("a red circle", "blurry")
            pipe(prompt_embeds=positive, negative_prompt_embeds=negative)

        Args:
            {fields}

        Returns:
            Positive and negative conditioning for ``len(prompt) * images_per_prompt`` images,
            equally long.

        Raises:
            InvalidRequestError: a field is wrong.

        Warns:
            TruncationWarning: a prompt is too long.
        """
        given = {**fields, "prompt": prompt, "negative_prompt": negative_prompt}
        with self.calls.exclusive():
            request = complete(cast(Request, given))
            job = resolve_prompts(request, self.bundle.manifest, self._unet.spec)
            job = job.repeated(request["images_per_prompt"])
            with self.cuda_stream.active():
                encoded = encode_prompts(self.prompt_encoder, job, self._unet.device, doubled=True)
        encoded.warn()
        assert encoded.negative is not None  # there is a second half
        return encoded.positive, encoded.negative
