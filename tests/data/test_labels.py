import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.data import labels
from enrobe.data.label_sets import LabelSet, bio, has_spans, in_order, label_names, one_spelling
from enrobe.data.labels import CharSpan, GoldAnswer
from enrobe.errors import TextError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("pos", "pos"),
        (" pos ", "pos"),
        (1, "1"),
        (1.0, "1"),
        ("1", "1"),
        (0.5, "0.5"),
        (-3, "-3"),
        (True, "true"),
        (False, "false"),
        ("", None),
        ("  ", None),
        (None, None),
        (math.nan, None),
    ],
)
def test_a_class(value: object, expected: str | None) -> None:
    assert labels.one_label(value) == expected


@pytest.mark.parametrize("value", [["a"], {"a": 1}, "\ud800"])
def test_what_is_no_class(value: object) -> None:
    with pytest.raises(TextError):
        labels.one_label(value)


def test_a_number() -> None:
    assert [labels.number(value) for value in ("3.8", 4, " -1e-2 ", "", None, "NaN", math.nan)] == [
        3.8,
        4.0,
        -0.01,
        *[None] * 4,
    ]
    for value in ("three", "inf", math.inf, True, [1], "1_000"):
        with pytest.raises(TextError):
            labels.number(value)


def test_several_labels() -> None:
    assert labels.several(["b", "a", "b", None], ",") == ("a", "b")
    assert labels.several("b, a", ",") == labels.several('["b", "a"]', ",") == ("a", "b")
    assert labels.several("b|a", "|") == ("a", "b")
    assert labels.several([1, 2.0], ",") == ("1", "2")
    assert labels.several("", ",") == labels.several([], ",") == ()
    assert labels.several(None, ",") is None
    assert labels.several(3, ",") == ("3",)
    with pytest.raises(TextError):
        labels.several({"a": 1}, ",")
    with pytest.raises(TextError):
        labels.several([["a"]], ",")


def test_marked_columns() -> None:
    assert labels.marked({"toxic": "1", "rude": 0, "threat": True}) == ("threat", "toxic")
    assert labels.marked({"a": 0.0, "b": "False"}) == ()
    assert labels.marked({"a": "", "b": None}) is None
    for wrong in ("", "2", "yes"):
        with pytest.raises(TextError, match="column 'b'"):
            labels.marked({"a": 1, "b": wrong})


def test_tags_of_words() -> None:
    words = ("New", "York", "!")
    expected = ("B-x", "I-x", "O")
    assert labels.tags(["B-x", "I-x", "O"], "", words) == (expected, words)
    assert labels.tags("B-x I-x O", "New York  !", None) == (expected, words)
    assert labels.tags('["B-x", "I-x", "O"]', "New York !", None) == (expected, words)
    assert labels.tags([1, 2, 0], "", words) == (("1", "2", "0"), words)
    assert labels.tags(None, "", words) == labels.tags("", "", words) == (None, words)
    assert labels.tags([], "", ()) == ((), ())
    for wrong in (["O"], ["O"] * 4, ["O", "", "O"], ["O", None, "O"], 5, ["O", ["O"], "O"]):
        with pytest.raises(TextError):
            labels.tags(wrong, "", words)


def test_spans_of_characters() -> None:
    text = "in New York"
    span = CharSpan(3, 11, "LOC")
    for value in (
        [{"start": 3, "end": 11, "label": "LOC"}],
        [{"start": 3, "end": 11, "label": "LOC", "text": "New York", "score": 1}],
        [[3, 11, "LOC"]],
        '[[3, 11, "LOC"]]',
    ):
        assert labels.tags(value, text, None) == ((span,), None)
    assert labels.tags([], text, None) == ((), None)
    both = [[3, 6, "b"], [0, 2, "a"], [6, 7, "c"]]
    found, _ = labels.tags(both, text, None)
    assert found == (CharSpan(0, 2, "a"), CharSpan(3, 6, "b"), CharSpan(6, 7, "c"))
    for wrong in (
        [[3, 12, "x"]],
        [[-1, 2, "x"]],
        [[3, 3, "x"]],
        [[5, 3, "x"]],
        [["3", 4, "x"]],
        [[True, 4, "x"]],
        [[3, 4]],
        [[3, 4, ""]],
        [{"start": 3, "end": 4}],
        [{"start": 3, "end": 6, "label": "x", "text": "York"}],
        [[0, 4, "x"], [3, 6, "y"]],
    ):
        with pytest.raises(TextError):
            labels.tags(wrong, text, None)


CONTEXT = "The Normans came to France. In France they stayed."


def test_answers() -> None:
    gold = GoldAnswer(20, "France")
    for value in (
        [{"text": "France", "answer_start": 20}],
        {"text": ["France", "France"], "answer_start": [20, 20]},
        {"text": "France", "answer_start": 20},
        '[{"text": "France", "answer_start": "20"}]',
        [{"text": "France", "start": 20}, {"text": "", "start": 0}],
    ):
        assert labels.answers(value, None, CONTEXT) == ((gold,), False)
    assert labels.answers("France", "20", CONTEXT) == ((gold,), False)
    assert labels.answers("Normans", None, CONTEXT) == ((GoldAnswer(4, "Normans"),), False)
    assert labels.answers(["Normans", "came"], None, CONTEXT)[0] == (
        GoldAnswer(4, "Normans"),
        GoldAnswer(12, "came"),
    )


