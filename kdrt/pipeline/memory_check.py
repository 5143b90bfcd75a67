"""Images that cannot be computed in the memory there is, refused before anything is."""

from __future__ import annotations

import torch

from kdrt.bundle import Bundle
from kdrt.pipeline.activations import ImageActivations
from kdrt.request.job import Job
from kdrt.request.memory import check_decoder_fits, check_enlarged_fits, check_unet_fits
from kdrt.vae.vae import Vae
from kdrt_engines import EngineSpec


class MemoryCheck:
    """Checks sizes of images against the memory of a CPU. On a GPU too much is an error of the
    allocation, and not the end of the process, so nothing is checked.

    Args:
        bundle: knows the networks.
        vae: says whether an image is decoded in tiles.
        device: of the UNet.
    """

    def __init__(self, bundle: Bundle, vae: Vae, device: torch.device) -> None:
        self._scale = bundle.manifest.latents.scale
        self._activations = ImageActivations(bundle)
        self._vae = vae
        self._is_cpu = device.type == "cpu"

    def check_job(self, job: Job, unet: EngineSpec, *, decoded: bool) -> None:
        """Check one pass of a job.

        Args:
            job: what to make.
            unet: that makes it.
            decoded: whether its latents are decoded.

        Raises:
            InvalidRequestError: it cannot be computed.
        """
        residuals = 0
        if job.controls:  # of each network, and their sum in the UNet's inputs
            networks = sum(control.component.is_network for control in job.controls)
            each = self._activations.residuals(unet, job.height, job.width)
            residuals = (1 + networks) * each
        self.check_size(job.height, job.width, decoded=decoded, residuals=residuals)

    def check_enlarged(self, height: int, width: int) -> None:
        """Check what a network that enlarges images makes, ``height`` by ``width`` pixels.

        Raises:
            InvalidRequestError: no image of this size can be computed.
        """
        if self._is_cpu:
            check_enlarged_fits(height, width)

    def check_size(
        self, height: int, width: int, *, decoded: bool = True, residuals: int = 0
    ) -> None:
        """Check a size of images.

        Args:
            height: in pixels.
            width: likewise.
            decoded: whether the latents are decoded.
            residuals: bytes of what controls add to the UNet.

        Raises:
            InvalidRequestError: no image of this size can be computed.
        """
        if not self._is_cpu:
            return
        check_unet_fits(self._activations.unet(height, width) + residuals, height, width)
        if decoded:
            check_decoder_fits(
                self._activations.vae_decoder(height, width),
                height,
                width,
                lambda: self._vae.decoder.is_tiled(height // self._scale, width // self._scale),
            )
