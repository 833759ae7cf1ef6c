"""Sequence heads, and all heads in one pass, against transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import enrobe
from enrobe import CallError, ModelError, Prediction, Span, TextError
from enrobe.tasks.heads import run_heads
from enrobe.tasks.predict import prediction
from enrobe.text.rows import Row, encode_texts
from tests.support import FAMILIES, reference_outputs, scaled_error
from tests.tasks.heads import WORDS, Counting, bert_folder, bert_tokenizer, several, with_head
from tests.tasks.toys import word_folder

KINDS = ("classify", "multilabel", "regress")
TEXTS = ["the cat sat on the mat.", "", "w3 w4 w5 w6 " * 9, "who?", "sitting mats"]
# An empty second text is one here; the pipeline would leave it out, and the pair's frame with it.
PAIRS = [("the cat", "sat on the mat"), ("", "w5"), ("w1 " * 20, "w2 " * 30)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, kind: str, tmp_path: Path) -> None:
    theirs = word_folder(tmp_path, family, head=kind, seed=4)
    model = enrobe.load(tmp_path)
    firsts = ["w5 w6 w7", "", "w9 " * 300, "w8 w9 w10 w11"]
    seconds = ["w12", "w13 w14", "w15 " * 300, "w16 w17"]
    rows = [r for r in encode_texts(model.tokenizer, firsts, limit=512) if isinstance(r, Row)]
    rows += [
        r for r in encode_texts(model.tokenizer, firsts, seconds, limit=512) if isinstance(r, Row)
    ]
    assert len(rows) == 8
    expected = reference_outputs(theirs, [r.ids for r in rows], [r.types for r in rows]).logits
    logits = [values[kind] for values in run_heads(model.engine, rows, [kind])]
    for ours, other in zip(logits, expected, strict=True):
        assert scaled_error(ours, other) <= 1e-5
    head = model.engine.heads[kind]
    found = model.predict(firsts) + model.predict(pairs=list(zip(firsts, seconds, strict=True)))
    for result, other in zip(found, expected, strict=True):
        wanted = prediction(kind, head, other)
        assert result.label == wanted.label
        for label, value in wanted.probabilities.items():
            assert result.probabilities[label] == pytest.approx(value, abs=1e-5)
        if wanted.value is not None:
            assert result.value == pytest.approx(wanted.value, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_pipelines(kind: str, tmp_path: Path) -> None:
    theirs = transformers.TextClassificationPipeline(
        model=bert_folder(tmp_path, kind), tokenizer=bert_tokenizer(tmp_path), top_k=None
    )
    model = enrobe.load(tmp_path)
    inputs = [*TEXTS, *({"text": a, "text_pair": b} for a, b in PAIRS)]
    expected = [theirs([one])[0] for one in inputs]
    found = model.predict(TEXTS) + model.predict(pairs=PAIRS)
    for result, wanted in zip(found, expected, strict=True):
        assert result.error is None and result.cut == 0 and result.head == kind
        scores = {entry["label"]: entry["score"] for entry in wanted}
        if kind == "regress":
            assert [result.value] == pytest.approx(list(scores.values()), rel=1e-5)
            continue
        assert result.probabilities == pytest.approx(scores, abs=1e-5)
        best = max(scores, key=scores.__getitem__)
        if kind == "classify":
            assert result.label == best
            assert result.probability == pytest.approx(scores[best], abs=1e-5)
            assert sum(result.probabilities.values()) == pytest.approx(1)
        else:
            assert result.label == tuple(n for n in result.probabilities if scores[n] >= 0.5)


def test_temperature_and_thresholds(tmp_path: Path) -> None:
    bert_folder(tmp_path / "a", "classify")
    model = enrobe.load(tmp_path / "a")
    (sharp,) = model.predict("the cat")
    (soft,) = with_head(model, temperature=3.0).predict("the cat")
    assert soft.label == sharp.label
    logs = np.log(list(sharp.probabilities.values()))
    assert np.log(list(soft.probabilities.values())) - logs / 3 == pytest.approx(
        np.full(5, (np.log(list(soft.probabilities.values())) - logs / 3)[0])
    )
    bert_folder(tmp_path / "b", "multilabel")
    model = enrobe.load(tmp_path / "b")
    (plain,) = model.predict("the cat")
    values = list(plain.probabilities.values())
    (all_of_them,) = with_head(model, thresholds=tuple(values)).predict("the cat")
    assert all_of_them.label == tuple(plain.probabilities)
    (none,) = with_head(model, thresholds=(1.0,) * 5).predict("the cat")
    assert none.label == ()


def test_numbers_at_the_ends_of_their_range() -> None:
    from enrobe.config import HeadConfig

    logits = np.array([1e30, -1e30, 0.0], np.float32)
    labels = ("a", "b", "c")
    found = prediction("h", HeadConfig(kind="multilabel", labels=labels), logits)
    assert list(found.probabilities.values()) == [1.0, 0.0, 0.5] and found.label == ("a", "c")
    found = prediction("h", HeadConfig(kind="classify", labels=labels), logits)
    assert list(found.probabilities.values()) == [1.0, 0.0, 0.0]
    found = prediction("h", HeadConfig(kind="regress", labels=labels), logits)
    assert found.value == pytest.approx(dict(zip(labels, logits.tolist(), strict=True)))
    json.dumps(found.to_dict(), allow_nan=False)


def test_alone_equals_batched(tmp_path: Path) -> None:
    bert_folder(tmp_path, "classify")
    model = enrobe.load(tmp_path)
    texts = [*TEXTS, "the " * 600]
    for text, together in zip(texts, model.predict(texts), strict=True):
        (alone,) = model.predict(text)
        assert together.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_what_is_cut_is_counted(tmp_path: Path) -> None:
    bert_folder(tmp_path, "classify")
    model = enrobe.load(tmp_path)
    found = model.predict(["the " * 600, "the " * 510])
    assert [result.cut for result in found] == [90, 0]
    (pair,) = model.predict(pairs=[("the " * 400, "cat " * 9)])
    assert pair.cut == 0
    (pair,) = model.predict(pairs=[("the " * 600, "cat " * 9)])
    assert pair.cut == 100
    # A head reads rows as long as those that it was trained on.
    (short,) = with_head(model, limit=12).predict("the " * 600)
    assert short.cut == 590


def test_errors_are_raised_or_collected(tmp_path: Path) -> None:
    bert_folder(tmp_path, "classify")
    model = enrobe.load(tmp_path)
    with pytest.raises(TextError, match=r"text 1: .*surrogate"):
        model.predict(["a", "\ud800"])
    found = model.predict(["a", "\ud800", 5], errors="collect")  # type: ignore[list-item]
    assert [result.error is None for result in found] == [True, False, False]
    assert found[1].label is None and found[1].probability is None and found[1].head == "classify"
    assert model.predict([]) == []
    assert model.predict(pairs=[]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got none of them"),
        ({"texts": "a", "words": [["a"]]}, "got texts and words"),
        ({"texts": [("a", "b")]}, "fix: pairs= or words="),
        ({"pairs": ("a", "b")}, r"pairs has 'a'"),
        ({"pairs": [("a", "b", "c")]}, r"allowed: a list of \(first, second\)"),
        ({"pairs": "ab"}, "pairs is 'ab'"),
        ({"words": ["a b"]}, "words has 'a b'"),
        ({"words": "a"}, "words is 'a'"),
        ({"texts": "a", "head": "clasify"}, "did you mean 'classify'"),
        ({"texts": "a", "errors": "no"}, "errors is 'no'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    given: dict[str, object], message: str, tmp_path: Path
) -> None:
    bert_folder(tmp_path, "classify")
    with pytest.raises(CallError, match=message):
        enrobe.load(tmp_path).predict(**given)  # type: ignore[arg-type]


def test_a_head_is_chosen(tmp_path: Path) -> None:
    model = several(tmp_path, {"topic": "classify", "mood": "multilabel", "slots": "tag"})
    with pytest.raises(CallError, match=r"several heads; name one: 'topic', 'mood'"):
        model.predict("the cat")
    with pytest.raises(CallError, match=r"of kind tag; .*fix: Model\.tag"):
        model.predict("the cat", head="slots")
    with pytest.raises(ModelError, match=r"no head of kind answer; its heads: topic \(classify\)"):
        model.answer("who?", "the cat")
    assert model.predict("the cat", head="mood")[0].head == "mood"


def test_a_head_for_pairs_wants_pairs(tmp_path: Path) -> None:
    bert_folder(tmp_path, "classify")
    model = with_head(enrobe.load(tmp_path), text=("premise", "hypothesis"))
    with pytest.raises(CallError, match=r"trained on pairs \('premise', 'hypothesis'\)"):
        model.predict("the cat")
    with pytest.raises(ModelError, match="no head for texts"):
        model.predict_all("the cat")
    assert model.predict(pairs=PAIRS)[0].error is None
    with_head(model, text=("body",))
    with pytest.raises(CallError, match="not on pairs"):
        model.predict(pairs=PAIRS)


# --- all heads ----------------------------------------------------------------------------------

HEADS = {
    "topic": "classify",
    "mood": "multilabel",
    "size": "regress",
    "slots": "tag",
    "qa": "answer",
}


def test_all_heads_equal_each_alone_in_one_pass(tmp_path: Path) -> None:
    model = several(tmp_path, HEADS)
    texts = [*TEXTS, "the cat sat " * 300]
    counting = Counting(model.engine)
    model.engine = counting
    found = model.predict_all(texts)
    # The long text takes three windows, each run once for every head.
    assert counting.rows == len(texts) - 1 + 3
    assert counting.asked == {("topic", "mood", "size", "slots")}
    for name in ("topic", "mood", "size"):
        for whole, alone in zip(found, model.predict(texts, head=name), strict=True):
            one = whole[name]
            assert isinstance(one, Prediction) and one.cut == alone.cut
            assert one.label == alone.label
            assert one.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
            assert one.value == pytest.approx(alone.value, abs=1e-5)
    for whole, spans in zip(found, model.tag(texts), strict=True):
        assert list(whole) == ["topic", "mood", "size", "slots"]
        mine = whole["slots"]
        assert isinstance(mine, list) and len(mine) == len(spans)
        for a, b in zip(mine, spans, strict=True):
            assert (a.start, a.end, a.label) == (b.start, b.end, b.label)
            assert a.probability == pytest.approx(b.probability, abs=1e-6)


def test_several_heads_equal_the_single_folders(tmp_path: Path) -> None:
    model = several(tmp_path, HEADS)
    one = {name: enrobe.load(tmp_path / f"one-{name}") for name in HEADS}
    for name in ("topic", "mood", "size"):
        for a, b in zip(model.predict(TEXTS, head=name), one[name].predict(TEXTS), strict=True):
            assert a.label == b.label and a.probabilities == pytest.approx(b.probabilities)
    assert model.tag(TEXTS) == one["slots"].tag(TEXTS)
    assert model.answer("who?", TEXTS[0]) == one["qa"].answer("who?", TEXTS[0])


def test_heads_of_different_rows_take_a_pass_each(tmp_path: Path) -> None:
    model = several(tmp_path, HEADS, topic={"limit": 16}, mood={"text": ("a", "b")})
    counting = Counting(model.engine)
    model.engine = counting
    (found,) = model.predict_all("the cat sat " * 20)
    assert counting.asked == {("topic",), ("size", "slots")}
    assert list(found) == ["topic", "size", "slots"]
    assert isinstance(found["topic"], Prediction) and found["topic"].cut == 60 - 14
    assert isinstance(found["size"], Prediction) and found["size"].cut == 0
    (found,) = model.predict_all(pairs=[("the cat", "sat")])
    assert list(found) == ["topic", "mood", "size"]


def test_errors_of_all_heads(tmp_path: Path) -> None:
    model = several(tmp_path, HEADS)
    good, bad = model.predict_all(["the cat", "\ud800"], errors="collect")
    assert isinstance(bad["topic"], Prediction) and "surrogate" in str(bad["topic"].error)
    assert isinstance(bad["slots"], list) and isinstance(bad["slots"][0], Span)
    assert "surrogate" in str(bad["slots"][0].error)
    assert isinstance(good["topic"], Prediction) and good["topic"].error is None
    with pytest.raises(TextError, match="text 1"):
        model.predict_all(["the cat", "\ud800"])
    found = model.predict_all(words=[["the", "cat", ""], []])
    assert [list(one) for one in found] == [["topic", "mood", "size", "slots"]] * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> enrobe.Model:
    return several(tmp_path_factory.mktemp("several"), HEADS)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(WORDS)), max_size=5))
def test_any_text_is_answered(model: enrobe.Model, texts: list[str]) -> None:
    found = model.predict_all(texts, errors="collect")
    assert len(found) == len(texts)
    for one, text in zip(found, texts, strict=True):
        for result in one.values():
            for part in result if isinstance(result, list) else [result]:
                assert part.error is None
                if isinstance(part, Span):
                    assert part.text == text[part.start : part.end] != ""
                json.dumps(part.to_dict(), allow_nan=False)
