"""From prompts to the UNet's conditioning.

``tokens`` turns text into ids, by ``chunks`` where a prompt is long and ``weighting`` reads its
emphasis, ``encoder`` looks them up in the ``token_table`` and runs the text encoders,
``given`` checks embeddings that a caller brings, and ``hints`` knows what is written for other
programs.
"""

from kdrt.prompt.conditioning import Conditioning, zeros_like
from kdrt.prompt.encoder import PromptEncoder, TextEncoder, hidden_layer
from kdrt.prompt.hints import PromptSyntaxWarning
from kdrt.prompt.tokens import PromptTokenizer, Tokens, Truncation, TruncationWarning
from kdrt.prompt.weighting import Weighting

__all__ = [
    "Conditioning",
    "PromptEncoder",
    "PromptSyntaxWarning",
    "PromptTokenizer",
    "TextEncoder",
    "Tokens",
    "Truncation",
    "TruncationWarning",
    "Weighting",
    "hidden_layer",
    "zeros_like",
]
