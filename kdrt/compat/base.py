"""What both drop-in classes are made of."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from kdrt.bundle import Bundle
from kdrt.checks import amount, whole
from kdrt.compat.conditions import Conditions
from kdrt.compat.exact import ExactDenoiser, exact_sampler, run_exact
from kdrt.compat.grid import TrainingTable, default_grid, karras_grid
from kdrt.compat.native import NativeSampler
from kdrt.compat.noise import Generators, initial_noise, noise_seeds
from kdrt.compat.progress import progress_bar
from kdrt.compat.sources import Wanted, find_bundle
from kdrt.compat.views import SchedulerView, UNetView
from kdrt.denoiser import FREEU_OFF, is_doubled
from kdrt.engine_store import torch_program
from kdrt.errors import InvalidRequest
from kdrt.images import Images, OutputType, to_images
from kdrt.latents import check_latents
from kdrt.pipeline import Pipeline, load
from kdrt.prompt import Truncation, TruncationWarning
from kdrt.sampling import SAMPLERS
from kdrt.streams import on_own_stream
from kdrt_engines.spec import DTYPES

Callback = Callable[[int, float, Tensor], object]
Source = str | os.PathLike[str]

DEFAULT_SAMPLER = "dpmpp_2m"
"""The originals had none, and failed where none was set."""

_HUB = ("cache_dir", "force_download", "local_files_only", "token")
_WITHOUT_EFFECT = ("device_map", "low_cpu_mem_usage", "resume_download", "variant")
_OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder", "requires_safety_checker")


class KDiffusionPipeline:
    """A :class:`kdrt.Pipeline` that is called like one of the removed pipelines.

    Attributes:
        pipeline: what does the work; its ``engines`` are looked up anew at every call.
        exact: whether k-diffusion's own functions sample, unless a call says otherwise.
        vae_scale_factor: pixels for one latent.
        scheduler: the noise schedule; see :class:`kdrt.compat.views.SchedulerView`.
    """

    family: ClassVar[Literal["sd", "sdxl"]]

    def __init__(
        self, pipeline: Pipeline, *, engine: str | None = None, exact: bool = False
    ) -> None:
        manifest = pipeline.bundle.manifest
        if manifest.family != self.family:
            other = {
                "sd": "StableDiffusionKDiffusionPipeline",
                "sdxl": "StableDiffusionXLKDiffusionPipeline",
            }
            raise InvalidRequest(
                f"'{manifest.name}' is a model of the family {manifest.family}: use "
                f"{other[manifest.family]}"
            )
        facts = manifest.scheduler
        if facts.edm is not None or facts.prediction_type == "sample":
            trained = "in the EDM formulation" if facts.edm else "to predict the image itself"
            raise InvalidRequest(
                f"'{manifest.name}' was trained {trained}, and the removed pipelines knew models "
                "of discrete timesteps that predict noise or velocity alone: use kdrt.load"
            )
        self.pipeline = pipeline
        self.exact = exact
        self.vae_scale_factor = manifest.latents.scale
        self._engine = engine
        self._exact_table = TrainingTable.from_facts(manifest.scheduler)
        self._native_table = TrainingTable.from_facts(manifest.scheduler, zero_snr=True)
        self._native = NativeSampler(manifest.scheduler, self._native_table)
        self.scheduler = SchedulerView(manifest.scheduler, self._exact_table)
        self._sampler = DEFAULT_SAMPLER
        self._progress: dict[str, Any] = {}
        self._freeu = FREEU_OFF
        self._guidance_scale = manifest.default_guidance_scale
        self._clip_skip: int | None = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Source,
        *,
        engine: str | None = None,
        exact: bool = False,
        torch_dtype: torch.dtype | None = None,
        threads: int | None = None,
        revision: str | None = None,
        use_safetensors: bool | None = None,
        **options: Any,
    ) -> Self:
        """Open a model, exporting it into ``$KDRT_HOME`` on first use.

        Args:
            pretrained_model_name_or_path: a bundle's folder or name, a diffusers folder, or a hub
                id. What was exported before is used again; a folder whose content has changed
                is exported anew.
            engine: which engine runs it; None takes the best here, and PyTorch for ``exact``.
            exact: sample with k-diffusion's own functions. With the ``torch`` engine in float32
                latents are then those of the original pipeline, bit by bit.
            torch_dtype: of the networks; None is float32, or whatever a bundle has.
            threads: CPU threads.
            revision: branch, tag or commit of a hub id.
            use_safetensors: False accepts pickled weights.
            options: ``cache_dir``, ``force_download``, ``local_files_only`` and ``token`` go to
                the hub; ``variant``, ``device_map`` and ``low_cpu_mem_usage`` have no effect
                here; optional components may be None.

        Raises:
            InvalidRequest: an option is unknown, or the model is of the other family.
            BundleError: the bundle is damaged, or the source means nothing.
            ExportError: the source cannot be exported.
            EngineUnavailable: the engine is not on this machine, or not in the bundle.
        """
        options = _known_options(options)
        wanted = Wanted(
            dtype=torch_dtype,
            engine="torch" if exact and engine is None else engine,
            revision=revision,
            allow_pickle=use_safetensors is False,
            hub=tuple((name, options[name]) for name in _HUB if name in options),
        )
        return cls._open(pretrained_model_name_or_path, wanted, engine, exact, threads, options)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: Source,
        *,
        engine: str | None = None,
        exact: bool = False,
        torch_dtype: torch.dtype | None = None,
        threads: int | None = None,
        config: Source | None = None,
        use_safetensors: bool | None = None,
        **options: Any,
    ) -> Self:
        """Open a checkpoint file; the rest as for :meth:`from_pretrained`.

        Args:
            pretrained_model_link_or_path: ``.safetensors``, or ``.ckpt`` where
                ``use_safetensors=False`` allows pickled weights.
            config: a diffusers folder that says what the file is, for use offline.
        """
        path = Path(pretrained_model_link_or_path).expanduser()
        if not path.is_file():
            raise InvalidRequest(
                f"there is no file {path}; from_single_file reads a checkpoint on this machine"
            )
        _known_options(options)
        wanted = Wanted(
            dtype=torch_dtype,
            engine="torch" if exact and engine is None else engine,
            allow_pickle=use_safetensors is False,
            config=None if config is None else Path(config).expanduser(),
        )
        return cls._open(path, wanted, engine, exact, threads, options)

    @classmethod
    def _open(
        cls,
        source: Source,
        wanted: Wanted,
        engine: str | None,
        exact: bool,
        threads: int | None,
        options: dict[str, Any],
    ) -> Self:
        bundle = find_bundle(source, wanted)
        if exact and engine is None and _has_torch(bundle):
            engine = "torch"
        pipeline = load(bundle, engine=engine, threads=threads)
        if "safety_checker" in options:  # None, as anything else is refused
            pipeline.safety_checker = None
        return cls(pipeline, engine=engine, exact=exact)

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Move to a device, if not there already, by loading the engines for it.

        Raises:
            EngineUnavailable: no engine of this bundle runs there.
            InvalidRequest: another dtype than the bundle's was asked for: that is fixed at export;
                or adapters are loaded, which do not move.
        """
        for value in (*arguments, *options.values()):
            if isinstance(value, torch.dtype):
                if value != self.dtype:
                    raise InvalidRequest(
                        f"this model was exported in {self.dtype}, and an engine's dtype is fixed:"
                        f" load it with from_pretrained(…, torch_dtype={value})"
                    )
            elif isinstance(value, (str, torch.device)) and value != "cpu:0":
                self._move(torch.device(value))
        return self

    def _move(self, device: torch.device) -> None:
        if device.type == self.device.type:
            return
        engine = self._engine
        if engine in (None, "onnxruntime", "onnxruntime-cuda"):
            engine = "onnxruntime" if device.type == "cpu" else "onnxruntime-cuda"
        before = self.pipeline
        if before.loras or before.textual_inversions() or before.variants_in_use:
            raise InvalidRequest(
                f"adapters and variants stay where they were loaded: call to({str(device)!r}) "
                "before loading them"
            )
        moved = load(before.bundle, engine=engine)
        if moved.engines["unet"].device.type != device.type:
            raise InvalidRequest(f"the {engine} engine of this model does not run on {device}")
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
    def unet(self) -> UNetView:
        """The UNet's configuration and dtype."""
        return UNetView(self.pipeline.engines["unet"], self.pipeline.bundle.manifest)

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
        """The sampler's name, without ``sample_``."""
        return self._sampler

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name: engines, and views of the UNet and the scheduler."""
        return {**self.pipeline.engines, "unet": self.unet, "scheduler": self.scheduler}

    def set_scheduler(self, scheduler_type: str) -> None:
        """Choose the sampler, by k-diffusion's name with or without ``sample_``.

        Raises:
            InvalidRequest: no sampler is called that.
        """
        name = scheduler_type.removeprefix("sample_") if isinstance(scheduler_type, str) else ""
        if name in SAMPLERS:
            self._sampler = name
            return
        raise InvalidRequest(
            f"Invalid scheduler type {scheduler_type!r}. Please choose one of "
            f"{', '.join(f'sample_{known}' for known in SAMPLERS)}."
        )

    def set_progress_bar_config(self, **options: Any) -> None:
        """Configure the progress bar: ``disable``, ``desc`` and ``leave`` of tqdm's options."""
        self._progress = options

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Turn FreeU on, from the next call; 0 is a value like any other.

        Args:
            s1: factor on the low frequencies of the skips in the first up block.
            s2: the same in the second.
            b1: factor on half of the backbone's channels in the first up block.
            b2: the same in the second. :data:`kdrt.compat.FREEU_PRESETS` has good ones.

        Raises:
            InvalidRequest: a value is not a finite number of at least 0, or the bundle has no
                FreeU.
        """
        if not self.pipeline.engines["unet"].spec.has_input("freeu"):
            raise InvalidRequest("this bundle has no FreeU in its UNet; export the model again")
        b1, b2 = amount("b1", b1), amount("b2", b2)
        self._freeu = (b1, b2, amount("s1", s1), amount("s2", s2))

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
            InvalidRequest: latents of another shape, or another number of generators.
        """
        scale = self.vae_scale_factor
        shape = (batch_size, num_channels_latents, int(height) // scale, int(width) // scale)
        if latents is None:
            return initial_noise(shape, generator, dtype, torch.device(device))
        if not isinstance(latents, Tensor) or tuple(latents.shape) != shape:
            found = list(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InvalidRequest(f"Unexpected latents shape, got {found}, expected {list(shape)}")
        return latents.to(device=device, dtype=dtype)

    def enable_model_cpu_offload(self, *_: Any, **__: Any) -> None:
        """No effect: engines stay where they run."""

    enable_sequential_cpu_offload = enable_model_cpu_offload
    maybe_free_model_hooks = enable_model_cpu_offload
    enable_attention_slicing = enable_model_cpu_offload
    disable_attention_slicing = enable_model_cpu_offload
    enable_xformers_memory_efficient_attention = enable_model_cpu_offload
    disable_xformers_memory_efficient_attention = enable_model_cpu_offload

    def _text_scaled(self, lora_scale: float | None) -> AbstractContextManager[object]:
        """The text encoders with their adapters at ``lora_scale``; without adapters, as they
        are."""
        return contextlib.nullcontext()

    def _text_dtype(self, component: str) -> torch.dtype:
        return DTYPES[self.pipeline.engines[component].spec.outputs[0].dtype]

    @torch.no_grad()
    @on_own_stream
    def _encode(
        self, columns: Sequence[Sequence[str]], clip_skip: int | None, *, together: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states and pooled embeddings of B prompts for every encoder, warning of those
        that are too long. ``together`` runs them as one batch, which the last bits depend on."""
        skip = 0 if clip_skip is None else whole("clip_skip", clip_skip, 0)
        truncations: Sequence[Truncation]
        if together:
            encoders = self.pipeline._prompts.encoders
            parts = [
                encoder.encode_together(texts, skip)
                for encoder, texts in zip(encoders, columns, strict=True)
            ]
            hidden = torch.cat([part[0] for part in parts], dim=-1)
            pooled = parts[-1][1] if self.family == "sdxl" else None
            truncations = [each for part in parts for each in part[2]]
        else:
            conditioning, truncations = self.pipeline._prompts.encode(columns, skip)
            hidden, pooled = conditioning.encoder_hidden_states, conditioning.text_embeds
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
            raise InvalidRequest(
                "compat_dtype needs exact=True: kdrt's own samplers run in float32"
            )
        if exact:
            exact_sampler(self._sampler)  # raises before anything is computed
        steps = whole("num_inference_steps", steps, 1)
        images = len(conditions.hidden) // conditions.halves
        dtype = conditions.hidden.dtype
        in_text_dtype = exact if compat_dtype is None else compat_dtype
        state = dtype if in_text_dtype else torch.float32
        engine = self.pipeline.engines["unet"]
        table = self._exact_table if exact else self._native_table
        facts = self.pipeline.bundle.manifest.scheduler
        grid = karras_grid(table, steps) if use_karras_sigmas else default_grid(facts, table, steps)
        sigmas = grid.to(device=engine.device, dtype=state)
        if noise_sampler_seed is not None:
            noise_seeds(noise_sampler_seed, None, images)  # raises where they are wrong
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

        with progress_bar(len(sigmas) - 1, self._progress) as advance:

            def on_step(index: int, sigma: float, state: Tensor) -> None:
                if callback is not None and index % (callback_steps or 1) == 0:
                    timestep = table.timestep(torch.tensor([sigma]))
                    callback(index, float(timestep), state.clone())
                advance()

            def seeds() -> int | list[int]:
                return noise_seeds(noise_sampler_seed, generator, images)

            if exact:
                predicts_v = facts.prediction_type == "v_prediction"
                denoise = ExactDenoiser(engine, table, predicts_v, conditions, x)
                result = run_exact(self._sampler, denoise, x, sigmas, seeds, on_step)
            else:
                result = self._native.run(
                    engine, self._sampler, conditions, x, sigmas, seeds, on_step
                )
        check_latents(result)
        return result.clone()

    @on_own_stream
    def _pixels(self, latents: Tensor) -> Tensor:
        """Decode to float32 ``[B, 3, H, W]`` in about [-1, 1]."""
        return self.pipeline.vae.decoder(latents.float())

    def _images(self, pixels: Tensor, output_type: str) -> Images:
        return to_images(pixels, _output_type(output_type))

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        facts = self.pipeline.bundle.manifest.latents
        return height or facts.default_height, width or facts.default_width

    def _guide(self, guidance_scale: float) -> bool:
        """Remember the guidance scale; whether it needs an unconditional half."""
        self._guidance_scale = amount("guidance_scale", guidance_scale)
        return self.do_classifier_free_guidance


def check_size(height: int, width: int) -> None:
    """Raise InvalidRequest unless both sides are multiples of 8."""
    whole("height", height, 8)
    whole("width", width, 8)
    if height % 8 or width % 8:
        raise InvalidRequest(
            f"`height` and `width` have to be divisible by 8 but are {height} and {width}."
        )


def check_exclusive(given: dict[str, object]) -> None:
    """Raise InvalidRequest if more than one of these arguments is given."""
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise InvalidRequest(f"give only one of {' and '.join(names)}")


def repeat(embeds: Tensor, times: int) -> Tensor:
    """Every row ``times`` times in a row: p0, p0, p1, p1."""
    return embeds.repeat_interleave(times, dim=0)


def _output_type(value: str) -> OutputType:
    if value not in get_args(OutputType):
        raise InvalidRequest(
            f"unknown output_type {value!r}; known: {', '.join(get_args(OutputType))}"
        )
    return value  # type: ignore[return-value]


def _has_torch(bundle: Bundle) -> bool:
    return torch_program(bundle, "unet").is_file()


def _known_options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name in (*_HUB, *_WITHOUT_EFFECT, "requires_safety_checker"):
            continue
        if name in _OPTIONAL and value is None:
            continue
        raise InvalidRequest(
            f"{name} cannot be given here: components are part of an export. Save the pipeline you "
            "want with diffusers' save_pretrained, and open that folder"
        )
    return options
