"""From prompts to the UNet's conditioning.

``tokens`` turns text into ids, ``weighting`` reads emphasis, ``encoder`` runs the text encoders,
and ``given`` checks embeddings that a caller brings.
"""

from kdrt.prompt.conditioning import Conditioning, zeros_like
from kdrt.prompt.encoder import PromptEncoder, TextEncoder, hidden_layer
from kdrt.prompt.tokens import PromptTokenizer, Tokens, Truncation, TruncationWarning
from kdrt.prompt.weighting import COMMA_BACKTRACK, Weighting, WeightingMode

__all__ = [
    "COMMA_BACKTRACK",
    "Conditioning",
    "PromptEncoder",
    "PromptTokenizer",
    "TextEncoder",
    "Tokens",
    "Truncation",
    "TruncationWarning",
    "Weighting",
    "WeightingMode",
    "hidden_layer",
    "zeros_like",
]
