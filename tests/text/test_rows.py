"""Rows that training and prediction share, against the transformers library's and by their laws."""

import lzma
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, TextError
from enrobe.text.rows import (
    Question,
    Row,
    Words,
    answer_places,
    encode_questions,
    encode_texts,
    encode_to_tag,
    trimmed,
)
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.windows import strided
from tests.support import SHARED, toy_tokenizer

ROBERTA = SHARED / "tokenizers/roberta-base"
XLM_ROBERTA = SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "ca", "##t", "a"]
WORDS += ["##b", "##c", ".", ",", "b", "é", "x", "##x", "日", "本"]

TEXTS = st.text(
    st.one_of(
        st.sampled_from(list("abcé ,.\n\t日本กำ😀'-_")), st.characters(exclude_categories=["Cs"])
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder, "bert")


@pytest.fixture(scope="module")
def roberta() -> Tokenizer:
    if not ROBERTA.is_dir():
        pytest.skip("roberta-base's vocabulary files are not on this machine")
    return Tokenizer.from_folder(ROBERTA, "roberta")


@pytest.fixture(scope="module")
def xlm_roberta() -> Tokenizer:
    if not XLM_ROBERTA.is_file():
        pytest.skip("XLM-R's vocabulary file is not on this machine")
    text = lzma.decompress(XLM_ROBERTA.read_bytes()).decode()
    return Tokenizer(tokenizers.Tokenizer.from_str(text), DIALECTS["xlm-roberta"])


@pytest.fixture(scope="module", params=["toy", "bert", "xlm_roberta"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "toy":
        return toy_tokenizer()
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def words_of(tokenizer: Tokenizer, text: str, limit: int = 512) -> list[str]:
    (words,) = encode_to_tag(tokenizer, [text], limit=limit)
    assert isinstance(words, Words)
    return [text[start:end] for start, end in words.spans]


# --- texts and pairs ----------------------------------------------------------------------------


def test_pairs_as_each_family_frames_them(bert: Tokenizer, roberta: Tokenizer) -> None:
    (row,) = encode_texts(bert, ["the cat"], ["sat"], limit=512)
    assert isinstance(row, Row)
    assert bert.pieces(row.ids) == ("[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]")
    assert row.types.tolist() == [0, 0, 0, 0, 1, 1]
    (row,) = encode_texts(roberta, ["the cat"], ["sat"], limit=512)
    assert isinstance(row, Row)
    assert roberta.pieces(row.ids) == ("<s>", "the", "Ġcat", "</s>", "</s>", "sat", "</s>")
    assert not row.types.any() and row.cut == 0


@pytest.mark.parametrize("limit", [10, 11, 40])
def test_a_pair_is_cut_as_transformers_cuts_it(limit: int, roberta: Tokenizer) -> None:
    theirs = transformers.RobertaTokenizerFast.from_pretrained(ROBERTA)
    pairs = [("a b c d e f g h i", "j k"), ("a b", "c d e f g h i j"), ("a b c d", "e f g h")]
    firsts, seconds = zip(*pairs, strict=True)
    rows = encode_texts(roberta, firsts, seconds, limit=limit)
    for row, (a, b) in zip(rows, pairs, strict=True):
        assert isinstance(row, Row)
        expected = theirs(a, b, truncation="longest_first", max_length=limit)["input_ids"]
        whole = theirs(a, b)["input_ids"]
        # From equal lengths on, who gives way first is a matter of taste.
        assert len(row.ids) == len(expected)
        assert row.cut == len(whole) - len(expected)
        if len(a) != len(b):
            assert row.ids.tolist() == expected


def test_given_words_are_read_for_sequence_heads_too(roberta: Tokenizer) -> None:
    (row,) = encode_texts(roberta, [["the", "cat", "</s>"]], limit=512)
    assert isinstance(row, Row)
    assert roberta.pieces(row.ids)[1:3] == ("Ġthe", "Ġcat")
    assert (row.ids == roberta.last_id).sum() == 1


def test_errors_stand_in_their_places(bert: Tokenizer) -> None:
    bad = "a \ud800"
    rows = encode_texts(bert, ["a", bad, ["b", bad], 5], limit=9)  # type: ignore[list-item]
    assert [isinstance(row, TextError) for row in rows] == [False, True, True, True]
    rows = encode_texts(bert, ["a", "b"], ["c", bad], limit=9)
    assert [isinstance(row, TextError) for row in rows] == [False, True]
    tagged = encode_to_tag(bert, [["a", bad], "b", [["a"]]], limit=9)  # type: ignore[list-item]
    assert [isinstance(entry, TextError) for entry in tagged] == [True, False, True]
    asked = encode_questions(bert, ["a", bad, "a"], [bad, "b", "b"], limit=9)
    assert [isinstance(entry, TextError) for entry in asked] == [True, True, False]
    with pytest.raises(CallError, match="2 first texts and 1"):
        encode_texts(bert, ["a", "b"], ["c"], limit=9)


# --- words --------------------------------------------------------------------------------------


def test_a_space_alone_does_not_stand_for_its_word(xlm_roberta: Tokenizer) -> None:
    (words,) = encode_to_tag(xlm_roberta, [["看似", "簡單", "▁", "The", "二"]], limit=64)
    assert isinstance(words, Words)
    (row,) = words.rows
    assert xlm_roberta.pieces(row.ids)[1:4] == ("▁", "看似", "▁")
    read = xlm_roberta.pieces(row.ids[row.places])
    assert [read[0], read[1], *read[-2:]] == ["看似", "簡單", "▁The", "▁二"]
    assert len(row.places) == len(row.units) == 5


def test_words_of_a_text(bert: Tokenizer, roberta: Tokenizer, xlm_roberta: Tokenizer) -> None:
    text = "Paris, (New York)  e\u0301t\u00e9 U.S.\n naïve-ish"
    split = ["Paris", ",", "(", "New", "York", ")", "e\u0301t\u00e9", "U", ".", "S", "."]
    split += ["naïve", "-", "ish"]
    for tokenizer in (bert, roberta, xlm_roberta):
        assert words_of(tokenizer, text) == split
    # A script without spaces has a word a piece; marks stay with their letters.
    assert words_of(roberta, "हिन्दी में") == ["हिन्दी", "में"]
    assert words_of(xlm_roberta, "ฉันรักกรุงเทพ") == ["ฉัน", "รัก", "กรุงเทพ"]
    assert words_of(roberta, "東京 3000円") == ["東", "京", "3000", "円"]
    for blank in ("", " ", "\n \n"):
        assert words_of(roberta, blank) == []


def test_given_words_have_the_prefix_space(roberta: Tokenizer) -> None:
    theirs = transformers.RobertaTokenizerFast.from_pretrained(ROBERTA, add_prefix_space=True)
    words = ["Germany", "'s", "", "representative", "to", "Übersee", ",", "日本", " x"]
    (found,) = encode_to_tag(roberta, [words], limit=512)
    assert isinstance(found, Words)
    expected = theirs(words[:-1], is_split_into_words=True)
    (row,) = found.rows
    count = len(expected["input_ids"]) - 1
    assert row.ids[:count].tolist() == expected["input_ids"][:count]
    firsts = {}
    for place, word in enumerate(expected.word_ids()):
        if word is not None:
            firsts.setdefault(word, place)
    assert dict(zip(row.units.tolist(), row.places.tolist(), strict=True)) == {
        **firsts,
        8: count,
    }
    assert found.spans.tolist() == [[n, n + 1] for n in range(9)]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS, limit=st.integers(5, 20))
def test_words_and_windows_by_their_laws(tokenizer: Tokenizer, text: str, limit: int) -> None:
    (words,) = encode_to_tag(tokenizer, [text], limit=limit)
    assert isinstance(words, Words)
    assert (words.spans[:, 0] < words.spans[:, 1]).all()
    assert (words.spans[1:, 0] >= words.spans[:-1, 1]).all()
    for start, end in words.spans:
        assert text[start:end] == text[start:end].strip() != ""
    # Every word is in one row.
    units = np.concatenate([row.units for row in words.rows])
    assert units.tolist() == list(range(len(words.spans)))
    (whole,) = encode_texts(tokenizer, [text], limit=10**6)
    (first,) = encode_texts(tokenizer, [text], limit=limit)
    assert isinstance(whole, Row) and isinstance(first, Row)
    assert words.rows[0].ids.tolist() == first.ids.tolist()
    assert words.rows[0].cut == first.cut
    for row in words.rows:
        assert len(row.ids) <= limit
        assert ((row.places > 0) & (row.places < len(row.ids) - 1)).all()
        assert row.cut + len(row.ids) == len(whole.ids)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    words=st.lists(st.one_of(st.sampled_from(["a", "the", "", " ", "日本"]), TEXTS), max_size=12),
    limit=st.integers(4, 20),
)
def test_given_words_by_their_laws(tokenizer: Tokenizer, words: list[str], limit: int) -> None:
    (found,) = encode_to_tag(tokenizer, [words], limit=limit)
    assert isinstance(found, Words) and len(found.spans) == len(words)
    units = np.concatenate([row.units for row in found.rows]).tolist()
    assert units == sorted(set(units))
    assert {n for n, word in enumerate(words) if word.isalnum() and word.isascii()} <= set(units)
    # The piece at each place is the first one of the word read alone, a space aside.
    for row in found.rows:
        for place, unit in zip(row.places, row.units, strict=True):
            (alone,) = encode_to_tag(tokenizer, [[words[unit]]], limit=10**6)
            assert isinstance(alone, Words)
            (whole,) = alone.rows
            (first,) = whole.places
            assert first == 1 or (first == 2 and whole.ids[1] == tokenizer.space_id)
            assert row.ids[place] == whole.ids[first]


def test_a_word_is_answered_for_where_it_is_nearest_the_middle(bert: Tokenizer) -> None:
    (words,) = encode_to_tag(bert, ["a " * 40], limit=12)
    assert isinstance(words, Words)
    # Rows have ten pieces after the first special token, and are spread evenly.
    for row in words.rows[1:-1]:
        assert (np.abs(row.places - 5.5) <= 3).all()


# --- questions ----------------------------------------------------------------------------------


def test_windows_are_those_of_transformers(roberta: Tokenizer) -> None:
    theirs = transformers.RobertaTokenizerFast.from_pretrained(ROBERTA)
    question, context = "who is it?", "ab c, de. " * 300
    (found,) = encode_questions(roberta, [question], [context], limit=128, overlap=40)
    assert isinstance(found, Question)
    expected = theirs(
        question,
        context,
        truncation="only_second",
        max_length=128,
        stride=40,
        return_overflowing_tokens=True,
    )
    assert [row.ids.tolist() for row in found.rows] == expected["input_ids"]
    for n, row in enumerate(found.rows):
        inside = [i for i, side in enumerate(expected.sequence_ids(n)) if side == 1]
        assert row.places.tolist() == inside


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=TEXTS, context=TEXTS, limit=st.integers(6, 20), overlap=st.integers(0, 30))
def test_questions_by_their_laws(
    tokenizer: Tokenizer, question: str, context: str, limit: int, overlap: int
) -> None:
    (found,) = encode_questions(tokenizer, [question], [context], limit=limit, overlap=overlap)
    assert isinstance(found, Question)
    (alone,) = tokenizer.contents([context])
    assert not isinstance(alone, TextError)
    assert set(np.concatenate([row.units for row in found.rows])) == set(range(len(alone)))
    for row in found.rows:
        assert len(row.ids) <= limit
        assert row.ids[row.places].tolist() == alone.ids[row.units].tolist()
        assert len(row.places) == 0 or row.places[0] > 0
    for start, end in found.spans:
        assert 0 <= start <= end <= len(context)


