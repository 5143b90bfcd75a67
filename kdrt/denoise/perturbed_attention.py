"""Perturbed-attention guidance (PAG; Ahn et al. 2024, arXiv:2403.17377).

In a third row of an image some self-attentions of the UNet are the identity map: every place sees
itself alone, so the prediction p has the prompt and has lost structure. The result is led away from
it: with the conditional prediction c and the result of classifier-free guidance, or c without it,

    guided + s·(c − p)                          (as in the paper, and in diffusers' PAG pipelines)

before `guidance_rescale`. CFG++ samplers take the direction of the noise from the unconditional
result, which stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PerturbedAttention:
    """How far results are led away from perturbed ones.

    Attributes:
        scale: s.
        adaptive_scale: what the scale loses for every training timestep below 1000; diffusers'
            ``pag_adaptive_scale``.
    """

    scale: float
    adaptive_scale: float = 0.0

    def at(self, timestep: float) -> float:
        """The scale at a training timestep; never below 0."""
        return max(0.0, self.scale - self.adaptive_scale * (1000 - timestep))
