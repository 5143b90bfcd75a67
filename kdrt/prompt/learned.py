"""Tokens that were learned by textual inversion (Gal et al. 2022): vectors with a name.

They are rows beyond a text encoder's own table of token embeddings, which is never changed: to
forget them restores the encoder exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


class LearnedTokens:
    """The learned tokens of one text encoder.

    Args:
        first_id: the first id that its tokenizer does not use.
        width: D, of its token embeddings.
    """

    def __init__(self, *, first_id: int, width: int) -> None:
        self.pools = False
        """Whether a learned token counts where an encoder pools at the highest id. It does in
        diffusers, whose pooled embedding is then that of the learned token, not that of the end
        of the prompt."""
        self._first_id = first_id
        self._vectors: dict[str, Tensor] = {}
        self._aliases: dict[str, tuple[str, ...]] = {}
        self._rows = torch.empty(0, width)

    @property
    def tokens(self) -> Mapping[str, tuple[int, ...]]:
        """The ids of each token, one a vector."""
        ids = iter(range(self._first_id, self._first_id + len(self._rows)))
        return {t: tuple(next(ids) for _ in vectors) for t, vectors in self._vectors.items()}

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names, and the tokens they stand for: those that are no tokens themselves. Of two
        tokens with one the first has it."""
        found: dict[str, str] = {}
        for token, names in self._aliases.items():
            for name in names:
                if name not in self._vectors:
                    found.setdefault(name, token)
        return found

    @property
    def names(self) -> Mapping[str, tuple[int, ...]]:
        """The ids of each token, by its name and by its others."""
        tokens = self.tokens
        return {**tokens, **{name: tokens[token] for name, token in self.aliases.items()}}

    def add(self, token: str, vectors: Tensor, aliases: Iterable[str] = ()) -> None:
        """Learn ``vectors [n, D]`` as ``token``, and by other names where those are free."""
        self._aliases[token] = tuple(aliases)
        self._replace({**self._vectors, token: vectors.detach().to("cpu").clone()})

    def remove(self, tokens: Sequence[str]) -> None:
        """Forget those of ``tokens`` that are known."""
        self._aliases = {t: names for t, names in self._aliases.items() if t not in tokens}
        self._replace({t: v for t, v in self._vectors.items() if t not in tokens})

    def rows(self, ids: Sequence[int], table: Tensor) -> Tensor:
        """Embeddings of ``ids``: from ``table [V, D]``, and those beyond from what was learned.

        Returns:
            ``[len(ids), D]`` in the dtype of ``table``.
        """
        learned = [index for index, id_ in enumerate(ids) if id_ >= self._first_id]
        if not learned:
            return table[list(ids)]
        rows = table[[0 if id_ >= self._first_id else id_ for id_ in ids]]
        chosen = self._rows[[ids[index] - self._first_id for index in learned]]
        rows[learned] = chosen.to(table.dtype)
        return rows

    def _replace(self, vectors: dict[str, Tensor]) -> None:
        self._vectors = vectors
        self._rows = torch.cat([self._rows[:0], *vectors.values()])


def stands_alone(token: str) -> bool:
    """Whether a token is found only where no letter, digit or underscore touches it: one that
    begins or ends with such, as ``cat`` and not ``<cat>``. Else it would be found inside of
    words."""
    return any(edge.isalnum() or edge == "_" for edge in (token[:1], token[-1:]))
