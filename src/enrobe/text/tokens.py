"""One text, or two, as tokens: ids and what is known of each.

Legend: T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from enrobe.text.ragged import Ids


@dataclass(frozen=True, eq=False)
class Tokens:
    """One text, or a pair of texts, as tokens.

    Shapes: ids, types, words, sides (T,); spans (T, 2).
    """

    ids: Ids
    spans: Ids
    # start and end of each token in characters of its text (of its word for pre-split words)
    words: Ids
    # index of the word that a token belongs to; -1 for special tokens
    types: Ids
    # token types, as the family counts them
    sides: Ids
    # 0: of the first text; 1: of the second; -1: a special token that the family adds
    cut: int = 0
    # tokens left out because the row had no room for them

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice | Ids) -> "Tokens":
        parts = (self.ids, self.spans, self.words, self.types, self.sides)
        ids, spans, words, types, sides = (part[which] for part in parts)
        return Tokens(ids, spans, words, types, sides, self.cut)


def of_encoding(encoding: Encoding, ids: Ids) -> Tokens:
    """The tokens of one text, as the library gives them; `ids` are the encoding's."""
    words = [-1 if word is None else word for word in encoding.word_ids]
    zeros = np.zeros(len(ids), np.int64)
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return Tokens(ids, spans, np.array(words, np.int64), zeros, zeros)


def of_specials(ids: tuple[int, ...], kind: int = 0) -> Tokens:
    """Special tokens that a family adds, of token type `kind`."""
    none = np.full(len(ids), -1, np.int64)
    spans = np.zeros((len(ids), 2), np.int64)
    return Tokens(np.array(ids, np.int64), spans, none, np.full(len(ids), kind, np.int64), none)


def join(parts: Sequence[Tokens]) -> Tokens:
    """Tokens end to end."""
    if not parts:
        return of_specials(())
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.spans for part in parts]),
        np.concatenate([part.words for part in parts]),
        np.concatenate([part.types for part in parts]),
        np.concatenate([part.sides for part in parts]),
    )
