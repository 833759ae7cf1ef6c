"""Heads against labelled rows: one pass for all, and the measures of each kind."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from enrobe.config import HeadConfig
from enrobe.data.examples import Example
from enrobe.data.labels import CharSpan, GoldAnswer
from enrobe.errors import CallError, TextError
from enrobe.evaluate.heads import label_scores, score_head, score_outputs
from enrobe.evaluate.mistakes import confusion, mistakes
from enrobe.evaluate.outputs import Output, Outputs, read_heads, said_once
from enrobe.tasks.predict import predict
from enrobe.text.rows import Row, encode_questions, encode_to_tag
from enrobe.text.tokenizer import Tokenizer
from tests.tasks.heads import TAGS, Counting, several

TEXTS = ["the cat sat", "on the mat", "who is new york", "", "w1 w2 w3 w4", "the cat sat"]


def rows(labels: list[Any], texts: list[str] | None = None, **changes: Any) -> list[Example]:
    given = texts or TEXTS
    return [
        Example(number, text, label=label, **changes)
        for number, (text, label) in enumerate(zip(given, labels, strict=True), 1)
    ]


# --- one pass -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    heads = {"one": "classify", "many": "multilabel", "tags": "tag", "number": "regress"}
    return several(tmp_path_factory.mktemp("model"), {**heads, "span": "answer"})


def test_heads_that_share_texts_take_one_pass_and_say_what_each_says_alone(model: Any) -> None:
    labels = list(model.engine.heads["one"].labels)
    one = rows([labels[0], labels[1], None, labels[0], labels[0], labels[1]])
    tags = rows([[*["O"] * len(text.split())] for text in TEXTS])
    number = rows([1.0, 2.0, 3.0, None, 0.5, 1.0])
    apart = rows([1.0, 2.0], ["cat", "mat"])
    counting = Counting(model.engine)
    asked = [("one", one), ("tags", tags), ("number", number), ("number", apart)]
    found = read_heads(counting, model.tokenizer, asked)
    # Equal texts are one row: five of the first three tasks, two of the last.
    assert counting.rows == 7
    assert counting.asked == {("one", "tags", "number"), ("number",)}
    assert [len(outputs.rows) for outputs in found] == [5, 6, 5, 2]
    for outputs in (found[0], found[2]):
        texts = [row.example.text for row in outputs.rows]
        alone = predict(model.engine, model.tokenizer, texts, None, outputs.name)
        together = said_once(outputs.name, model.engine.heads[outputs.name], outputs)
        for a, b in zip(alone, together, strict=True):
            assert not isinstance(a, TextError)
            assert (a.label, a.cut) == (b.label, b.cut)
            assert a.value == pytest.approx(b.value, abs=1e-5)
            assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5)


def test_pairs_and_questions_go_by_themselves(model: Any) -> None:
    pairs = rows([1.0, 2.0], ["cat", "mat"], pair="the hat")
    question = rows([(GoldAnswer(0, "the"),)], ["who"], pair="the cat sat on the mat")
    counting = Counting(model.engine)
    found = read_heads(counting, model.tokenizer, [("number", pairs), ("span", question)])
    assert counting.rows == 3 and [len(outputs.rows) for outputs in found] == [2, 1]


def test_rows_without_a_label_or_that_cannot_be_read(model: Any) -> None:
    label = model.engine.heads["one"].labels[0]
    scores = score_head(
        model.engine, model.tokenizer, "one", rows([label, label, None], ["cat", "\ud800", "mat"])
    )
    assert (scores.rows, scores.skipped) == (1, 1) and "surrogate" in str(scores.error)
    with pytest.raises(CallError, match="head 'one': no row has a label and can be read"):
        score_head(model.engine, model.tokenizer, "one", rows([None], ["cat"]))


# --- measures against references ----------------------------------------------------------------


def sequence(head: HeadConfig, gold: list[Any], logits: Any) -> Outputs:
    """Outputs of a sequence head that has these logits."""
    none = np.empty(0, np.int64)
    entry = Row(ids=none, types=none, places=none, units=none)
    return Outputs(
        "h",
        tuple(
            Output(Example(n, f"text {n}", label=label), entry, (np.array(own, np.float32),))
            for n, (label, own) in enumerate(zip(gold, logits, strict=True))
        ),
    )


def test_classes_are_scored_as_scikit_learn_does() -> None:
    """With a class that is never said, one that is never there, and one that the head lacks."""
    head = HeadConfig(kind="classify", labels=("a", "b", "c", "never"))
    said = [0, 0, 1, 1, 2, 0, 0, 1, 0, 2]
    gold = ["a", "b", "b", "b", "c", "a", "other", "a", "a", "c"]
    outputs = sequence(head, gold, np.eye(4)[said] * 3)
    names = [head.labels[n] for n in said]
    found = score_outputs(head, outputs)
    values = {name: measure.value for name, measure in found.measures.items()}
    assert values == {
        "accuracy": pytest.approx(sk.accuracy_score(gold, names)),
        "macro_f1": pytest.approx(sk.f1_score(gold, names, average="macro")),
        "matthews": pytest.approx(sk.matthews_corrcoef(gold, names)),
    }
    labels = label_scores(head, outputs)
    report = sk.classification_report(gold, names, output_dict=True, zero_division=0)
    assert list(labels) == ["a", "b", "c", "other"]
    for name, one in labels.items():
        expected = report[name]
        assert one.f1.value == pytest.approx(expected["f1-score"])
        assert (one.precision, one.recall) == pytest.approx(
            (expected["precision"], expected["recall"])
        )
        assert one.support == expected["support"] and one.f1.low <= one.f1.value <= one.f1.high
    table = confusion(head, outputs)
    assert table is not None and table.labels == ("a", "b", "c", "never", "other")
    assert (table.counts == sk.confusion_matrix(gold, names, labels=table.labels)).all()
    assert sorted(table.pairs()) == [("a", "b", 1), ("b", "a", 1), ("other", "a", 1)]


def test_the_surest_mistakes_come_first() -> None:
    head = HeadConfig(kind="classify", labels=("a", "b"))
    outputs = sequence(head, ["a", "b", "b", "b"], [(0, 1), (0, 9), (5, 0), (2, 0)])
    found = mistakes(head, outputs)
    assert [(one.number, one.label, one.said) for one in found] == [
        (2, "b", "a"),
        (3, "b", "a"),
        (0, "a", "b"),
    ]
    assert found[0].probability == pytest.approx(1 / (1 + math.exp(-5)))


def test_several_labels_are_scored_as_scikit_learn_does() -> None:
    """With no positive label in a row, in gold, and with one that is nowhere."""
    head = HeadConfig(kind="multilabel", labels=("a", "b", "c"), thresholds=(0.5, 0.9, 0.1))
    gold = [(), ("a",), ("a", "b"), ("b",), ()]
    values = np.array(
        [(0.1, 0.2, 0.05), (0.6, 0.89, 0.01), (0.4, 0.9001, 0.0), (0.7, 0.95, 0.2), (0.2, 0.1, 0.0)]
    )
    values = np.clip(values, 1e-6, 1 - 1e-6)
    outputs = sequence(head, gold, np.log(values / (1 - values)))
    said = (values >= head.thresholds).astype(int)
    there = np.array([[name in own for name in head.labels] for own in gold], int)
    found = {name: m.value for name, m in score_outputs(head, outputs).measures.items()}
    assert found == {
        "micro_f1": pytest.approx(sk.f1_score(there, said, average="micro")),
        "macro_f1": pytest.approx(sk.f1_score(there, said, average="macro", zero_division=0)),
        "accuracy": pytest.approx(sk.accuracy_score(there, said)),
    }
    each = sk.f1_score(there, said, average=None, zero_division=0)
    assert [one.f1.value for one in label_scores(head, outputs).values()] == pytest.approx(each)
    assert mistakes(head, outputs)[0].label == "b" and confusion(head, outputs) is None


def test_numbers_with_ties() -> None:
    from scipy import stats

    head = HeadConfig(kind="regress", labels=("LABEL_0",))
    gold = [1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 5.0]
    said = [0.5, 0.7, 0.7, 3.5, 2.0, 3.5, 3.6]
    outputs = sequence(head, gold, [[value] for value in said])
    found = score_outputs(head, outputs).measures
    assert found["pearson"].value == pytest.approx(stats.pearsonr(gold, said).statistic, abs=1e-6)
    assert found["spearman"].value == pytest.approx(stats.spearmanr(gold, said).statistic, abs=1e-6)
    furthest = mistakes(head, outputs)[0]
    assert (furthest.label, furthest.said, furthest.probability) == ("5", "3.6", None)
    assert label_scores(head, outputs) == {}
    constant = sequence(head, gold, [[1.0]] * 7)
    assert math.isnan(score_outputs(head, constant).measures["spearman"].value)


def tagged(head: HeadConfig, tokenizer: Tokenizer, gold: list[Any], said: list[list[str]]) -> Any:
    """Outputs of a tag head that says these tags of as many words."""
    words = [tuple(["cat", "mat", "w1", "w2", "w3"][: len(tags)]) for tags in said]
    encoded = encode_to_tag(tokenizer, words, limit=40)
    codes = {tag: n for n, tag in enumerate(head.labels)}
    made = []
    for n, (own, label, tags, entry) in enumerate(zip(words, gold, said, encoded, strict=True)):
        logits = np.eye(len(codes), dtype=np.float32)[[codes[tag] for tag in tags]] * 4
        example = Example(n, " ".join(own), words=own, label=tuple(label))
        made.append(Output(example, entry, (logits.reshape(len(tags), len(codes)),)))  # type: ignore[arg-type]
    return Outputs("h", tuple(made))


def test_broken_bio_is_scored_as_conlleval_does(model: Any) -> None:
    """An I- that nothing begins, another type in the middle, a sentence without a span."""
    head = HeadConfig(kind="tag", labels=tuple(TAGS))
    gold = [["B-per", "I-per", "O"], ["O", "O"], ["B-loc", "I-loc", "I-loc"], ["I-per", "O"]]
    said = [["I-per", "I-per", "O"], ["O", "I-loc"], ["B-loc", "I-per", "I-loc"], ["B-per", "O"]]
    outputs = tagged(head, model.tokenizer, gold, said)
    found = score_outputs(head, outputs).measures
    # By the script: 3 gold, 6 found, right: per 0:2 of the first, per 0:1 of the last.
    assert found["f1"].value == pytest.approx(2 * 2 / (3 + 6))
    assert found["accuracy"].value == pytest.approx(6 / 10)
    labels = label_scores(head, outputs)
    assert labels["per"].support == 2 and labels["per"].precision == pytest.approx(2 / 3)
    assert labels["loc"].f1.value == 0.0 and labels["loc"].recall == 0.0
    table = confusion(head, outputs)
    assert table is not None and table.labels == ("O", "per", "loc")
    assert table.counts.tolist() == [[3, 0, 1], [0, 3, 0], [0, 1, 2]]
    found_words = {one.text for one in mistakes(head, outputs)}
    assert found_words == {"[cat] mat w1", "cat [mat]", "cat [mat] w1", "[cat] mat"}


def test_tags_that_stand_alone_are_scored_by_word(model: Any) -> None:
    head = HeadConfig(kind="tag", labels=("NOUN", "VERB"))
    outputs = tagged(
        head, model.tokenizer, [["NOUN", "VERB"], ["NOUN"]], [["NOUN", "NOUN"], ["NOUN"]]
    )
    assert list(score_outputs(head, outputs).measures) == ["accuracy"]
    assert label_scores(head, outputs)["NOUN"].precision == pytest.approx(2 / 3)


def test_spans_of_characters_are_compared_as_they_are(model: Any) -> None:
    """A gold span within a word can be found by no word, and is not."""
    tokens = Counter(head.kind for head in model.engine.heads.values())
    assert tokens["tag"] == 1
    examples = rows([(CharSpan(0, 2, "per"),)], ["the cat"])
    found = score_head(model.engine, model.tokenizer, "tags", examples)
    assert found.measures["f1"].value == 0.0


def test_answers_are_scored_as_squads_scripts_do(model: Any) -> None:
    """Empty answers on either side, several gold ones, articles and signs."""
    contexts = ["the cat sat on the mat", "the cat sat", "who is new york", ""]
    gold: list[Any] = [
        (GoldAnswer(15, "the mat"), GoldAnswer(19, "mat")),
        (),
        (GoldAnswer(7, "new york"),),
        (),
    ]
    encoded = encode_questions(model.tokenizer, ["who"] * 4, contexts, limit=40)

    def outputs(places: list[tuple[int, int]], nulls: list[float]) -> Outputs:
        made = []
        for n, (entry, place, null) in enumerate(zip(encoded, places, nulls, strict=True)):
            (row,) = entry.rows  # type: ignore[union-attr]
            logits = np.zeros((1 + len(row.units), 2), np.float32)
            if len(row.units):
                logits[1 + place[0], 0] = logits[1 + place[1], 1] = 5.0
            logits[0] = null
            example = Example(n, "who", pair=contexts[n], label=gold[n])
            made.append(Output(example, entry, (logits,)))  # type: ignore[arg-type]
        return Outputs("h", tuple(made))

    places = [(5, 5), (1, 1), (2, 2), (0, 0)]
    always = HeadConfig(kind="answer")
    found = score_outputs(always, outputs(places, [0.0] * 4)).measures
    # "mat" is right; "cat" is wrong where there is no answer; "new" is half of "new york"; a
    # context without text is not answered.
    assert found["exact"].value == 1 / 4
    assert found["f1"].value == pytest.approx((1 + 0 + 2 / 3 + 0) / 4)
    head = HeadConfig(kind="answer", no_answer=0.5)
    says = outputs(places, [0.0, 9.0, 0.0, 0.0])
    found = score_outputs(head, says).measures
    assert found["f1"].value == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)
    parts = label_scores(head, says)
    assert parts["with an answer"].f1.value == pytest.approx((1 + 2 / 3) / 2)
    assert parts["without one"].f1.value == 1.0 and parts["without one"].support == 2
    assert mistakes(head, outputs(places, [0.0] * 4))[0].label == "(no answer)"
