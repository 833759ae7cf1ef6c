"""Pseudo-log-likelihood: how likely a masked language model finds a sentence.

    plain        PLL(x) = sum_t log p(x_t | x without t)                 Salazar et al. 2020
    within_word  the same, with the later pieces of x_t's word masked too,
                 so that a long word does not give itself away           Kauf and Ivanova 2023

Legend: V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Literal, get_args

import numpy as np

from enrobe.engines.base import Array, Engine
from enrobe.errors import CallError, TextError, nearest, show
from enrobe.tasks.masked import MaskedRow, run_masked
from enrobe.tasks.results import Score
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from enrobe.text.windows import around

Method = Literal["plain", "within_word"]

_ROWS = 2048
"""Rows held at once: a text has a row a token, and a long text must not have them all."""


def score(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str], method: Method = "plain"
) -> list[Score | TextError]:
    """One Score a text, in order; a text that cannot be scored has its TextError there.

    Special tokens in a text are plain text. A text longer than the model is scored token by token
    within the window that has the token nearest its middle.
    """
    if method not in get_args(Method):
        allowed = get_args(Method)
        hint = nearest(str(method), allowed)
        raise CallError(f"method is {show(method)}; allowed: {', '.join(allowed)}{hint}")
    contents = [
        TextError("the text has no token to score")
        if isinstance(tokens, Tokens) and not len(tokens)
        else tokens
        for tokens in tokenizer.contents(texts, special=False)
    ]
    totals = np.zeros(len(texts))
    rows = _rows(engine, tokenizer, contents, method)
    while chunk := list(islice(rows, _ROWS)):
        texts_of, masked, answers = zip(*chunk, strict=True)
        pick = partial(_at, answers)
        np.add.at(totals, list(texts_of), run_masked(engine, masked, pick))
    return [
        Score(text, float(total), len(tokens)) if isinstance(tokens, Tokens) else tokens
        for text, total, tokens in zip(texts, totals, contents, strict=True)
    ]


def _at(answers: Sequence[int], index: int, values_MV: Array) -> float:
    return float(values_MV[0, answers[index]])


def _rows(
    engine: Engine,
    tokenizer: Tokenizer,
    contents: Sequence[Tokens | TextError],
    method: Method,
) -> Iterator[tuple[int, MaskedRow, int]]:
    """(text, row with a masked place, the id that stands there) for every token of every text."""
    size = engine.config.max_tokens - tokenizer.frame_size
    for index, tokens in enumerate(contents):
        if isinstance(tokens, TextError):
            continue
        ends = _word_ends(tokens) if method == "within_word" else np.arange(len(tokens)) + 1
        for place in range(len(tokens)):
            (((start, stop), _),) = around([(place, place + 1)], len(tokens), size)
            ids = tokens.ids[start:stop].copy()
            ids[place - start : max(0, int(ends[place]) - start)] = tokenizer.mask_id
            at = np.array([place - start + tokenizer.frame_before], np.int64)
            yield index, MaskedRow(tokenizer.frame_ids(ids), at), int(tokens.ids[place])


def _word_ends(tokens: Tokens) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each token's word ends, in tokens."""
    last = np.flatnonzero(np.append(np.diff(tokens.words) != 0, True)) + 1
    return last[np.searchsorted(last, np.arange(len(tokens)), side="right")]
