"""From prompts to the UNet's conditioning.

Its files:

    tokens        text → ids
    weighting     emphasis, as the AUTOMATIC1111 web UI writes it
    chunks        long prompts in parts that a text encoder can read
    learned       tokens of textual inversion
    token_table   the embeddings of tokens
    encoder       ids → hidden states: the text encoders
    conditioning  what the UNet is told
    given         embeddings that a caller brings
    hints         what is written for other programs
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
