"""What turns text into a text encoder's inputs: the tokenizer and the token embedding table."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from kdrt.bundle import TextEncoderFacts
from kdrt.prompt.token_table import vocabulary_fault
from kdrt_export.errors import SourceError
from kdrt_export.families import Family
from kdrt_export.sources import TextModel
from kdrt_export.sources.reading import refused


def write_text_files(
    folder: Path,
    index: int,
    tokenizer: CLIPTokenizer,
    model: TextModel,
    family: Family,
    dtype: torch.dtype,
) -> TextEncoderFacts:
    """Write ``tokenizer*/`` into the bundle ``folder`` and return the facts that go with it.

    Raises:
        SourceError: the tokenizer does not fit the text encoder.
    """
    suffix = f"_{index + 1}" if index else ""
    place, component = f"tokenizer{suffix}", f"text_encoder{suffix}"
    text = getattr(model, "text_model", model)
    table = text.embeddings.token_embedding.weight
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.no_padding()
    raw.no_truncation()
    embedding = f"{place}/token_embedding.safetensors"
    with refused(f"{place} or {component} has a configuration that cannot be used"):
        facts = TextEncoderFacts(
            component=component,
            tokenizer=place,
            token_embedding=embedding,
            max_length=min(tokenizer.model_max_length, model.config.max_position_embeddings),
            hidden_size=model.config.hidden_size,
            layers=model.config.num_hidden_layers,
            bos=tokenizer.bos_token_id,
            eos=tokenizer.eos_token_id,
            pad=tokenizer.pad_token_id,
            # 2 stands for a mistake in CLIP's first configurations, which transformers honours so.
            pooled_token=None if text.eos_token_id == 2 else text.eos_token_id,
            layer=-2 if family == "sdxl" else -1,
            normalized=family == "sd",
        )
    fault = vocabulary_fault(raw, facts, table)
    if fault is not None:
        raise SourceError(f"the tokenizer in '{place}' does not fit its text encoder: {fault}")
    (folder / place).mkdir()
    raw.save(str(folder / place / "tokenizer.json"), pretty=False)
    save_file({"weight": table.detach().to(dtype).contiguous()}, str(folder / embedding))
    return facts
