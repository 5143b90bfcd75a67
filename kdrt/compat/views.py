"""What people read of a diffusers pipeline's parts, where the parts themselves are engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from kdrt.bundle import SchedulerFacts
from kdrt.common.streams import on_own_stream
from kdrt.common.validation import MAX_STEPS, check_dense, check_int, finite_or_none
from kdrt.compat.absent import AbsentAttributeError, SaysWhatThereIs, refused
from kdrt.compat.config import Config, recorded
from kdrt.compat.grid import TrainingTable, default_schedule
from kdrt.compat.moving import asked_for
from kdrt.denoise.bound_unet import GUIDANCE_INPUT
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.calls import part_of_call
from kdrt.pipeline.pipeline import Pipeline
from kdrt_engines import Engine
from kdrt_engines.spec import DTYPES


class SchedulerView(SaysWhatThereIs):
    """The checkpoint's noise schedule, as LMSDiscreteScheduler showed it.

    Attributes:
        config: its resolved configuration.
        alphas_cumprod: float32 ``[N]``.
        sigmas: the grid of the last run or :meth:`set_timesteps`, at first that of all N
            timesteps; float32 ``[steps + 1]``, descending, last 0.
        timesteps: its timesteps, without the final 0.
        num_inference_steps: how many steps that are.
    """

    order = 1
    instead = (
        "it has the grid, in sigmas and timesteps, and what steps is chosen with "
        "pipe.set_scheduler(…); another grid is that of a scheduler of diffusers, as "
        "pipe.scheduler = LMSDiscreteScheduler.from_config(pipe.scheduler.config)"
    )
    from_config = from_pretrained = refused(
        "this shows the schedule of a model that is loaded; call that of a scheduler of diffusers, "
        "as LMSDiscreteScheduler.from_config(pipe.scheduler.config)"
    )
    _settable = ("config", "alphas_cumprod", "num_inference_steps", "sigmas", "timesteps")

    def __init__(self, facts: SchedulerFacts, table: TrainingTable) -> None:
        known = facts.model_dump(exclude={"explicit"})
        self.config = Config(
            known,
            _class_name="LMSDiscreteScheduler",
            # Those that another scheduler's ``from_config`` shall not take over.
            _use_default_values=[name for name in known if name not in facts.explicit],
        )
        self.alphas_cumprod = table.alphas_cumprod
        self._facts, self._table = facts, table
        self.set_timesteps(facts.num_train_timesteps)

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """Make the grid of so many steps.

        Raises:
            InvalidRequestError: it is no number of steps.
        """
        most = max(MAX_STEPS, self._facts.num_train_timesteps)
        steps = check_int("num_inference_steps", num_inference_steps, 1, most)
        sigmas, timesteps = default_schedule(self._facts, self._table, steps)
        self.show(sigmas, timesteps.to(device))

    def show(self, sigmas: Tensor, timesteps: Tensor) -> None:
        """Show the grid of a run, sigmas ``[steps + 1]`` and timesteps ``[steps]``."""
        self.num_inference_steps = len(sigmas) - 1
        self.sigmas, self.timesteps = sigmas, timesteps

    @property
    def init_noise_sigma(self) -> Tensor:
        """What diffusers' own loops multiply unit noise by: the highest σ, and with ``leading``
        spacing √(σ² + 1). The removed pipelines, and these, multiply by ``sigmas[0]``."""
        highest = self.sigmas.max()
        if self.config.timestep_spacing in ("linspace", "trailing"):
            return highest
        return (highest**2 + 1) ** 0.5

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in self._settable:
            raise InvalidRequestError(f"{name!r} of this scheduler cannot be set; {self.instead}")
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)


_OF_THE_PIPELINE = {
    **dict.fromkeys(("load_attn_procs", "load_lora_adapter"), "load_lora_weights"),
    **dict.fromkeys(("save_attn_procs", "save_lora_adapter"), "save_lora_weights"),
    **{
        name: name
        for name in (
            *("fuse_qkv_projections", "unfuse_qkv_projections", "enable_freeu", "disable_freeu"),
            *("set_adapters", "delete_adapters", "fuse_lora", "unfuse_lora"),
            *("enable_lora", "disable_lora"),
        )
    },
}
"""Methods of diffusers' networks, by what does the same for a pipeline."""