def test_a_question_without_end_leaves_half_of_the_row(bert: Tokenizer) -> None:
    (found,) = encode_questions(bert, ["a " * 1000], ["b " * 20], limit=23)
    assert isinstance(found, Question)
    assert found.cut == 990
    assert all(len(row.ids) <= 23 for row in found.rows)
    assert found.rows[0].cut == 990 + 10
    with pytest.raises(CallError, match="no room"):
        encode_questions(bert, ["a"], ["b"], limit=4)
    with pytest.raises(CallError, match="1 questions and 2 contexts"):
        encode_questions(bert, ["a"], ["b", "b"], limit=40)


def test_where_an_answer_stands(roberta: Tokenizer) -> None:
    context = "In the 1920s, quantum  field theory began. " * 20
    (found,) = encode_questions(roberta, ["when?"], [context], limit=40, overlap=12)
    assert isinstance(found, Question)
    at = context.index("1920s", 300)
    seen = 0
    for row in found.rows:
        first, last = answer_places(row, found.spans, at, at + 5)
        if (first, last) == (0, 0):
            held = set(row.units.tolist())
            tokens = np.flatnonzero((found.spans[:, 1] > at) & (found.spans[:, 0] < at + 5))
            assert not set(tokens.tolist()) <= held
            continue
        seen += 1
        assert roberta.decode(row.ids[first : last + 1]).strip() == "1920s"
    assert seen
    (empty,) = encode_questions(roberta, ["when?"], [""], limit=40)
    assert isinstance(empty, Question)
    assert answer_places(empty.rows[0], empty.spans, 0, 3) == (0, 0)


@given(length=st.integers(0, 60), size=st.integers(1, 20), overlap=st.integers(0, 30))
def test_strided_windows(length: int, size: int, overlap: int) -> None:
    windows = strided(length, size, min(overlap, size // 2))
    assert windows[0][0] == 0 and windows[-1][1] == length
    for (a, b), (c, d) in pairwise(windows):
        assert b - a == size and b - c == min(overlap, size // 2) and d - c <= size and d > b
    assert len(windows) == 1 or length > size


def test_trimmed_spans_stay_within_their_text() -> None:
    spans = np.array([[0, 3], [3, 4], [2, 99]])
    assert trimmed(spans, " a b  ").tolist() == [[1, 2], [3, 4], [3, 4]]


def test_a_very_long_text(bert: Tokenizer) -> None:
    (words,) = encode_to_tag(bert, ["ab c, " * 50_000], limit=512)
    assert isinstance(words, Words) and len(words.spans) == 150_000
