"""From conditions to final latents: the choice of a sampler, its grid, its noise, its run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdrt.bundle import SchedulerFacts
from kdrt.common.streams import on_own_stream
from kdrt.common.validation import MAX_STEPS, check_dense, check_int
from kdrt.compat.conditions import Conditions
from kdrt.compat.device_arguments import as_device
from kdrt.compat.exact import ExactDenoiser, exact_sampler, run_exact
from kdrt.compat.grid import TrainingTable, default_schedule, karras_grid
from kdrt.compat.native import run_native
from kdrt.compat.noise import Generators, initial_noise, noise_seeds
from kdrt.compat.progress import ProgressBar
from kdrt.compat.scheduler_view import SchedulerView
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.pipeline import Pipeline
from kdrt.request.memory import check_request_fits
from kdrt.sampling import SAMPLERS
from kdrt.vae.coder import check_latents

Callback = Callable[[int, float, Tensor], object]

DEFAULT_SAMPLER = "dpmpp_2m"
"""The originals had none, and failed where none was set."""


class SamplingMixin:
    """For a class with a ``pipeline``.

    Attributes:
        scheduler: the noise schedule, a :class:`kdrt.compat.scheduler_view.SchedulerView`. One of
            diffusers' own, such as EulerDiscreteScheduler, may be assigned: its sigmas are then
            the default grid.
    """

    pipeline: Pipeline
    scheduler: Any
    vae_scale_factor: int

    def _begin_with(self, facts: SchedulerFacts) -> None:
        """Set the schedule of a checkpoint, and the default sampler."""
        self._exact_table = TrainingTable.from_facts(facts)
        self._native_table = TrainingTable.from_facts(facts, zero_snr=True)
        self.scheduler = SchedulerView(facts, self._exact_table)
        self._sampler = DEFAULT_SAMPLER
        self._progress: dict[str, Any] = {}

    @property
    def sampler(self) -> str:
        """The name of the sampler, without ``sample_``. You may assign a name, or k-diffusion's
        function of that name."""
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
        """Configure the progress bar; of tqdm's options, it takes ``disable``, ``desc`` and
        ``leave``."""
        self._progress = options

    def progress_bar(
        self, iterable: Iterable[Any] | None = None, total: int | None = None
    ) -> ProgressBar[Any]:
        """A progress bar with the configured options, for an iterable or for ``total`` steps.

        Raises:
            InvalidRequestError: neither is given.
        """
        return ProgressBar(iterable, total, self._progress)

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
        decoded: bool,
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
        self.pipeline.memory_check.check_size(height, width, decoded=decoded)
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
            callback = self.pipeline.calls.user_function(callback)

        with self.progress_bar(total=len(sigmas) - 1) as bar:

            def on_step(index: int, sigma: float, state: Tensor) -> None:
                self.pipeline.calls.check_cancelled()
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
        """The σ grid of a run, float32 ``[steps + 1]``; the scheduler shows it from now on."""
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
            scheduler.show(grid, timesteps.to(self.pipeline.engines["unet"].device))
        return grid


def _grid_of(scheduler: Any, steps: int) -> Tensor:
    """The σ grid of an assigned scheduler, read as the removed pipelines did."""
    try:
        scheduler.set_timesteps(steps)
        sigmas = torch.as_tensor(scheduler.sigmas)
    except Exception as error:  # it is not ours, and raises what it likes
        raise InvalidRequestError(
            f"{type(scheduler).__name__} cannot make a grid of {steps} steps: {error}"
        ) from error
    return sigmas.detach().float().cpu()
