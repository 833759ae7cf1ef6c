"""What the encoder knows of each token: hidden states of all layers, vectors of tokens or words.

Legend: T tokens, W words, H hidden, L layers.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from enrobe.engines.base import Array, Engine, Request
from enrobe.errors import TextError
from enrobe.tasks.parts import Cutter, Long, run_parts
from enrobe.tasks.results import TokenVectors
from enrobe.text.ragged import Ids, Ragged, plan
from enrobe.text.rows import trimmed
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens


def hidden_states(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str], *, special: bool = True
) -> list[Array | TextError]:
    """For each text (L+1, T, H), special tokens included; row 0 holds the embeddings."""
    most = engine.config.max_tokens
    found: list[Array | TextError] = []
    rows: dict[int, Ids] = {}
    for number, ids in enumerate(tokenizer.ids(texts, special=special)):
        found.append(np.empty(0, np.float32))
        if isinstance(ids, TextError):
            found[number] = ids
        elif (count := len(ids) + tokenizer.frame_size) > most:
            # Windows do not help: a token that stands in two would have two states a layer.
            found[number] = TextError(
                f"{count} tokens with special ones, and a row has {most}; "
                "fix: Model.tokens, which reads long texts in windows"
            )
        else:
            rows[number] = tokenizer.frame_ids(ids)
    numbers = list(rows)
    layers = tuple(range(engine.config.num_layers + 1))
    for group in plan([len(row) for row in rows.values()], budget=engine.budget):
        batch = Ragged.from_rows([rows[numbers[i]] for i in group])
        hidden = engine.run(batch, Request(layers=layers)).hidden
        for n, i in enumerate(group):
            row = slice(batch.offsets[n], batch.offsets[n + 1])
            found[numbers[i]] = np.stack([hidden[layer][row] for layer in layers])
    return found


def token_vectors(
    engine: Engine,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    layers: Sequence[int],
    words: bool = False,
    long: Long = "window",
    special: bool = True,
) -> list[TokenVectors | TextError]:
    """Vectors of each text's tokens without special ones, or of its words."""
    width = engine.config.hidden_size
    cutter = Cutter(tokenizer=tokenizer, limit=engine.config.max_tokens, long=long)
    contents = tokenizer.contents(texts, special=special)
    cuts = [t if isinstance(t, TextError) else cutter.cut(n, t.ids) for n, t in enumerate(contents)]
    parts = [part for cut in cuts if isinstance(cut, list) for part in cut]
    vectors = [
        np.empty((cut[-1].kept[1] if isinstance(cut, list) else 0, width), np.float32)
        for cut in cuts
    ]
    # A text without tokens needs no run.
    for part, vectors_TH in run_parts(engine, [p for p in parts if p.kept[1]], layers):
        a, b = part.kept
        vectors[part.text][a:b] = vectors_TH[a + part.shift : b + part.shift]
    out: list[TokenVectors | TextError] = []
    for text, tokens, cut, vectors_TH in zip(texts, contents, cuts, vectors, strict=True):
        if isinstance(cut, TextError):
            out.append(cut)
            continue
        assert isinstance(tokens, Tokens)
        read = tokens[: len(vectors_TH)]
        spans = trimmed(read.spans, text)
        if words:
            out.append(_of_words(text, read, spans, vectors_TH))
        else:
            offsets = tuple((start, end) for start, end in spans.tolist())
            out.append(TokenVectors(tokenizer.pieces(read.ids), offsets, vectors_TH))
    return out


def _of_words(text: str, tokens: Tokens, spans: Ids, vectors_TH: Array) -> TokenVectors:
    """A word's vector is the mean of its tokens'; tokens of nothing but space are no word."""
    # A token that belongs to no word (-1) is one of its own.
    starts = np.flatnonzero((np.diff(tokens.words, prepend=-2) != 0) | (tokens.words < 0))
    bounds = list(pairwise([*starts, len(tokens)]))
    rough = [(spans[a:b, 0].min(), spans[a:b, 1].max()) for a, b in bounds]
    limits = trimmed(np.array(rough, np.int64).reshape(-1, 2), text).tolist()
    kept = [n for n, (start, end) in enumerate(limits) if text[start:end].strip()]
    means = [vectors_TH[slice(*bounds[n])].mean(axis=0) for n in kept]
    offsets = tuple((limits[n][0], limits[n][1]) for n in kept)
    return TokenVectors(
        tuple(text[start:end] for start, end in offsets),
        offsets,
        np.stack(means) if means else vectors_TH[:0],
    )
