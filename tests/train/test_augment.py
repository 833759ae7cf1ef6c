"""Rows with other words: what stays where it was, and what may take a word's place."""

import numpy as np
import pytest

from enrobe.text.tokenizer import Tokenizer
from enrobe.train.augment import other_words
from enrobe.train.supervised import TrainRow
from tests.support import toy_tokenizer

TEXTS = ["the cat sat on the mat", "a hat was here and there", "cat", "unbelievable sats"]


def rows_of(tokenizer: Tokenizer, texts: list[str]) -> list[TrainRow]:
    rows = []
    for number, contents in enumerate(tokenizer.ids(texts)):
        assert isinstance(contents, np.ndarray)
        ids = tokenizer.frame_ids(contents)
        targets = {"a": np.int64(number)}
        rows.append(TrainRow(ids, np.zeros_like(ids), np.array([1, len(ids) - 2]), targets))
    return rows


def test_the_frame_the_places_and_the_targets_stay() -> None:
    tokenizer = toy_tokenizer()
    rows = rows_of(tokenizer, TEXTS)
    words = {int(i) for row in rows for i in row.ids}
    for seed in range(20):
        made = other_words(rows, tokenizer, share=0.3, limit=99, seed=seed)
        for row, other in zip(rows, made, strict=True):
            assert other.targets is row.targets and not other.soft
            assert len(other.ids) == len(other.types)
            assert other.ids[0] == row.ids[0] and other.ids[-1] == row.ids[-1]
            assert {int(i) for i in other.ids} <= words | {tokenizer.mask_id}
            assert len(other.places) == 2 and other.places[0] == 1
            # What is at the end stays at the end, whatever is longer before it.
            assert other.places[1] < len(other.ids) - 1


def test_a_word_is_replaced_in_each_row_and_all_of_them_if_asked() -> None:
    tokenizer = toy_tokenizer()
    rows = rows_of(tokenizer, TEXTS) * 20
    made = other_words(rows, tokenizer, share=1e-9, limit=99, seed=0)
    masked = sum(tokenizer.mask_id in other.ids for other in made)
    # By the mask as often as by a word, which may be the same one.
    assert len(rows) * 0.3 < masked < len(rows) * 0.7
    every = other_words(rows, tokenizer, share=1.0, limit=99, seed=0)
    shares = [(other.ids[1:-1] == tokenizer.mask_id).mean() for other in every]
    assert 0.35 < np.mean(shares) < 0.65


def test_a_seed_has_its_own_words() -> None:
    tokenizer = toy_tokenizer()
    rows = rows_of(tokenizer, TEXTS)
    first, again, other = (
        [row.ids.tolist() for row in other_words(rows, tokenizer, share=0.5, limit=99, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_no_row_grows_beyond_the_limit() -> None:
    tokenizer = toy_tokenizer()
    rows = rows_of(tokenizer, TEXTS)
    longest = max(len(row.ids) for row in rows)
    assert any(
        len(row.ids) > longest
        for seed in range(30)
        for row in other_words(rows, tokenizer, share=0.9, limit=99, seed=seed)
    )
    for seed in range(30):
        made = other_words(rows, tokenizer, share=0.9, limit=longest, seed=seed)
        assert all(len(row.ids) <= longest for row in made)


@pytest.mark.parametrize("ids", [[0, 2], [0, 2, 2]])
def test_a_row_without_words_stays(ids: list[int]) -> None:
    tokenizer = toy_tokenizer()
    frame = tokenizer.special_ids[:1].repeat(len(ids))
    row = TrainRow(frame, np.zeros_like(frame), frame[:0])
    (made,) = other_words([row], tokenizer, share=0.5, limit=9, seed=0)
    assert (made.ids == frame).all()
