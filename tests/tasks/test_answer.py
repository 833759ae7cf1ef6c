"""Extracted answers against transformers' logits and a search without short cuts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import enrobe
from enrobe import Answer, CallError, Model, TextError
from enrobe.tasks.answer import Candidates, candidates, ranked
from enrobe.tasks.heads import run_heads
from enrobe.text.rows import Question, encode_questions
from tests.support import FAMILIES, reference_outputs, scaled_error
from tests.tasks.heads import WORDS, bert_folder, bert_tokenizer, with_head
from tests.tasks.toys import word_folder

QUESTION = "who is on the mat?"
CONTEXT = "the cats sat on the mat. new york is w9 w8 (w7), w6 w5. sitting where w4 is?"
LONG = " ".join(f"w{n * 7 % 60}" for n in range(1500))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family: str, tmp_path: Path) -> None:
    theirs = word_folder(tmp_path, family, head="answer", seed=4)
    model = enrobe.load(tmp_path)
    contexts = ["w5 w6 w7", "w9 w8 " * 400]
    encoded = encode_questions(model.tokenizer, ["w1 w2"] * 2, contexts, limit=512)
    rows = [row for entry in encoded if isinstance(entry, Question) for row in entry.rows]
    assert len(rows) == 3
    expected = reference_outputs(theirs, [r.ids for r in rows], [r.types for r in rows]).logits
    for row, ours, other in zip(
        rows, run_heads(model.engine, rows, ["answer"]), expected, strict=True
    ):
        assert scaled_error(ours["answer"], other[[0, *row.places]]) <= 1e-5


def searched(
    model: Any, tokenizer: Any, question: str, context: str, longest: int = 30
) -> tuple[dict[tuple[int, int], float], float]:
    """Every span's probability by the tokenizer, the model and two loops, and that of none."""
    block = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=512,
        stride=128,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = [np.array(ids) for ids in block["input_ids"]]
    types = [np.array(kinds) for kinds in block["token_type_ids"]]
    logits = [x.astype(np.float64) for x in reference_outputs(model, rows, types).logits]
    null = min((x[0] for x in logits), key=lambda ends: ends.sum())
    seen = [
        [x[i] for i, side in enumerate(block.sequence_ids(n)) if side == 1]
        for n, x in enumerate(logits)
    ]
    everywhere = np.stack([null, *(one for ones in seen for one in ones)])
    norm = np.log(np.exp(everywhere).sum(axis=0)).sum()
    spans: dict[tuple[int, int], float] = {}
    for n, x in enumerate(logits):
        places = [i for i, side in enumerate(block.sequence_ids(n)) if side == 1]
        for i in places:
            for j in places:
                if i <= j < i + longest:
                    ends = block["offset_mapping"][n]
                    key = (ends[i][0], ends[j][1])
                    spans[key] = max(spans.get(key, 0.0), np.exp(x[i, 0] + x[j, 1] - norm))
    return spans, float(np.exp(null.sum() - norm))


@pytest.mark.parametrize("context", [CONTEXT, LONG, "mat"])
def test_answers_are_the_best_of_all_spans(context: str, tmp_path: Path) -> None:
    theirs = bert_folder(tmp_path, "answer", seed=6)
    spans, none = searched(theirs, bert_tokenizer(tmp_path), QUESTION, context)
    model = enrobe.load(tmp_path)
    (found,) = model.answer(QUESTION, context, top_k=8)
    best = sorted(spans.items(), key=lambda item: -item[1])[:8]
    assert [a.probability for a in found] == pytest.approx([p for _, p in best], rel=1e-4)
    for answer, (key, _) in zip(found, best, strict=True):
        assert (answer.start, answer.end) == key
        assert answer.text == context[answer.start : answer.end]
    (one,) = candidates(model.engine, model.tokenizer, [QUESTION], [context], "answer")
    assert isinstance(one, Candidates)
    assert one.nothing.probability == pytest.approx(none, rel=1e-4)
    assert one.none_probability == pytest.approx(none / (none + best[0][1]), rel=1e-4)
    (short,) = model.answer(QUESTION, context, top_k=8, max_answer=2)
    few, _ = searched(theirs, bert_tokenizer(tmp_path), QUESTION, context, 2)
    best = sorted(few.items(), key=lambda item: -item[1])[:8]
    assert [(a.start, a.end) for a in short] == [key for key, _ in best]