class NetworkView(SaysWhatThereIs):
    """What can be asked of a network that runs as an engine.

    Attributes:
        config: its configuration.
        dtype: of its weights.
        device: where it runs.
    """

    name: str
    config: Config
    instead = (
        "it stands for a network that runs as an engine, which has no modules, parameters or "
        "hooks; what is known of it is in config, dtype and device"
    )

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.dtype = DTYPES[engine.spec.inputs[0].dtype]
        self.device = engine.device

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Itself, where that is what is asked for; a memory format has no effect.

        Raises:
            InvalidRequestError: it runs in another dtype or elsewhere.
        """
        device, dtype = asked_for(arguments, options)
        if dtype not in (None, self.dtype) or device not in (None, self.device.type):
            raise InvalidRequestError(
                f"the {self.name} runs as an engine in {self.dtype} on {self.device}: its dtype is "
                "fixed at export, and the whole pipeline moves with pipe.to(device)"
            )
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _OF_THE_PIPELINE:
            raise AbsentAttributeError(
                f"{name} is not here but a method of the pipeline: use "
                f"pipe.{_OF_THE_PIPELINE[name]}(…)"
            )
        return super().__getattr__(name)

    def cpu(self) -> Self:
        """``to("cpu")``."""
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device = "cuda") -> Self:
        """``to("cuda")``."""
        return self.to(device)

    def half(self) -> Self:
        """``to(torch.float16)``."""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """``to(torch.bfloat16)``."""
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        """``to(torch.float32)``."""
        return self.to(torch.float32)

    def eval(self) -> Self:
        """Itself: engines know nothing else."""
        return self

    def train(self, mode: bool = True) -> Self:
        """Itself, for inference.

        Raises:
            InvalidRequestError: training is asked for, which engines cannot do.
        """
        return self.requires_grad_(mode)

    def requires_grad_(self, requires_grad: bool = False) -> Self:
        """Itself, without gradients.

        Raises:
            InvalidRequestError: gradients are asked for, which engines do not have.
        """
        if requires_grad:
            raise InvalidRequestError(
                "engines are for inference: they have no gradients, and cannot be trained"
            )
        return self

    def _no_effect(self, *_: Any, **__: Any) -> None:
        """No effect: engines have their own attention and memory."""

    enable_attention_slicing = disable_attention_slicing = set_attention_slice = _no_effect
    enable_xformers_memory_efficient_attention = _no_effect
    disable_xformers_memory_efficient_attention = _no_effect
    set_use_memory_efficient_attention_xformers = _no_effect
    enable_forward_chunking = disable_forward_chunking = _no_effect
    set_default_attn_processor = enable_gradient_checkpointing = compile = _no_effect

    def set_attn_processor(self, processor: object) -> None:
        """No effect for processors that only compute attention in another way.

        Raises:
            InvalidRequestError: the processor may compute something else.
        """
        each = processor.values() if isinstance(processor, Mapping) else [processor]
        for name in (type(one).__name__ for one in each):
            if name not in _PLAIN_PROCESSORS:
                raise InvalidRequestError(
                    f"attention is part of the exported {self.name}, and {name} cannot replace it"
                )

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: engines do not give a network back."""
        raise InvalidRequestError(
            f"the {self.name} is an engine, and cannot be saved by itself: copy the model it was "
            "exported from, or save the whole bundle with pipe.save_pretrained(folder)"
        )


_PLAIN_PROCESSORS = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
}


