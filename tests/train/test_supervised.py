"""Rows for training against those of prediction; losses against padded ones of transformers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from enrobe import checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.data.examples import Example
from enrobe.data.labels import CharSpan, GoldAnswer
from enrobe.engines.base import Outputs, Request
from enrobe.nn.heads import Model
from enrobe.tasks.answer import candidates
from enrobe.tasks.predict import predict, predict_all
from enrobe.tasks.tag import word_tags
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.train.supervised import TrainRow, collate, encode, head_loss, unlabelled
from tests.nn.test_encoder import small
from tests.support import LABELS, padded, random_rows, reference, toy_tokenizer

TAGS = ("O", "B-x", "I-x")
HEADS = {
    "topic": HeadConfig(kind="classify", labels=("a", "b", "c")),
    "many": HeadConfig(kind="multilabel", labels=("a", "b", "c")),
    "score": HeadConfig(kind="regress", labels=("LABEL_0",)),
    "tags": HeadConfig(kind="tag", labels=TAGS),
    "span": HeadConfig(kind="answer"),
}
LIMIT = 12
LONG = "the cat sat on the mat. " * 6


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return toy_tokenizer()


class Recorder:
    """An engine that notes the rows it is given."""

    name, precision, budget = "recorder", "float32", 1024
    config: EncoderConfig = small(vocab_size=283, max_positions=LIMIT + 2, type_vocab_size=0)
    heads: Mapping[str, HeadConfig] = HEADS

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def run(self, batch: Ragged, request: Request, at: Ids | None = None) -> Outputs:
        self.rows += [batch.row(i).tolist() for i in range(len(batch))]
        shapes = {n: (len(batch) if HEADS[n].is_sequence else len(batch.ids)) for n in HEADS}
        none = {n: np.zeros((shapes[n], HEADS[n].width), np.float32) for n in request.heads}
        return Outputs(heads=none)


def heads(*names: str) -> dict[str, HeadConfig]:
    return {name: HEADS[name] for name in names}


def examples(name: str, rows: Sequence[tuple[Any, Any]]) -> dict[str, list[Example]]:
    """(text, label) pairs; a tuple of words is a text in words."""
    out = []
    for number, (text, label) in enumerate(rows, start=1):
        words = text if isinstance(text, tuple) else None
        out.append(Example(number, " ".join(words) if words else text, words=words, label=label))
    return {name: out}


def ids(rows: Sequence[TrainRow]) -> list[list[int]]:
    return sorted(row.ids.tolist() for row in rows)


# --- rows ---------------------------------------------------------------------------------------

TEXTS = ["the cat", LONG, "", "a </s> b", "naïve 日本"]


@pytest.mark.parametrize("names", [("topic", "many", "score"), ("tags",), ("tags", "topic")])
def test_texts_without_labels_make_the_rows_of_labelled_ones(
    names: tuple[str, ...], tokenizer: Tokenizer
) -> None:
    labels = {"topic": "b", "many": ("a",), "score": 1.0, "tags": ()}
    given = {name: examples(name, [(t, labels[name]) for t in TEXTS])[name] for name in names}
    expected = encode(tokenizer, heads(*names), given, limit=LIMIT).rows
    found = unlabelled(tokenizer, heads(*names), TEXTS, limit=LIMIT)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.ids == other.ids).all() and (one.types == other.types).all()
        assert (one.places == other.places).all() and one.targets.keys() == other.targets.keys()
        for name, target in one.targets.items():
            assert target.shape == other.targets[name].shape and not target.any()
            assert target.dtype == other.targets[name].dtype


@pytest.mark.parametrize("name", ["topic", "many", "score"])
def test_rows_of_texts_are_those_of_prediction(name: str, tokenizer: Tokenizer) -> None:
    label = {"topic": "b", "many": ("a", "c"), "score": 0.5}[name]
    encoded = encode(
        tokenizer, heads(name), examples(name, [(text, label) for text in TEXTS]), limit=LIMIT
    )
    engine = Recorder()
    predict(engine, tokenizer, TEXTS, None, name)
    assert ids(encoded.rows) == sorted(engine.rows)
    assert encoded.cut == sum(len(row) == LIMIT for row in engine.rows) > 0
    expected = {"topic": 1, "many": [1, 0, 1], "score": 0.5}[name]
    assert all(row.targets[name].tolist() == expected for row in encoded.rows)


def test_rows_of_pairs_are_those_of_prediction(tokenizer: Tokenizer) -> None:
    pairs = [("the cat", "sat"), (LONG, "on the mat"), ("", "")]
    rows = [Example(n, a, pair=b, label="a") for n, (a, b) in enumerate(pairs)]
    encoded = encode(tokenizer, heads("topic"), {"topic": rows}, limit=LIMIT)
    engine = Recorder()
    predict(engine, tokenizer, [a for a, _ in pairs], [b for _, b in pairs], "topic")
    assert ids(encoded.rows) == sorted(engine.rows)


def test_a_tag_is_asked_for_at_first_pieces_alone(tokenizer: Tokenizer) -> None:
    words = ("the", "unbelievable", "", "cat")
    given = examples("tags", [(words, ("O", "B-x", "I-x", "I-x"))])
    (row,) = encode(tokenizer, heads("tags"), given, limit=100).rows
    pieces = [len(tokenizer.contents_of_split([(word,)])[0]) for word in words]  # type: ignore[arg-type]
    assert pieces[1] > 1 and pieces[2] == 0
    # <s> is the first; the empty word has no piece, and no target.
    assert row.places.tolist() == [1, 1 + pieces[0], 1 + pieces[0] + pieces[1]]
    assert row.targets["tags"].tolist() == [0, 1, 2]


def test_long_texts_are_tagged_in_windows_every_word_once(tokenizer: Tokenizer) -> None:
    text = tuple(LONG.split())
    label = tuple(TAGS[n % 3] for n in range(len(text)))
    encoded = encode(tokenizer, heads("tags"), examples("tags", [(text, label)]), limit=LIMIT)
    engine = Recorder()
    word_tags(engine, tokenizer, [text], "tags")
    assert ids(encoded.rows) == sorted(engine.rows) and len(encoded.rows) > 3
    found = np.concatenate([row.targets["tags"] for row in encoded.rows])
    assert found.tolist() == [n % 3 for n in range(len(text))]
    assert encoded.cut == 0


def test_spans_of_characters_become_tags(tokenizer: Tokenizer) -> None:
    spans = (CharSpan(4, 11, "x"),)
    rows = examples("tags", [("the cat sat on", spans), ("the mat", ())])
    first, second = encode(tokenizer, heads("tags"), rows, limit=100).rows
    assert first.targets["tags"].tolist() == [0, 1, 2, 0]
    assert second.targets["tags"].tolist() == [0, 0]


def test_tasks_share_the_rows_of_the_same_texts(tokenizer: Tokenizer) -> None:
    words = ("the", "cat")
    both = examples("topic", [(words, "a"), (words, None), (words, "c"), (("on",), "b")])
    both |= examples("tags", [(words, ("O", "B-x")), (words, ("O", "O")), (words, None)])
    # The fourth text is another one to the other task: two rows.
    both["tags"].append(Example(4, "on the", words=("on", "the"), label=("O", "O")))
    rows = encode(tokenizer, heads("topic", "tags"), both, limit=100).rows
    assert [sorted(row.targets) for row in rows] == [
        ["tags", "topic"],
        ["topic"],
        ["topic"],
        ["tags"],
        ["tags"],
    ]
    engine = Recorder()
    predict_all(engine, tokenizer, [words], None)
    assert rows[0].ids.tolist() in engine.rows


def test_a_sequence_head_reads_the_first_window_of_a_tagged_text(tokenizer: Tokenizer) -> None:
    text = tuple(LONG.split())
    both = examples("topic", [(text, "a")]) | examples("tags", [(text, ("O",) * len(text))])
    encoded = encode(tokenizer, heads("topic", "tags"), both, limit=LIMIT)
    assert ["topic" in row.targets for row in encoded.rows] == [True] + [False] * (
        len(encoded.rows) - 1
    )
    assert encoded.cut == 1


def test_rows_of_questions_are_those_of_prediction(tokenizer: Tokenizer) -> None:
    contexts = ["the hat was on the cat", "the mat. " * 9 + "hat", "nothing"]
    labels = [(GoldAnswer(4, "hat was"),), (GoldAnswer(81, "hat"),), ()]
    rows = [
        Example(n, "on the", pair=context, label=label)
        for n, (context, label) in enumerate(zip(contexts, labels, strict=True))
    ]
    encoded = encode(tokenizer, heads("span"), {"span": rows}, limit=LIMIT)
    engine = Recorder()
    candidates(engine, tokenizer, ["on the"] * 3, contexts, "span")
    assert ids(encoded.rows) == sorted(engine.rows)
    there = [row.targets["span"].tolist() for row in encoded.rows]
    answered = [row for row in encoded.rows if row.targets["span"][0]]
    assert [0, 0] in there and len(answered) >= 2
    said = {
        tokenizer.decode(row.ids[slice(*(row.targets["span"] + [0, 1]))]).strip()
        for row in answered
    }
    assert said == {"hat was", "hat"}


def test_a_text_that_cannot_be_read_is_counted(tokenizer: Tokenizer) -> None:
    given = examples("topic", [("the", "a"), ("\ud800", "b")])
    encoded = encode(tokenizer, heads("topic"), given, limit=LIMIT)
    assert (len(encoded.rows), encoded.unreadable) == (1, 1)


# --- losses -------------------------------------------------------------------------------------

LENGTHS = (5, 17, 3, 9)


def target(kind: str, length: int, generator: np.random.Generator) -> np.ndarray:
    if kind == "classify":
        return np.array(generator.integers(LABELS))
    if kind == "multilabel":
        return generator.integers(0, 2, LABELS).astype(np.float32)
    if kind == "regress":
        return np.array(generator.standard_normal(), np.float32)
    if kind == "tag":
        return generator.integers(0, LABELS, length // 2)
    return np.array([0, 0]) if length < 5 else np.array([length - 3, length - 2])


def train_rows(kind: str, seed: int) -> list[TrainRow]:
    print("seed", seed)
    generator = np.random.default_rng(seed)
    rows = []
    for row in random_rows(seed, LENGTHS, 97):
        length = len(row)
        if kind == "answer":
            places = np.arange(2, length - 1)
        else:
            places = np.sort(generator.choice(np.arange(1, length), length // 2, replace=False))
        targets = {"head": target(kind, length, generator)}
        rows.append(TrainRow(row, np.zeros_like(row), places, targets))
    # One without a label of this task.
    rows.insert(1, TrainRow(rows[0].ids, rows[0].types, rows[0].places))
    return rows


def padded_loss(model: Any, kind: str, rows: Sequence[TrainRow]) -> torch.Tensor:
    """The mean loss of transformers on padded rows."""
    block = padded(model, [row.ids for row in rows])
    targets = [torch.tensor(row.targets["head"]) for row in rows]
    if kind == "answer":
        answers = model(**block)
        mask = torch.full(block["input_ids"].shape, -torch.inf)
        for line, row in zip(mask, rows, strict=True):
            line[[0, *row.places]] = 0.0
        sides = (answers.start_logits + mask, answers.end_logits + mask)
        stacked = torch.stack(targets)
        losses = [F.cross_entropy(side, stacked[:, n]) for n, side in enumerate(sides)]
        return torch.stack(losses).mean()
    if kind == "tag":
        labels = torch.full(block["input_ids"].shape, -100)
        for line, row, own in zip(labels, rows, targets, strict=True):
            line[row.places] = own
    else:
        labels = torch.stack(targets)
    loss: torch.Tensor = model(**block, labels=labels).loss
    return loss


@pytest.mark.parametrize("kind", ["classify", "multilabel", "regress", "tag", "answer"])
def test_losses_and_gradients_equal_padded_ones(kind: str, tmp_path: Path) -> None:
    theirs = reference(tmp_path, "roberta", kind)
    read = checkpoint.read(tmp_path)
    model = Model.from_checkpoint(read).eval()
    rows = train_rows(kind, seed=4)
    batch, counts, arrays = collate(rows, {"head": kind})
    assert counts[".rows"] == 5 and counts["head.rows"] == 4
    logits = model(
        torch.from_numpy(batch.ids), batch.offsets, torch.from_numpy(batch.types), heads=[kind]
    ).heads[kind]
    own = {n.removeprefix("head."): torch.from_numpy(array) for n, array in arrays.items()}
    loss = head_loss(kind, logits, own) / counts["head"]
    expected = padded_loss(theirs, kind, [row for row in rows if row.targets])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    loss.backward()
    expected.backward()
    ours = model.get_parameter("embeddings.word.weight").grad
    wanted = theirs.get_input_embeddings().weight.grad
    assert ours is not None
    assert float((ours - wanted).abs().max()) < 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["classify", "tag"])
def test_smoothing_and_class_weights_are_torchs(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(9, 4, generator=generator)
    at = torch.tensor([0, 3, 4, 8])
    targets = torch.tensor([1, 0, 3, 3])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    arrays = {"rows": at, "places": at, "targets": targets}
    found = head_loss(kind, logits, arrays, smoothing=0.1, class_weights=weights)
    smooth = F.one_hot(targets, 4) * 0.9 + 0.1 / 4
    expected = -(smooth * weights * logits[at].log_softmax(1)).sum()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_a_batch_without_a_tasks_labels_has_none_of_it() -> None:
    rows = [TrainRow(row, np.zeros_like(row), row[:0]) for row in random_rows(1, (3, 4), 97)]
    batch, counts, arrays = collate(rows, {"head": "tag"})
    assert (len(batch), counts["head"], counts["head.rows"], arrays) == (2, 0, 0, {})
