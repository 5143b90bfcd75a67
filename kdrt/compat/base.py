"""What both drop-in classes are made of: construction, sampling, and what a call shares."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdrt.common.streams import on_own_stream
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import (
    MAX_SIDE,
    MAX_STEPS,
    check_callable,
    check_dense,
    check_int,
    check_number,
)
from kdrt.compat.absent import AbsentMethods
from kdrt.compat.conditions import Conditions
from kdrt.compat.exact import ExactDenoiser, exact_sampler, run_exact
from kdrt.compat.grid import TrainingTable, default_schedule, karras_grid
from kdrt.compat.image_processor import VaeImageProcessor
from kdrt.compat.loading import LoadingMixin
from kdrt.compat.moving import as_device, asked_for
from kdrt.compat.native import run_native
from kdrt.compat.noise import Generators, initial_noise, noise_seeds
from kdrt.compat.parts import PartsMixin
from kdrt.compat.progress import ProgressBar
from kdrt.compat.scheduler_view import SchedulerView
from kdrt.compat.switches import MemorySwitches
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.freeu import FREEU_OFF
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline, load
from kdrt.prompt import Conditioning, Truncation, TruncationWarning
from kdrt.prompt.given import checked_embeddings
from kdrt.request.memory import check_request_fits
from kdrt.sampling import SAMPLERS
from kdrt.vae.coder import check_latents
from kdrt_engines.spec import DTYPES

Callback = Callable[[int, float, Tensor], object]

DEFAULT_SAMPLER = "dpmpp_2m"
"""The originals had none, and failed where none was set."""


class KDiffusionPipeline(LoadingMixin, PartsMixin, MemorySwitches, AbsentMethods):
    """A :class:`kdrt.Pipeline` that is called like one of the removed pipelines.

    Attributes:
        pipeline: what does the work.
        exact: whether k-diffusion's own functions sample, unless a call says otherwise.
        vae_scale_factor: pixels for one latent.
        scheduler: the noise schedule, a :class:`kdrt.compat.scheduler_view.SchedulerView`. One of
            diffusers' own, such as EulerDiscreteScheduler, may be assigned: its sigmas are then
            the default grid.
        image_processor: turns the VAE's pixels into images.
    """

    family: ClassVar[Literal["sd", "sdxl"]]

    @in_neutral_modes
    def __init__(
        self,
        pipeline: Pipeline | None = None,
        *,
        engine: str | None = None,
        exact: bool = False,
        **components: Any,
    ) -> None:
        if not isinstance(pipeline, Pipeline) or components:
            raise InvalidRequestError(
                f"{type(self).__name__} is made by from_pretrained(model), or of a kdrt.Pipeline, "
                "and not of components, which are part of an export; to share the networks of "
                "another pipeline use from_pipe(pipe)"
            )
        manifest = pipeline.bundle.manifest
        if manifest.family != self.family:
            other = {
                "sd": "StableDiffusionKDiffusionPipeline",
                "sdxl": "StableDiffusionXLKDiffusionPipeline",
            }
            raise InvalidRequestError(
                f"'{manifest.name}' is a model of the family {manifest.family}: use "
                f"{other[manifest.family]}"
            )
        facts = manifest.scheduler
        if facts.edm is not None or facts.prediction_type == "sample":
            trained = "in the EDM formulation" if facts.edm else "to predict the image itself"
            raise InvalidRequestError(
                f"'{manifest.name}' was trained {trained}, and the removed pipelines knew models "
                "of discrete timesteps that predict noise or velocity alone: use kdrt.load"
            )
        self.pipeline = pipeline
        self.exact = exact
        self.vae_scale_factor = manifest.latents.scale
        self.image_processor = VaeImageProcessor(
            self.vae_scale_factor, vae_latent_channels=manifest.latents.channels
        )
        self._engine = engine
        self._exact_table = TrainingTable.from_facts(manifest.scheduler)
        self._native_table = TrainingTable.from_facts(manifest.scheduler, zero_snr=True)
        self.scheduler = SchedulerView(manifest.scheduler, self._exact_table)
        self._sampler = DEFAULT_SAMPLER
        self._progress: dict[str, Any] = {}
        self._freeu = FREEU_OFF
        self._guidance_scale = manifest.default_guidance_scale
        self._clip_skip: int | None = None

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Move to a device, if not there already, by loading the engines for it.

        Raises:
            EngineUnavailableError: no engine of this bundle runs there.
            InvalidRequestError: another dtype than the bundle's was asked for: that is fixed at
                export; or adapters are loaded, which do not move.
        """
        device, dtype = asked_for(arguments, options)
        if dtype not in (None, self.dtype):
            raise InvalidRequestError(
                f"this model was exported in {self.dtype}, and an engine's dtype is fixed: load it "
                f"with from_pretrained(…, torch_dtype={dtype})"
            )
        if device is not None:
            self._move(device)
        return self

    def _move(self, device: str) -> None:
        if device == self.device.type:
            return
        engine = self._engine
        if engine in (None, "onnxruntime", "onnxruntime-cuda"):
            engine = "onnxruntime" if device == "cpu" else "onnxruntime-cuda"
        before = self.pipeline
        if (
            before.adapters.loras
            or before.adapters.textual_inversions()
            or before.adapters.variants_in_use
        ):
            raise InvalidRequestError(
                f"adapters and variants stay where they were loaded: call to({device!r}) "
                "before loading them"
            )
        moved = load(before.bundle, engine=engine)
        if moved.engines["unet"].device.type != device:
            raise InvalidRequestError(f"the {engine} engine of this model does not run on {device}")
        moved.vae.slicing, moved.vae.tiling = before.vae.slicing, before.vae.tiling
        if before.safety_checker is None:
            moved.safety_checker = None
        self.pipeline = moved

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
        return self.pipeline.engines["unet"].device

    @property
    def _execution_device(self) -> torch.device:
        return self.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet's weights."""
        return self.unet.dtype

    @property
    def default_sample_size(self) -> Any:
        """Side of the latents by default."""
        return self.unet.config.sample_size

    @property
    def guidance_scale(self) -> float:
        """Of the last call."""
        return self._guidance_scale

    @property
    def clip_skip(self) -> int | None:
        """Of the last call."""
        return self._clip_skip

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call ran an unconditional half."""
        return is_doubled(self.pipeline.engines["unet"].spec, self._guidance_scale)

    @property
    def sampler(self) -> str:
        """The sampler's name, without ``sample_``. A name, or k-diffusion's function of it, may
        be assigned."""
        return self._sampler

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        if str(getattr(sampler, "__module__", "")).startswith("k_diffusion"):
            sampler = getattr(sampler, "__name__", sampler)
        self.set_scheduler(sampler)

    def set_scheduler(self, scheduler_type: str) -> None:
        """Choose the sampler, by k-diffusion's name with or without ``sample_``.

        Raises:
            InvalidRequestError: no sampler is called that.
        """
        name = scheduler_type.removeprefix("sample_") if isinstance(scheduler_type, str) else ""
        if name in SAMPLERS:
            self._sampler = name
            return
        raise InvalidRequestError(
            f"Invalid scheduler type {scheduler_type!r}. Please choose one of "
            f"{', '.join(f'sample_{known}' for known in SAMPLERS)}."
        )

    def set_progress_bar_config(self, **options: Any) -> None:
        """Configure the progress bar: ``disable``, ``desc`` and ``leave`` of tqdm's options."""
        self._progress = options

    def progress_bar(
        self, iterable: Iterable[Any] | None = None, total: int | None = None
    ) -> ProgressBar[Any]:
        """A progress bar as it is configured, for an iterable or for ``total`` steps.

        Raises:
            InvalidRequestError: neither is given.
        """
        return ProgressBar(iterable, total, self._progress)

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, np.dtype[np.float32]]) -> list[Image.Image]:
        """PIL images of arrays ``[B, H, W, C]`` in [0, 1]."""
        return VaeImageProcessor.numpy_to_pil(images)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Turn FreeU on, from the next call; 0 is a value like any other.

        Args:
            s1: factor on the low frequencies of the skips in the first up block.
            s2: the same in the second.
            b1: factor on half of the backbone's channels in the first up block.
            b2: the same in the second. :data:`kdrt.compat.FREEU_PRESETS` has good ones.

        Raises:
            InvalidRequestError: a value is not a finite number of at least 0, or the bundle has no
                FreeU.
        """
        if not self.pipeline.engines["unet"].spec.has_input("freeu"):
            raise InvalidRequestError(
                "this bundle has no FreeU in its UNet; export the model again"
            )
        b1, b2 = check_number("b1", b1), check_number("b2", b2)
        self._freeu = (b1, b2, check_number("s1", s1), check_number("s2", s2))

    def disable_freeu(self) -> None:
        """Turn FreeU off: then it is exactly the identity."""
        self._freeu = FREEU_OFF

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: Generators,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Unit-variance latents ``[B, C, h, w]``, drawn or given.

        Raises:
            InvalidRequestError: latents of another shape, or another number of generators.
        """
        if not isinstance(dtype, torch.dtype):
            raise InvalidRequestError(f"dtype must be a torch.dtype, not {dtype!r}")
        place, scale = as_device(device), self.vae_scale_factor
        sides = (check_int("height", height, 1) // scale, check_int("width", width, 1) // scale)
        channels = check_int("num_channels_latents", num_channels_latents, 1)
        shape = (check_int("batch_size", batch_size, 1), channels, *sides)
        if latents is None:
            return initial_noise(shape, generator, dtype, place)
        if isinstance(latents, Tensor):
            check_dense("latents", latents)
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InvalidRequestError(
                f"Unexpected latents shape, got {found}, expected {list(shape)}"
            )
        if latents.is_complex() or not bool(latents.isfinite().all()):
            raise InvalidRequestError("latents must be finite numbers")
        return latents.to(device=place, dtype=dtype)

    def _share(self, other: Any) -> None:
        """The adapters' and FreeU's state, which diffusers keeps in the networks."""
        self._freeu = other._freeu
        self.ip_adapter_scale = other.ip_adapter_scale
        self.__dict__["_lora_state"] = other._lora_state

    def _text_scaled(self, lora_scale: float | None) -> AbstractContextManager[object]:
        """The text encoders with their adapters at ``lora_scale``; without adapters, as they
        are."""
        return contextlib.nullcontext()

    def _check_embeds(self, name: str, embeds: object, pooled_name: str, pooled: object) -> None:
        """Raise InvalidRequestError if embeddings are given that the UNet cannot take."""
        spec = self.pipeline.engines["unet"].spec
        if embeds is not None:
            width = spec.input("encoder_hidden_states").shape[-1]
            checked_embeddings(name, embeds, ("B", "L", width))
        if pooled is not None:
            rows: int | str = len(embeds) if isinstance(embeds, Tensor) else "B"
            width = spec.input("text_embeds").shape[-1]
            checked_embeddings(pooled_name, pooled, (rows, width))

    def _text_dtype(self, component: str) -> torch.dtype:
        return DTYPES[self.pipeline.engines[component].spec.outputs[0].dtype]

    @torch.no_grad()
    @on_own_stream
    def _encode(
        self,
        columns: Sequence[Sequence[str]],
        clip_skip: int | None,
        *,
        together: bool,
        length: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states and pooled embeddings of B prompts for every encoder, warning of those
        that are too long. ``together`` runs them as one batch, which the last bits depend on.
        ``length`` is that of embeddings which they are used with."""
        skip = 0 if clip_skip is None else check_int("clip_skip", clip_skip, 0)
        truncations: Sequence[Truncation]
        encoders = self.pipeline.prompt_encoder.encoders
        most = min(encoder.facts.max_length for encoder in encoders)
        is_short = length is not None and length < most
        if together or is_short:
            parts = [
                encoder.encode_together(texts, skip, length if is_short else None)
                for encoder, texts in zip(encoders, columns, strict=True)
            ]
            hidden = torch.cat([part[0] for part in parts], dim=-1)
            pooled = parts[-1][1] if self.family == "sdxl" else None
            truncations = [each for part in parts for each in part[2]]
        else:
            conditioning, truncations = self.pipeline.prompt_encoder.encode(columns, skip)
            hidden, pooled = conditioning.encoder_hidden_states, conditioning.text_embeds
        if length is not None and length > most:
            padded = self.pipeline.prompt_encoder.pad(Conditioning(hidden, pooled), length, skip)
            hidden = padded.encoder_hidden_states
        for truncation in dict.fromkeys(truncations):
            warnings.warn(str(truncation), TruncationWarning, stacklevel=3)
        return hidden.to(self.device), None if pooled is None else pooled.to(self.device)

    @on_own_stream
    def _sample(
        self,
        conditions: Conditions,
        *,
        height: int,
        width: int,
        steps: int,
        generator: Generators,
        latents: Tensor | None,
        use_karras_sigmas: bool,
        noise_sampler_seed: int | Sequence[int] | None,
        exact: bool,
        compat_dtype: bool | None,
        callback: Callback | None,
        callback_steps: int | None,
    ) -> Tensor:
        """From the conditions to final latents ``[B, C, h, w]``."""
        if compat_dtype and not exact:
            raise InvalidRequestError(
                "compat_dtype needs exact=True: kdrt's own samplers run in float32"
            )
        if exact:
            exact_sampler(self._sampler)  # raises before anything is computed
        steps = check_int("num_inference_steps", steps, 1, MAX_STEPS)
        images = len(conditions.hidden) // conditions.halves
        dtype = conditions.hidden.dtype
        in_text_dtype = exact if compat_dtype is None else compat_dtype
        state = dtype if in_text_dtype else torch.float32
        engine = self.pipeline.engines["unet"]
        table = self._exact_table if exact else self._native_table
        facts = self.pipeline.bundle.manifest.scheduler
        grid = self._grid(table, steps, karras=use_karras_sigmas)
        sigmas = grid.to(device=engine.device, dtype=state)
        if noise_sampler_seed is not None:
            noise_seeds(noise_sampler_seed, None, images)  # raises where they are wrong
        latent_facts = self.pipeline.bundle.manifest.latents
        check_request_fits(latent_facts, images, height, width, device=engine.device)
        channels = int(engine.spec.input("sample").shape[1])
        drawn = self.prepare_latents(
            images,
            channels,
            height,
            width,
            state if latents is not None else dtype,
            engine.device,
            generator,
            latents,
        )
        x = drawn.to(state) * sigmas[0]
        if callback is not None:
            callback = self.pipeline.calls.users(callback)

        with self.progress_bar(total=len(sigmas) - 1) as bar:

            def on_step(index: int, sigma: float, state: Tensor) -> None:
                if callback is not None and index % (callback_steps or 1) == 0:
                    timestep = table.timestep(torch.tensor([sigma]))
                    callback(index, float(timestep), state.clone())
                bar.update()

            def seeds() -> int | list[int]:
                return noise_seeds(noise_sampler_seed, generator, images)

            if exact:
                predicts_v = facts.prediction_type == "v_prediction"
                denoise = ExactDenoiser(engine, table, predicts_v, conditions, x)
                result = run_exact(self._sampler, denoise, x, sigmas, seeds, on_step)
            else:
                result = run_native(
                    self.pipeline.denoising,
                    self._sampler,
                    conditions,
                    x,
                    sigmas,
                    seeds,
                    on_step,
                    noise_schedule=table.noise_schedule,
                    watched=callback is not None or bar.is_shown,
                )
        check_latents(result)
        return result.clone()

    def _grid(self, table: TrainingTable, steps: int, *, karras: bool) -> Tensor:
        """The σ of a run, which the scheduler shows from now on: float32 ``[steps + 1]``."""
        scheduler = self.scheduler
        if not isinstance(scheduler, SchedulerView) and not karras:
            return _grid_of(scheduler, steps)
        if karras:
            grid = karras_grid(table, steps)
            timesteps = table.timestep(grid[:-1])
        else:
            facts = self.pipeline.bundle.manifest.scheduler
            grid, timesteps = default_schedule(facts, table, steps)
        if isinstance(scheduler, SchedulerView):
            scheduler.show(grid, timesteps.to(self.device))
        return grid

    @on_own_stream
    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode to float32 ``[B, 3, H, W]`` in about [-1, 1]."""
        return self.pipeline.vae.decoder(latents.float())

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        facts = self.pipeline.bundle.manifest.latents
        return height or facts.default_height, width or facts.default_width

    def _guide(self, guidance_scale: float) -> bool:
        """Remember the guidance scale; whether it needs an unconditional half."""
        self._guidance_scale = check_number("guidance_scale", guidance_scale)
        return self.do_classifier_free_guidance


def check_size(height: int, width: int) -> None:
    """Raise InvalidRequestError unless both sides are multiples of 8."""
    check_int("height", height, 8, MAX_SIDE)
    check_int("width", width, 8, MAX_SIDE)
    if height % 8 or width % 8:
        raise InvalidRequestError(
            f"`height` and `width` have to be divisible by 8 but are {height} and {width}."
        )


def check_callback(callback: object, callback_steps: object) -> None:
    """Raise InvalidRequestError unless this can be called, every so many steps."""
    if callback_steps is not None:
        check_int("callback_steps", callback_steps, 1)
    if callback is not None:
        check_callable("callback", callback)


def check_exclusive(given: dict[str, object]) -> None:
    """Raise InvalidRequestError if more than one of these arguments is given."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidRequestError(f"give only one of {' and '.join(names)}")


def repeat(embeds: Tensor, times: int) -> Tensor:
    """Every row ``times`` times in a row: p0, p0, p1, p1."""
    return embeds.repeat_interleave(times, dim=0)


def _grid_of(scheduler: Any, steps: int) -> Tensor:
    """The σ of a scheduler that was assigned, as the originals asked for them."""
    try:
        scheduler.set_timesteps(steps)
        sigmas = torch.as_tensor(scheduler.sigmas)
    except Exception as error:  # it is not ours, and raises what it likes
        raise InvalidRequestError(
            f"{type(scheduler).__name__} cannot make a grid of {steps} steps: {error}"
        ) from error
    return sigmas.detach().float().cpu()
