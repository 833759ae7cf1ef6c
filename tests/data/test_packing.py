import lzma
import os
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.data.corpus import Corpus, build
from enrobe.data.packing import Documents, FullSentences, Mixture, permute
from enrobe.errors import CallError
from enrobe.text.tokenizer import Tokenizer
from tests.support import SHARED, random_documents, toy_tokenizer, write_txt

VALID = SHARED / "data/text-simplewiki/valid.txt.xz"
FIRST, LAST = 0, 2


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return toy_tokenizer()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def make(folder: Path, files: list[list[str]], tokenizer: Tokenizer) -> Corpus:
    sources = [write_txt(folder / f"{i}.txt", documents) for i, documents in enumerate(files)]
    shutil.rmtree(folder / "corpus", ignore_errors=True)
    return build(folder / "corpus", sources, tokenizer)


@pytest.fixture(scope="module")
def corpus(toy: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Several shards, one of them empty, one with more documents than a step of the index."""
    files = [random_documents(1, 40), [], random_documents(2, 1_300, words=4), ["a"]]
    return make(tmp_path_factory.mktemp("packing"), files, toy)


def rows(packed: FullSentences | Documents) -> list[list[int]]:
    found = [packed.row(i) for i in range(len(packed))]
    assert all(row.dtype == np.int64 for row in found)
    return [row.tolist() for row in found]


def documents(corpus: Corpus) -> list[list[int]]:
    return [corpus.document(i).tolist() for i in range(corpus.documents)]


def full_sentences(texts: list[list[int]], length: int) -> list[list[int]]:
    """The definition, written down slowly."""
    stream = [i for text in texts for i in [*text, LAST]][:-1]
    out = []
    for start in range(0, len(stream), length - 2):
        piece = stream[start : start + length - 2]
        piece = piece[1:] if piece[0] == LAST else piece
        piece = piece[:-1] if piece[-1] == LAST else piece
        out.append([FIRST, *piece, LAST])
    return out


def whole_documents(texts: list[list[int]], length: int) -> list[list[int]]:
    return [
        [FIRST, *text[start : start + length - 2], LAST]
        for text in texts
        for start in range(0, len(text), length - 2)
    ]


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [5, 6, 17, 128, 100_000])
def test_rows_are_the_definitions(length: int, corpus: Corpus, toy: Tokenizer) -> None:
    texts = documents(corpus)
    assert rows(FullSentences(corpus, toy, length=length)) == full_sentences(texts, length)
    assert rows(Documents(corpus, toy, length=length)) == whole_documents(texts, length)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    files=st.lists(
        st.lists(st.text("abc", min_size=1, max_size=20), max_size=12), min_size=1, max_size=4
    ),
    length=st.integers(5, 30),
)
def test_any_corpus_is_packed_without_loss(
    files: list[list[str]], length: int, toy: Tokenizer, tmp_path: Path
) -> None:
    corpus = make(tmp_path, files, toy)
    if not corpus.documents:
        with pytest.raises(CallError, match="no document"):
            FullSentences(corpus, toy, length=length)
        return
    tokens = [i for text in documents(corpus) for i in text]
    full = FullSentences(corpus, toy, length=length)
    assert rows(full) == full_sentences(documents(corpus), length)
    assert rows(Documents(corpus, toy, length=length)) == whole_documents(documents(corpus), length)
    for packed in (full, Documents(corpus, toy, length=length)):
        found = rows(packed)
        # Each token once, in order; special tokens only where they belong.
        assert [i for row in found for i in row if i not in (FIRST, LAST)] == tokens
        for row in found:
            assert 3 <= len(row) <= length
            assert (row[0], row[-1]) == (FIRST, LAST)
            assert row.count(FIRST) == 1
            assert (LAST, LAST) not in pairwise(row)
            assert row[1] != LAST
        for index in (-1, len(packed)):
            with pytest.raises(IndexError):
                packed.row(index)


def test_every_token_comes_once_an_epoch(corpus: Corpus, toy: Tokenizer) -> None:
    packed = FullSentences(corpus, toy, length=64)
    order = Mixture([len(packed)], [1], seed=3)
    tokens = [i for text in documents(corpus) for i in text]
    orders = []
    for epoch in range(2):
        places = [order.at(epoch * len(packed) + i) for i in range(len(packed))]
        assert {place.epoch for place in places} == {epoch}
        found = {place.row: packed.row(place.row).tolist() for place in places}
        read = [i for row in sorted(found) for i in found[row] if i not in (FIRST, LAST)]
        assert read == tokens
        orders.append([place.row for place in places])
    assert orders[0] != orders[1]


def test_more_than_99_percent_of_a_real_row_is_used(toy: Tokenizer, tmp_path: Path) -> None:
    if not VALID.is_file():
        pytest.skip("the real text is not on this machine")
    path = tmp_path / "a.txt"
    with lzma.open(VALID) as file:
        path.write_bytes(file.read(3_000_000))
    corpus = build(tmp_path / "corpus", [path], toy)
    packed = FullSentences(corpus, toy, length=512)
    used = sum(len(packed.row(i)) for i in range(len(packed)))
    share = used / (len(packed) * 512)
    print(f"{len(packed)} rows, {corpus.tokens} tokens, packing {share:.4%}")
    assert share > 0.99
    assert used <= corpus.tokens + corpus.documents + 2 * len(packed)


def test_an_empty_corpus_and_short_rows_are_refused(
    corpus: Corpus, toy: Tokenizer, tmp_path: Path
) -> None:
    empty = make(tmp_path, [[]], toy)
    for kind in (FullSentences, Documents):
        with pytest.raises(CallError, match="no document"):
            kind(empty, toy)
        with pytest.raises(CallError, match="allowed: 5 or more"):
            kind(corpus, toy, length=4)


# --- the permutation -----------------------------------------------------------------------------


def test_every_size_is_a_bijection() -> None:
    for size in range(1, 301):
        assert sorted(permute(i, size, 7, size) for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [65_537, 1_000_003, 2**40, 10**18 + 9])
def test_a_large_size_is_one_where_it_is_sampled(size: int) -> None:
    generator = random.Random(size)
    sample = {*range(5_000), *(generator.randrange(size) for _ in range(5_000)), size - 1}
    images = {permute(i, size, 1, 2) for i in sample}
    assert len(images) == len(sample)
    assert 0 <= min(images) and max(images) < size
    # Spread over the whole range: a tenth of the images in each tenth of it, more or less.
    tenths = Counter(image * 10 // size for image in images)
    assert all(abs(tenths[i] / len(images) - 0.1) < 0.02 for i in range(10)), tenths


def test_seed_and_epoch_choose_the_order() -> None:
    size = 1_000
    keys = [(1, 0), (1, 1), (2, 0), (2, 1), (-1, 0), (1, 0, 1), (10, 0), (1, 10)]
    orders = [[permute(i, size, *key) for i in range(size)] for key in keys]
    for i, one in enumerate(orders):
        for other in orders[i + 1 :]:
            # Two independent permutations agree at one place, on average.
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 12
        # Neighbours do not stay together, and a row does not stay near its place.
        assert sum(abs(a - b) == 1 for a, b in pairwise(one)) < 15
        moved = np.abs(np.array(one) - np.arange(size)).mean()
        assert 0.3 < moved / size < 0.37
    assert orders[0] == [permute(i, size, 1, 0) for i in range(size)]


def test_each_place_is_as_likely_for_the_first() -> None:
    for size in (2, 3, 7, 10):
        counts = Counter(permute(0, size, 1, epoch) for epoch in range(3_000))
        expected = 3_000 / size
        # Five standard deviations of a binomial count.
        spread = 5 * (expected * (1 - 1 / size)) ** 0.5
        assert all(abs(counts[i] - expected) < spread for i in range(size)), counts


def test_the_order_takes_no_memory() -> None:
    size = 10**15
    order = Mixture([size, size], [3, 1], seed=1)
    order.at(5)
    tracemalloc.start()
    for position in range(0, size, size // 500):
        order.at(position)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000


# --- mixtures -----------------------------------------------------------------------------------


def check_shares(weights: Sequence[float], positions: int) -> None:
    order = Mixture([10] * len(weights), weights, seed=1)
    sources = np.array([order.at(i).source for i in range(positions)])
    counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    share = np.array(weights, np.float64) / np.sum(weights)
    error = counts - np.arange(1, positions + 1)[:, None] * share
    assert np.abs(error).max() < 1 + 1e-9, weights
    # Any stretch, from any beginning.
    assert (error.max(0) - error.min(0) < 2).all(), weights


def test_shares_hold_within_one_row() -> None:
    for weights in ([4, 3, 1, 0.2], [1], [1, 1], [0.9, *[0.01] * 10], [1000, 1, 1, 1, 1], [2 / 4]):
        check_shares(weights, 3_000)


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=7))
def test_shares_of_any_weights_hold_within_one_row(weights: list[float]) -> None:
    check_shares(weights, 2 * int(sum(weights)) + 3)


def test_each_source_goes_through_its_rows_before_it_repeats_them() -> None:
    sizes, weights = [37, 11, 200], [4, 3, 0.5]
    order = Mixture(sizes, weights, seed=9)
    places = [order.at(i) for i in range(1_500)]
    for source, size in enumerate(sizes):
        mine = [place for place in places if place.source == source]
        assert [place.epoch for place in mine] == [i // size for i in range(len(mine))]
        epochs = [
            [place.row for place in mine[start : start + size]]
            for start in range(0, len(mine) - size + 1, size)
        ]
        assert all(sorted(rows) == list(range(size)) for rows in epochs)
        assert all(a != b for a, b in pairwise(epochs))
    assert places[-1].source in range(3)
    assert max(p.epoch for p in places if p.source == 1) > 3
    assert max(p.epoch for p in places if p.source == 2) == 0


def test_a_position_is_all_that_a_resumption_needs() -> None:
    def new(seed: int = 9) -> Mixture:
        return Mixture([37, 11], [0.7, 0.3], seed=seed)

    one = [new().at(i) for i in range(100)]
    order = new()
    assert [order.at(i) for i in reversed(range(100))] == one[::-1]
    assert [new(8).at(i) for i in range(100)] != one
    assert new().at(10**15) == new().at(10**15)


def test_two_sources_of_a_size_have_orders_of_their_own() -> None:
    order = Mixture([50, 50], [1, 1], seed=1)
    places = [order.at(i) for i in range(100)]
    first, second = ([p.row for p in places if p.source == k] for k in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([], [], "allowed: one each"),
        ([5], [1, 2], "allowed: one each"),
        ([5, 0], [1, 2], "without a row"),
        ([5, 5], [1, 0], "allowed: positive numbers"),
        ([5, 5], [1, -1], "allowed: positive numbers"),
        ([5, 5], [1, float("nan")], "allowed: positive numbers"),
        ([5, 5], [1, float("inf")], "allowed: positive numbers"),
        ([5, 5], [1, 0.123456789], "fewer digits"),
        ([5, 5], [1e300, 1], "fewer digits"),
    ],
)
def test_weights_that_make_no_mixture(sizes: list[int], weights: list[float], message: str) -> None:
    with pytest.raises(CallError, match=message) as caught:
        Mixture(sizes, weights, seed=1)
    assert "\n" not in str(caught.value)