class UNetView(NetworkView):
    """The UNet's configuration, dtype and switches."""

    name = "unet"

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline.engines["unet"])
        spec, manifest = self.engine.spec, pipeline.bundle.manifest
        facts = manifest.latents

        def width(name: str) -> int | None:
            return int(spec.input(name).shape[-1]) if spec.has_input(name) else None

        pooled = width("text_embeds")
        sides = facts.default_height // facts.scale, facts.default_width // facts.scale
        self.pooled_width = pooled
        self.config = Config(
            recorded(pipeline.bundle, self.name)
            | {"_class_name": "UNet2DConditionModel", "_name_or_path": manifest.source},
            in_channels=int(spec.input("sample").shape[1]),
            out_channels=int(spec.outputs[0].shape[1]),
            sample_size=sides[0] if sides[0] == sides[1] else sides,
            cross_attention_dim=width("encoder_hidden_states"),
            time_cond_proj_dim=width(GUIDANCE_INPUT),
            addition_embed_type=None if pooled is None else "text_time",
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: the UNet runs inside of a call of the pipeline only."""
        raise InvalidRequestError(
            "the UNet is an engine, and runs inside of a pipeline's call only; for steps of your "
            "own use pipe.pipeline.steps(…), or a sampler of your own in pipe.pipeline(…, "
            "sampler=function)"
        )


@dataclass(frozen=True)
class DecoderOutput:
    """Pixels ``[B, 3, H, W]`` in about [-1, 1]; also reachable as ``out[0]``."""

    sample: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.sample,)[index]


@dataclass(frozen=True)
class LatentDistribution(SaysWhatThereIs):
    """What an encoder makes of images. Only its mean is exported."""

    mean: Tensor
    instead = "only the mean of a VAE is exported: mean, mode() and sample() give it"

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def sample(self, generator: object = None) -> Tensor:
        """The mean: exported encoders do without its noise, which is far below what can be
        seen."""
        return self.mean


@dataclass(frozen=True)
class EncoderOutput:
    """``latent_dist``; also reachable as ``out[0]``."""

    latent_dist: LatentDistribution

    def __getitem__(self, index: int) -> LatentDistribution:
        return (self.latent_dist,)[index]


class VaeView(NetworkView):
    """The VAE's configuration, dtype and switches, and its two halves.

    The exported halves scale latents themselves. As the original's do not, :meth:`decode` and
    :meth:`encode` take that back: ``vae.decode(latents / vae.config.scaling_factor)``.
    """

    name = "vae"

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(pipeline.engines["vae_decoder"])
        self.pipeline = pipeline
        manifest = pipeline.bundle.manifest
        facts = manifest.latents
        source = manifest.baked.vae or manifest.source
        self.config = Config(
            {"sample_size": pipeline.vae.tiling_of().size * facts.scale}
            | recorded(pipeline.bundle, self.name)
            | {"_class_name": "AutoencoderKL", "_name_or_path": source},
            in_channels=3,
            out_channels=3,
            latent_channels=facts.channels,
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raises InvalidRequestError: its halves are called."""
        raise InvalidRequestError(
            "the VAE runs in halves: call pipe.vae.encode(x) or pipe.vae.decode(z)"
        )

    @property
    def use_slicing(self) -> bool:
        """Whether images of a batch pass one by one: kdrt's default."""
        return self.pipeline.vae.slicing

    @property
    def use_tiling(self) -> bool:
        """Whether images larger than a tile pass in tiles."""
        return self.pipeline.vae.tiling is not None

    def enable_slicing(self) -> None:
        """Decode images of a batch one by one."""
        self.pipeline.vae.enable_slicing()

    def disable_slicing(self) -> None:
        """Decode the whole batch at once."""
        self.pipeline.vae.disable_slicing()

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Decode images larger than the VAE was trained at in tiles of that size."""
        if use_tiling:
            self.pipeline.vae.enable_tiling()
        else:
            self.pipeline.vae.disable_tiling()

    def disable_tiling(self) -> None:
        """Decode whole images, wherever the engine can."""
        self.pipeline.vae.disable_tiling()

    def check_latents(self, latents: object) -> None:
        """Raise InvalidRequestError unless these are latents ``[B, C, h, w]``."""
        _check_images("latents", latents, self.config.latent_channels)

    def check_pixels(self, pixels: object) -> None:
        """Raise InvalidRequestError unless these are pixels ``[B, 3, H, W]``."""
        _check_images("pixels", pixels, self.config.in_channels)

    def _scaling(self) -> tuple[float, Tensor, Tensor]:
        """What the exported halves do to latents: z = latents · std / factor + mean."""
        factor = finite_or_none(self.config.get("scaling_factor"))
        if not factor:
            raise InvalidRequestError(
                "this bundle does not know its VAE's scaling factor, as kdrt kept none when it was "
                "exported; export the model again, or decode with pipe(…) alone"
            )
        mean, std = self.config.get("latents_mean"), self.config.get("latents_std")
        if mean is None or std is None:
            mean, std = [0.0], [1.0]
        return factor, _for_channels(mean), _for_channels(std)

    @part_of_call
    @on_own_stream
    def decode(
        self, z: Tensor, return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """Pixels of latents ``[B, C, h, w]`` divided by the configuration's scaling factor.

        Raises:
            InvalidRequestError: these are no latents of this model.
            ShapeError: the engine was not made for this size.
        """
        self.check_latents(z)
        factor, mean, std = self._scaling()
        pixels = self.pipeline.vae.decoder((z.float() - mean.to(z)) * factor / std.to(z))
        return DecoderOutput(pixels) if return_dict else (pixels,)

    @part_of_call
    @on_own_stream
    def encode(
        self, x: Tensor, return_dict: bool = True
    ) -> EncoderOutput | tuple[LatentDistribution]:
        """Latents of pixels ``[B, 3, H, W]`` in [-1, 1]; their ``latent_dist.mean`` times the
        configuration's scaling factor is what a sampler works on.

        Raises:
            InvalidRequestError: these are no pixels.
            BundleError: the bundle has no encoder.
            ShapeError: the sides are no multiples of the VAE's scale.
        """
        self.check_pixels(x)
        factor, mean, std = self._scaling()
        latents = self.pipeline.vae.encode(x.float())
        distribution = LatentDistribution(latents * std.to(latents) / factor + mean.to(latents))
        return EncoderOutput(distribution) if return_dict else (distribution,)


def _for_channels(values: Any) -> Tensor:
    try:
        return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidRequestError(
            f"the statistics of this bundle's VAE are no numbers ({error}); export the model again"
        ) from error


def _check_images(name: str, value: object, channels: int) -> None:
    if isinstance(value, Tensor):
        check_dense(name, value)
    if (
        not isinstance(value, Tensor)
        or value.ndim != 4
        or value.shape[1] != channels
        or 0 in value.shape
        or value.is_complex()
    ):
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InvalidRequestError(
            f"{name} must be a tensor [B, {channels}, height, width], not {found}"
        )