def test_no_answer_and_no_label_are_two_things() -> None:
    for value in ([], {"text": [], "answer_start": []}, "[]"):
        assert labels.answers(value, None, CONTEXT) == ((), False)
    assert labels.answers(None, None, CONTEXT, impossible=True) == ((), False)
    for value in (None, "", [{"text": "", "answer_start": 0}], math.nan):
        assert labels.answers(value, None, CONTEXT) == (None, False)


def test_a_wrong_place_is_put_right_where_the_answer_stands_once() -> None:
    for start in (5, 3000, -1):
        value = [{"text": "Normans", "answer_start": start}]
        assert labels.answers(value, None, CONTEXT) == ((GoldAnswer(4, "Normans"),), True)
    with pytest.raises(TextError, match="stands there several times"):
        labels.answers([{"text": "France", "answer_start": 3}], None, CONTEXT)
    with pytest.raises(TextError, match="is not in its context"):
        labels.answers([{"text": "Paris", "answer_start": 20}], None, CONTEXT)


@pytest.mark.parametrize(
    "value",
    [
        5,
        [5],
        [[]],
        {"text": 5},
        {"text": ["a"], "answer_start": [1, 2]},
        {"text": [["a"]], "answer_start": [1]},
        [{"answer_start": 3}],
    ],
)
def test_what_is_no_answer(value: object) -> None:
    with pytest.raises(TextError):
        labels.answers(value, None, CONTEXT)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "start", "end", "label", "answer_start"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(value=JSON, start=JSON, text=st.text("ab c", max_size=8))
def test_any_value_is_a_label_or_a_text_error(value: Any, start: Any, text: str) -> None:
    found: list[object] = []
    for read in (
        lambda: labels.one_label(value),
        lambda: labels.number(value),
        lambda: labels.several(value, ","),
        lambda: labels.marked({"a": value}),
        lambda: labels.tags(value, text, None)[0],
        lambda: labels.tags(value, text, tuple(text.split()))[0],
        lambda: labels.answers(value, start, text)[0],
    ):
        try:
            found.append(read())
        except TextError:
            found.append(None)
    spans, answers = found[4], found[6]
    for span in spans if isinstance(spans, tuple) else ():
        if isinstance(span, CharSpan):
            assert 0 <= span.start < span.end <= len(text)
    for answer in answers if isinstance(answers, tuple) else ():
        assert text[answer.start : answer.start + len(answer.text)] == answer.text != ""


# --- the labels of a task -------------------------------------------------------------------------


def test_order() -> None:
    assert in_order(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert in_order(["b", "10", "9"]) == ("10", "9", "b")
    assert in_order(["I-a", "O", "B-a"]) == ("O", "B-a", "I-a")
    assert bio(["b", "a"]) == ("O", "B-a", "B-b", "I-a", "I-b")


def test_one_spelling() -> None:
    assert one_spelling(["1", "1.0", "0", "00"]) == {"1.0": "1", "00": "0"}
    # A label that is no number makes names of all of them.
    assert one_spelling(["1", "1.0", "beta"]) == {}
    assert one_spelling(["1.0", "2"], ["1", "2"]) == {"1.0": "1"}
    assert one_spelling(["0", "1"], ["neg", "pos"]) == {"0": "neg", "1": "pos"}
    assert one_spelling(["0", "2"], ["neg", "pos"]) == {}
    assert one_spelling(["neg"], ["neg", "pos"]) == {}


def test_a_set_of_labels() -> None:
    found = LabelSet("classify", {"b": 2, "a": 1})
    assert (found.names, found.counts, found.unseen) == (("a", "b"), {"b": 2, "a": 1}, {})
    dev = LabelSet("classify", {"b": 2, "c": 4}, known=("a", "b"))
    assert (dev.names, dev.unseen, dev.refused) == (("a", "b"), {"c": 4}, {})
    strict = LabelSet("classify", {"b": 2, "posi": 4}, allowed=("b", "pos"))
    assert strict.refused == {"posi": 4}
    assert "did you mean 'pos'" in str(strict.wrong("posi"))
    assert strict.wrong("b") is strict.wrong(None) is None
    places = LabelSet("tag", {"0": 3, "1": 1}, allowed=("O", "B-x"))
    assert places.rename(("0", "1", "0")) == ("O", "B-x", "O")
    assert places.said == ["numbers stand for places of labels: 0 is O, 1 is B-x"]
    spans = LabelSet("tag", {"PER": 3, "LOC": 1}, spans=True)
    assert spans.names == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    other = LabelSet("tag", {"PER": 3, "ORG": 1}, known=spans.names, spans=True)
    assert other.unseen == {"ORG": 1}
    assert LabelSet("regress", {}).names == LabelSet("answer", {}).names == ()
    assert LabelSet("regress", {}).rename(3.5) == 3.5


def test_names_in_a_label() -> None:
    spans = (CharSpan(0, 1, "a"), CharSpan(2, 3, "b"))
    assert label_names(spans) == ("a", "b")
    assert label_names(("a", "b")) == ("a", "b")
    assert label_names("a") == ("a",)
    assert label_names(None) == label_names(1.5) == label_names((GoldAnswer(0, "x"),)) == ()
    assert has_spans(spans) and not has_spans(()) and not has_spans(("a",))
