"""Words and defaults that several rooms share, importable without torch."""

from __future__ import annotations

from typing import Literal

WeightingMode = Literal["none", "a1111", "a1111_no_norm"]
"""How a prompt is read; see :class:`kdrt.prompt.Weighting`."""

OutputType = Literal["pil", "np", "pt", "latent"]
"""The form of a result's images; see :class:`kdrt.Result`."""

GuidanceMethodName = Literal["cfg", "apg", "cfg_zero_star"]
"""How results with and without guidance are combined; see :mod:`kdrt.denoise.guidance_methods`."""

InpaintFill = Literal["original", "blurred", "noise", "nothing"]
"""What lies under a mask to begin with; see :class:`kdrt.images.init_image.InitImage`."""

HIRES_STRENGTH = 0.7
"""How much a second pass makes anew, where nobody says: as in the web UI."""

COMMA_BACKTRACK = 20
"""Tokens: how far back a chunk of a long prompt may end at a comma, as in the web UI."""
