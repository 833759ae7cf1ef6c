"""Temperatures and thresholds: against references, and where there is little to fit to."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from enrobe.config import HeadConfig
from enrobe.data.examples import Example
from enrobe.data.labels import GoldAnswer
from enrobe.evaluate.confidence import confidences
from enrobe.evaluate.heads import score_outputs
from enrobe.evaluate.outputs import Output, Outputs, said_once
from enrobe.evaluate.tuning import f1_threshold, tune
from enrobe.tasks.heads import sigmoid
from enrobe.text.rows import encode_questions
from tests.evaluate.test_heads import sequence, tagged
from tests.support import toy_tokenizer
from tests.tasks.heads import TAGS


def drawn(rows: int, classes: int, scale: float, seed: int = 4) -> tuple[Any, Any]:
    """Logits that are `scale` times those of the distribution that labels were drawn from."""
    generator = np.random.default_rng(seed)
    true_NC = generator.normal(size=(rows, classes)) * 1.5
    chances_NC = np.exp(true_NC) / np.exp(true_NC).sum(axis=1, keepdims=True)
    labels_N = np.array([generator.choice(classes, p=row) for row in chances_NC])
    return true_NC * scale, labels_N


def test_the_temperature_is_that_of_guos_optimisation() -> None:
    logits_NC, labels_N = drawn(4000, 5, 2.5)
    head = HeadConfig(kind="classify", labels=tuple("abcde"))
    outputs = sequence(head, [head.labels[n] for n in labels_N], logits_NC)
    tuned = tune(head, outputs)
    # As published: the negative log-likelihood, by LBFGS.
    temperature = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.LBFGS([temperature], lr=0.1, max_iter=200)
    logits, labels = torch.tensor(logits_NC), torch.tensor(labels_N)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits / temperature, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    assert tuned.head.temperature == pytest.approx(temperature.item(), rel=0.01)
    assert tuned.head.temperature == pytest.approx(2.5, rel=0.1)
    assert tuned.likelihood is not None and tuned.likelihood.after < tuned.likelihood.before
    assert tuned.likelihood.after == pytest.approx(closure().item(), abs=1e-4)
    assert tuned.calibration is not None
    assert tuned.calibration.after < 0.02 < tuned.calibration.before
    before, after = (said_once("h", one, outputs) for one in (head, tuned.head))
    assert [one.label for one in before] == [one.label for one in after]


def test_rows_that_are_all_right_do_not_ask_for_certainty() -> None:
    head = HeadConfig(kind="classify", labels=("a", "b"))
    tuned = tune(head, sequence(head, ["a", "b"] * 10, [(1.0, 0.0), (0.0, 1.0)] * 10))
    (one, *_) = said_once("h", tuned.head, sequence(head, ["a"], [(1.0, 0.0)]))
    # One label of 21 is shared out.
    assert one.probability == pytest.approx(1 - 1 / 21 / 2, abs=1e-3)


def test_nothing_to_fit() -> None:
    number = HeadConfig(kind="regress", labels=("LABEL_0",))
    assert tune(number, sequence(number, [1.0], [[2.0]])).head == number
    head = HeadConfig(kind="classify", labels=("a", "b"), temperature=3.0)
    tuned = tune(head, sequence(head, ["other"], [(1.0, 0.0)]))
    assert tuned.head.temperature == 1.0 and tuned.likelihood is None


def test_tags_have_a_temperature_a_word() -> None:
    logits_NC, labels_N = drawn(900, 5, 3.0)
    head = HeadConfig(kind="tag", labels=tuple(TAGS))
    tags = [TAGS[n] for n in labels_N]
    gold = [tags[n : n + 3] for n in range(0, 900, 3)]
    outputs = tagged(head, toy_tokenizer(), gold, gold)
    made = tuple(
        replace(row, logits=(logits_NC[3 * n : 3 * n + 3].astype(np.float32),))
        for n, row in enumerate(outputs.rows)
    )
    tuned = tune(head, Outputs("h", made))
    assert tuned.head.temperature == pytest.approx(3.0, rel=0.15)
    assert len(confidences(tuned.head, Outputs("h", made))[0]) == 900


# --- several labels -----------------------------------------------------------------------------


def test_the_threshold_has_the_highest_f1_of_all() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = np.random.default_rng(seed)
    for number in range(200):
        rows = int(chance.integers(1, 12))
        # Few values, so that many are equal.
        values = chance.integers(0, 6, rows) / 5
        gold = chance.integers(0, 2, rows)
        threshold = f1_threshold(values, gold)
        if not gold.any():
            assert threshold == 0.5
            continue
        best = max(sk.f1_score(gold, values >= cut, zero_division=0) for cut in [*values, 0.5, 1.0])
        assert sk.f1_score(gold, values >= threshold, zero_division=0) == pytest.approx(best), (
            number
        )


def test_a_half_stays_where_it_is_as_good() -> None:
    assert f1_threshold(np.array([0.9, 0.6, 0.2]), [1, 1, 0]) == 0.5
    assert f1_threshold(np.array([0.9, 0.4, 0.2]), [1, 1, 0]) == pytest.approx(0.3)
    assert f1_threshold(np.array([0.9, 0.8, 0.7]), [1, 0, 0]) == pytest.approx(0.85)


def test_thresholds_are_kept_where_the_heads_metric_gains() -> None:
    generator = np.random.default_rng(2)
    gold_NC = generator.random((300, 3)) < (0.5, 0.2, 0.05)
    # The rare label is found late.
    logits_NC = generator.normal(size=(300, 3)) + np.where(gold_NC, 1.5, -1.5) - (0, 0.5, 2.5)
    head = HeadConfig(kind="multilabel", labels=("a", "b", "c"), metric="macro_f1")
    names = [tuple(np.array(head.labels)[own].tolist()) for own in gold_NC]
    outputs = sequence(head, names, logits_NC)
    tuned = tune(head, outputs)
    assert tuned.kept and len(tuned.head.thresholds) == 3 and tuned.head.thresholds[2] < 0.4
    change = tuned.scores["macro_f1"]
    assert change.after > change.before + 0.02
    found = score_outputs(tuned.head, outputs).measures["macro_f1"].value
    assert found == pytest.approx(change.after)
    values_NC = sigmoid(logits_NC.astype(np.float32), tuned.head.temperature)
    assert found == pytest.approx(
        sk.f1_score(gold_NC, values_NC >= tuned.head.thresholds, average="macro")
    )


def test_thresholds_that_lower_the_heads_metric_are_not_used() -> None:
    """The best F1 of a rare label that is a guess costs more wrong labels than it is worth."""
    generator = np.random.default_rng(5)
    gold_NC = np.stack([generator.random(400) < 0.5, generator.random(400) < 0.1], axis=1)
    logits_NC = np.stack([np.where(gold_NC[:, 0], 4.0, -4.0), generator.normal(size=400) - 4], 1)
    head = HeadConfig(kind="multilabel", labels=("sure", "guess"), metric="micro_f1")
    names = [tuple(np.array(head.labels)[own].tolist()) for own in gold_NC]
    tuned = tune(head, sequence(head, names, logits_NC))
    assert not tuned.kept and tuned.head.thresholds == ()
    assert tuned.scores["micro_f1"].after < tuned.scores["micro_f1"].before
    assert tuned.head.temperature != 1.0


# --- answers ------------------------------------------------------------------------------------


def answers(spread: float, *, seed: int = 3, rows: int = 60) -> Outputs:
    """Questions with and without an answer; the score of "none" says which, `spread` too low."""
    generator = np.random.default_rng(seed)
    context = "the cat sat on the mat and was the hat"
    (entry,) = encode_questions(toy_tokenizer(), ["who"], [context], limit=40)
    (row,) = entry.rows  # type: ignore[union-attr]
    spans = entry.spans.tolist()  # type: ignore[union-attr]
    made = []
    for n in range(rows):
        start, end = spans[int(generator.integers(0, len(spans)))]
        label = () if n % 2 else (GoldAnswer(start, context[start:end]),)
        logits = generator.normal(size=(1 + len(row.units), 2)).astype(np.float32)
        at = spans.index([start, end])
        logits[1 + at] += 3
        logits[0] = generator.normal(scale=0.5) + (3 if n % 2 else 0) - spread
        made.append(Output(Example(n, "who", pair=context, label=label), entry, (logits,)))  # type: ignore[arg-type]
    return Outputs("h", tuple(made))


def test_the_no_answer_threshold_is_the_official_scripts() -> None:
    head = HeadConfig(kind="answer", no_answer=0.5, metric="f1")
    outputs = answers(2.0)
    tuned = tune(head, outputs)
    assert tuned.head.no_answer is not None and tuned.head.no_answer < 0.4
    change = tuned.scores["f1"]
    assert change.after > change.before
    found = score_outputs(tuned.head, outputs).measures["f1"].value
    assert found == pytest.approx(change.after)
    # No other threshold is better.
    tried = [
        score_outputs(replace(tuned.head, no_answer=value), outputs).measures["f1"].value
        for value in np.linspace(0, 1, 101)
    ]
    assert max(tried) <= found + 1e-9


def test_a_threshold_needs_both_kinds_of_questions() -> None:
    head = HeadConfig(kind="answer", no_answer=0.5)
    whole = answers(0.0)
    some = Outputs("h", tuple(row for row in whole.rows if row.example.label))
    assert tune(head, some).head.no_answer == 0.5 and not tune(head, some).scores
    always = replace(head, no_answer=None)
    assert tune(always, whole).head.no_answer is None


def test_answers_have_a_temperature_and_keep_their_order() -> None:
    head = HeadConfig(kind="answer")
    outputs = answers(1.0, rows=200)
    hot = Outputs(
        "h",
        tuple(replace(r, logits=tuple(2 * own for own in r.logits)) for r in outputs.rows),
    )
    cold, warm = tune(head, outputs).head, tune(head, hot).head
    assert warm.temperature == pytest.approx(2 * cold.temperature, rel=0.01)
    assert (
        score_outputs(cold, outputs).measures["f1"].value
        == score_outputs(warm, hot).measures["f1"].value
    )
