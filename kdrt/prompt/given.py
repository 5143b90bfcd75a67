"""Embeddings that a caller brings in place of a prompt, under the names diffusers gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from kdrt.common.validation import check_dense
from kdrt.errors import InvalidRequestError
from kdrt.prompt.conditioning import Conditioning
from kdrt_engines import EngineSpec


def given_conditioning(
    arguments: Mapping[str, object],
    unet: EngineSpec,
    *,
    instead_of: Mapping[str, object],
    count: int | None = None,
) -> Conditioning | None:
    """Check embeddings against the UNet.

    Args:
        arguments: by their names, the embeddings ``[B, L, D]`` or a :class:`Conditioning`, then
            the pooled ones ``[B, P]``; None is what was not given.
        unet: says what D and P are, and whether there are pooled embeddings.
        instead_of: the texts that they replace, which must then be None.
        count: how many prompts there are; one embedding is then enough for all. None takes B.

    Returns:
        None where none were given.

    Raises:
        InvalidRequestError: a shape is wrong, half of it is missing, or there is a text as well.
    """
    (name, hidden), (pooled_name, pooled) = arguments.items()
    if hidden is None:
        if pooled is not None:
            raise InvalidRequestError(f"{pooled_name} was given without {name}; give both or none")
        return None
    texts = [text for text, value in instead_of.items() if value is not None]
    if texts:
        raise InvalidRequestError(f"give either {' and '.join(texts)} or {name}, not both")
    if isinstance(hidden, Conditioning):
        if pooled is not None:
            raise InvalidRequestError(
                f"{name} is a Conditioning, which already holds {pooled_name}"
            )
        pooled = hidden.text_embeds
        hidden = hidden.encoder_hidden_states
    width = unet.input("encoder_hidden_states").shape[-1]
    checked = checked_embeddings(name, hidden, ("B", "L", width))
    batch = len(checked)
    if count is not None and batch not in (1, count):
        raise InvalidRequestError(
            f"{name} holds {batch} prompts, and there are {count}: give one for each, or one for "
            "all"
        )
    if not unet.has_input("text_embeds"):
        if pooled is not None:
            raise InvalidRequestError(f"only SDXL models take {pooled_name}, and this is not one")
        conditioning = Conditioning(checked, None)
    elif pooled is None:
        raise InvalidRequestError(f"SDXL models need {pooled_name} together with {name}")
    else:
        shape = (batch, unet.input("text_embeds").shape[-1])
        conditioning = Conditioning(checked, checked_embeddings(pooled_name, pooled, shape))
    return conditioning.repeated(count) if count is not None and batch == 1 else conditioning


def checked_embeddings(name: str, value: object, shape: Sequence[int | str]) -> Tensor:
    """``value``, detached, after a look at its shape and numbers; a letter stands for any size.

    Raises:
        InvalidRequestError: it is no finite floating-point tensor of that shape.
    """
    wanted = f"{name} must be a floating-point tensor of shape [{', '.join(map(str, shape))}]"
    if not isinstance(value, Tensor):
        raise InvalidRequestError(f"{wanted}, not {type(value).__name__}")
    check_dense(name, value)
    fits = value.ndim == len(shape) and all(
        size == (wish if isinstance(wish, int) else max(size, 1))
        for size, wish in zip(value.shape, shape, strict=True)
    )
    if not fits or not value.is_floating_point() or value.itemsize < 2:  # nor float8
        raise InvalidRequestError(f"{wanted}, not {value.dtype} {list(value.shape)}")
    if not bool(value.float().isfinite().all()):
        raise InvalidRequestError(f"{name} must be finite")
    return value.detach()