def test_the_threshold_says_when_there_is_no_answer(tmp_path: Path) -> None:
    bert_folder(tmp_path, "answer", seed=6)
    model = enrobe.load(tmp_path)
    (one,) = candidates(model.engine, model.tokenizer, [QUESTION], [CONTEXT], "answer")
    assert isinstance(one, Candidates)
    assert model.answer(QUESTION, CONTEXT)[0] == one.spans
    with_head(model, no_answer=min(1.0, one.none_probability + 1e-6))
    (found,) = model.answer(QUESTION, CONTEXT, top_k=100)
    assert found[0] == one.spans[0]
    assert sum(answer.text == "" for answer in found) <= 1
    with_head(model, no_answer=one.none_probability - 1e-6)
    (found,) = model.answer(QUESTION, CONTEXT, top_k=2)
    assert (found[0].text, found[0].start, found[0].end) == ("", 0, 0)
    assert found[0].probability == pytest.approx(one.nothing.probability)
    assert found[1] == one.spans[0]


def test_no_answer_stands_by_its_probability() -> None:
    spans = [Answer(t, 0, 1, p) for t, p in (("a", 0.5), ("b", 0.2), ("c", 0.1))]
    nothing = Answer("", 0, 0, 0.15)
    found = Candidates(spans, nothing, 0.15 / 0.65)
    assert [a.text for a in ranked(found, None)] == ["a", "b", "c"]
    assert [a.text for a in ranked(found, 0.5)] == ["a", "b", "", "c"]
    assert [a.text for a in ranked(found, 0.1)] == ["", "a", "b", "c"]
    assert ranked(Candidates([], nothing, 1.0), 1.0) == [nothing]


def test_a_context_without_text(tmp_path: Path) -> None:
    bert_folder(tmp_path, "answer", seed=6)
    model = enrobe.load(tmp_path)
    for context in ("", " \n"):
        with pytest.raises(TextError, match="no text to answer from"):
            model.answer(QUESTION, context)
    (found,) = model.answer(QUESTION, "", errors="collect")
    assert found[0].error
    (found,) = with_head(model, no_answer=0.5).answer(QUESTION, "")
    assert found == [Answer("", 0, 0, 1.0)]
    (found,) = model.answer("", CONTEXT)
    assert found[0].text in CONTEXT


def test_calls(tmp_path: Path) -> None:
    bert_folder(tmp_path, "answer", seed=6)
    model = enrobe.load(tmp_path)
    questions = ["who?", "where?", QUESTION]
    together = model.answer(questions, CONTEXT, top_k=3)
    for question, answers in zip(questions, together, strict=True):
        (alone,) = model.answer(question, [CONTEXT], top_k=3)
        assert [(a.start, a.end) for a in alone] == [(a.start, a.end) for a in answers]
        assert [a.probability for a in alone] == pytest.approx([a.probability for a in answers])
    assert model.answer([], []) == model.answer([], CONTEXT) == []
    with pytest.raises(CallError, match="3 questions and 1 contexts"):
        model.answer(questions, [CONTEXT])
    for options in ({"top_k": 0}, {"max_answer": True}, {"top_k": 1.5}):
        with pytest.raises(CallError, match="allowed: a whole number from 1"):
            model.answer("who?", CONTEXT, **options)  # type: ignore[arg-type]
    with pytest.raises(TextError, match=r"text 1: .*surrogate"):
        model.answer(["who?", "\ud800"], CONTEXT)
    found = model.answer(["who?", "who?"], ["\ud800", CONTEXT], errors="collect")
    assert "surrogate" in str(found[0][0].error) and found[1][0].error is None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("answer")
    bert_folder(folder, "answer", seed=6)
    return with_head(enrobe.load(folder), no_answer=0.5)


PARTS = st.lists(st.one_of(st.sampled_from([*WORDS, " ", "\n", "e\u0301", "日本"]), st.text()))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=PARTS, context=PARTS)
def test_an_answer_is_the_text_between_its_ends(
    model: Model, question: list[str], context: list[str]
) -> None:
    text = " ".join(context)
    (found,) = model.answer(" ".join(question), text, top_k=5)
    assert len({(a.start, a.end) for a in found}) == len(found)
    for answer in found:
        assert answer.text == text[answer.start : answer.end] == answer.text.strip()
        assert 0 <= answer.probability <= 1
        json.dumps(answer.to_dict(), allow_nan=False)
