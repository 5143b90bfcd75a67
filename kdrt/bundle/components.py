"""Names of components, and of the inputs and outputs that more than one room speaks of."""

from __future__ import annotations

SHALLOW_UNET = "unet_shallow"
"""The component that computes the outermost layers. It replaces no other component, so it is not
among the variants of a manifest."""


DEEP_CACHE = "deepcache"
"""What ``kdrt export --variant`` calls it."""


DEEP_FEATURE = "deep_feature"
"""What the full network hands out and the shallow one takes."""


PAG = "pag"
"""The variant whose UNet has rows for perturbed-attention guidance."""


PAG_INPUT = "pag_rows"
"""The input that tells it which rows are perturbed: 1 for those, else 0."""
