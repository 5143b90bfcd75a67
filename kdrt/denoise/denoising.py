"""From a job and its conditioning to latents: the denoiser of its size, and who runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdrt.adapters.ip_adapter import ImagePrompts
from kdrt.bundle import Manifest
from kdrt.common.lru import LruCache
from kdrt.denoise.cuda_graphs import CudaGraphLevel, CudaGraphRunner, capture_on
from kdrt.denoise.denoiser import Denoiser
from kdrt.denoise.inpaint import (
    Encode,
    InitImage,
    KnownRegionOfDenoiser,
    Told,
    begin,
    is_inpainting,
)
from kdrt.prompt import Conditioning
from kdrt.request.request import Job, latent_shape, noise_of
from kdrt.sampling import (
    AdaptivePlan,
    ForeignPlan,
    NoiseSchedule,
    RunNoise,
    SeededNoise,
    Step,
    run_adaptive,
    run_foreign,
)
from kdrt_engines import Engine
from kdrt_engines.cuda_graphs import CudaGraphCache

_DENOISERS = 4
"""Sizes whose buffers are kept: enough for a service that alternates, little enough to fit."""


class Denoising:
    """What samples the jobs of a pipeline. Buffers of a size are kept for the next job of it.

    Attributes:
        graphs: what was captured, for all sizes together.

    Args:
        manifest: of the bundle.
        unet: the engine.
        noise_schedule: the training table.
        encode: the VAE's encoder, for images to begin with.
        image_prompts: makes an IP-Adapter's tokens.
        shallow: gives the shallow UNet, asked when it is first needed.
        cuda_graph: how much to capture.
        stream: to capture on; None on a CPU.
    """

    def __init__(
        self,
        manifest: Manifest,
        unet: Engine,
        noise_schedule: NoiseSchedule,
        encode: Encode,
        image_prompts: ImagePrompts,
        *,
        shallow: Callable[[], Engine],
        cuda_graph: CudaGraphLevel,
        stream: torch.cuda.Stream | None,
    ) -> None:
        self._manifest = manifest
        self._unet = unet
        self._noise_schedule = noise_schedule
        self._encode = encode
        self._image_prompts = image_prompts
        self._shallow = shallow
        self._cuda_graph = cuda_graph
        self._stream = stream
        self.graphs = CudaGraphCache()
        self._denoisers: LruCache[tuple[int, int, int, int, bool], _Sized] = LruCache(
            _DENOISERS, on_evict=_Sized.close
        )

    def use(self, unet: Engine) -> None:
        """Go on with another UNet."""
        self._unet = unet
        self.clear()

    def clear(self) -> None:
        """Let go of the buffers and captured runs of every size."""
        self._denoisers.clear()

    def sample(
        self, job: Job, positive: Conditioning, negative: Conditioning | None, *, watched: bool
    ) -> Iterator[Step]:
        """Sample a job, step by step.

        Args:
            job: what to make.
            positive: conditioning of its images.
            negative: that of the unconditional half; None where there is none.
            watched: whether every step is wanted, or only the last.
        """
        shape = latent_shape(self._manifest, job.height, job.width)
        noise = noise_of(job, shape)
        latents = noise.latents().to(self._unet.device)
        if job.latents is not None:
            latents.copy_(job.latents.detach())
        if not job.continues:
            latents.mul_(job.plan.sigmas[0])
        if isinstance(job.plan, AdaptivePlan):
            return self._sample_adaptively(job.plan, job, positive, negative, latents, noise)
        latents, told = self._begin(job.init_image, latents)
        image_tokens = self._image_tokens(job, doubled=negative is not None)
        sized = self._prepared(job, positive, negative, image_tokens)
        denoise = told.tell(sized.denoiser)
        if isinstance(job.plan, ForeignPlan):
            return run_foreign(
                job.plan, latents, denoise, noise, self._noise_schedule, seed=job.seeds[0]
            )
        drawn = noise.draw(job.plan.slots).to(latents.device)
        return sized.runner(denoise).run(job.plan, latents, drawn, watched=watched)

    def _begin(self, image: InitImage | None, latents: Tensor) -> tuple[Tensor, Told]:
        return begin(
            image,
            latents,
            self._encode,
            scale=self._manifest.latents.scale,
            inpaints=is_inpainting(self._unet.spec),
        )

    def _sample_adaptively(
        self,
        plan: AdaptivePlan,
        job: Job,
        positive: Conditioning,
        negative: Conditioning | None,
        latents: Tensor,
        noise: RunNoise,
    ) -> Iterator[Step]:
        """Image by image: the step size of one must not depend on its neighbours."""
        latents, told = self._begin(job.init_image, latents)
        assert isinstance(noise, SeededNoise)  # the request refuses every other kind
        image_tokens = self._image_tokens(job, doubled=negative is not None)
        return run_adaptive(
            plan,
            latents,
            lambda image: told.tell(
                self._prepared(job, positive, negative, image_tokens, only=image).denoiser, image
            ),
            noise.another,
        )

    def _prepared(
        self,
        job: Job,
        positive: Conditioning,
        negative: Conditioning | None,
        image_tokens: Tensor | None,
        only: int | None = None,
    ) -> _Sized:
        """The denoiser of a job, for all of its images or ``only`` one."""
        doubled = negative is not None
        if only is not None:
            positive = positive.one(only)
            negative = None if negative is None else negative.one(only)
            image_tokens = None if image_tokens is None else image_tokens[only :: len(job.seeds)]
        images, tokens, _ = positive.encoder_hidden_states.shape
        _, height, width = latent_shape(self._manifest, job.height, job.width)
        sized = self._denoiser(
            images=images, height=height, width=width, tokens=tokens, doubled=doubled
        )
        sized.denoiser.prepare(
            positive,
            negative,
            guidance_scale=job.guidance_scale,
            guidance_rescale=job.guidance_rescale,
            time_ids=_time_ids(job, images, doubled=doubled),
            freeu=job.freeu,
            unconditional=job.plan.needs_unconditional,
            shortcuts=job.shortcuts,
        )
        sized.denoiser.prepare_image_prompt(image_tokens, job.ip_adapter_scale)
        return sized

    def _image_tokens(self, job: Job, *, doubled: bool) -> Tensor | None:
        if job.ip_adapter_image is None and job.ip_adapter_image_embeds is None:
            return None
        return self._image_prompts.encode(
            job.ip_adapter_image,
            job.ip_adapter_image_embeds,
            len(job.seeds),
            doubled=doubled,
        )

    def _denoiser(
        self, *, images: int, height: int, width: int, tokens: int, doubled: bool
    ) -> _Sized:
        facts = self._manifest.scheduler

        def make() -> _Sized:
            denoiser = Denoiser(
                self._unet,
                self._noise_schedule,
                facts.prediction_type,
                sigma_data=facts.edm.sigma_data if facts.edm else None,
                images=images,
                height=height,
                width=width,
                tokens=tokens,
                doubled=doubled,
                shallow=self._shallow,
            )
            return _Sized(denoiser, self._runner)

        return self._denoisers.get((images, height, width, tokens, doubled), make)

    def _runner(self, denoise: Denoiser | KnownRegionOfDenoiser) -> CudaGraphRunner:
        capture = None
        if self._stream is not None and self._unet.capturable:
            capture = capture_on(self._stream)
        return CudaGraphRunner(denoise, self._cuda_graph, self.graphs, capture)


class _Sized:
    """What is kept for one size of images: the denoiser, its captured runs, and those of the
    denoiser that knows a region, as inpainting needs it."""

    def __init__(
        self,
        denoiser: Denoiser,
        make: Callable[[Denoiser | KnownRegionOfDenoiser], CudaGraphRunner],
    ) -> None:
        self.denoiser = denoiser
        self._make = make
        self._whole = make(denoiser)
        self._partial: tuple[KnownRegionOfDenoiser, CudaGraphRunner] | None = None

    def runner(self, denoise: Denoiser | KnownRegionOfDenoiser) -> CudaGraphRunner:
        """What runs ``denoise``: the denoiser, or a new region around it."""
        if not isinstance(denoise, KnownRegionOfDenoiser):
            return self._whole
        if self._partial is None:
            self._partial = denoise, self._make(denoise)
        else:
            self._partial[0].take(denoise)
        return self._partial[1]

    def close(self) -> None:
        """Let go of the captured graphs."""
        self._whole.close()
        if self._partial is not None:
            self._partial[1].close()


def _time_ids(job: Job, images: int, *, doubled: bool) -> Tensor | None:
    """Size conditioning of the whole batch, ``[B, 6]`` (the refiner's ``[B, 5]``): the negative
    half first, as everywhere."""
    if job.time_ids is None or job.negative_time_ids is None:
        return None
    halves = [job.negative_time_ids, job.time_ids] if doubled else [job.time_ids]
    return torch.tensor([ids for ids in halves for _ in range(images)], dtype=torch.float32)
