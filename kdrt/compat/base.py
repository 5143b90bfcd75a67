"""What both drop-in classes share: construction, moving, the last call's settings, FreeU."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdrt.common.streams import on_own_stream
from kdrt.common.torch_modes import in_neutral_modes
from kdrt.common.validation import check_number
from kdrt.compat.absent import AbsentMethods
from kdrt.compat.device_arguments import asked_for
from kdrt.compat.encoding import EncodingMixin
from kdrt.compat.image_processor import VaeImageProcessor
from kdrt.compat.loading import LoadingMixin
from kdrt.compat.parts import PartsMixin
from kdrt.compat.sampling import SamplingMixin
from kdrt.compat.switches import MemorySwitches
from kdrt.denoise.denoiser import is_doubled
from kdrt.denoise.freeu import FREEU_OFF
from kdrt.errors import InvalidRequestError
from kdrt.pipeline.loading import load
from kdrt.pipeline.pipeline import Pipeline


class KDiffusionPipeline(
    LoadingMixin, EncodingMixin, SamplingMixin, PartsMixin, MemorySwitches, AbsentMethods
):
    """A :class:`kdrt.Pipeline` that is called like one of the removed pipelines.

    Attributes:
        pipeline: the pipeline that does the work.
        exact: whether k-diffusion's own functions sample, unless a call says otherwise.
        vae_scale_factor: pixels per latent, along each side.
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
        self._begin_with(manifest.scheduler)
        self._freeu = FREEU_OFF
        self._guidance_scale = manifest.default_guidance_scale
        self._clip_skip: int | None = None

    def to(self, *arguments: Any, **options: Any) -> Self:
        """Move to a device by loading the engines for it, unless they are there already.

        Returns:
            This pipeline.

        Raises:
            EngineUnavailableError: no engine of this bundle runs there.
            InvalidRequestError: a dtype other than the bundle's was requested, which is fixed at
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
        """The device that the UNet runs on."""
        return self.pipeline.engines["unet"].device

    @property
    def _execution_device(self) -> torch.device:
        return self.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the UNet's weights."""
        return self.unet.dtype

    @property
    def default_sample_size(self) -> Any:
        """The default side of the latents."""
        return self.unet.config.sample_size

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the last call."""
        return self._guidance_scale

    @property
    def clip_skip(self) -> int | None:
        """The clip skip of the last call."""
        return self._clip_skip

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call also ran an unconditional half, for guidance."""
        return is_doubled(self.pipeline.engines["unet"].spec, self._guidance_scale)

    @staticmethod
    def numpy_to_pil(images: np.ndarray[Any, np.dtype[np.float32]]) -> list[Image.Image]:
        """PIL images of arrays ``[B, H, W, C]`` in [0, 1]."""
        return VaeImageProcessor.numpy_to_pil(images)

    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Turn FreeU on, from the next call on. 0 is a valid factor.

        :data:`kdrt.compat.FREEU_PRESETS` has the recommended factors.

        Args:
            s1: factor on the low frequencies of the skips in the first up block.
            s2: the same in the second up block.
            b1: factor on half of the backbone's channels in the first up block.
            b2: the same in the second up block.

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
        """Turn FreeU off, which makes it exactly the identity."""
        self._freeu = FREEU_OFF

    def _share(self, other: Any) -> None:
        """The adapters' and FreeU's state, which diffusers keeps in the networks."""
        self._freeu = other._freeu
        self.ip_adapter_scale = other.ip_adapter_scale
        self.__dict__["_lora_state"] = other._lora_state

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
