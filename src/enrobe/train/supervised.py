"""Labelled examples to rows with targets, and the losses of heads on a batch of them.

Legend: T tokens, B rows of a batch, R rows that have a label for a task, C outputs of a head,
K places: of a tag task first pieces of words, of an answer task where an answer may stand.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from enrobe.config import SEQUENCE_KINDS, HeadConfig
from enrobe.data.examples import Example
from enrobe.errors import TextError
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.rows import (
    Row,
    Text,
    answer_places,
    encode_questions,
    encode_texts,
    encode_to_tag,
)
from enrobe.text.tags import tags_of_spans
from enrobe.text.tokenizer import Tokenizer

Array = npt.NDArray[Any]
# Kinds that have several targets a row.
_PLACED = ("tag", "mlm")
# File and row, the texts, the words: rows of two tasks are one where all of it is the same.
_Key = tuple[int, int, str, str | None, tuple[str, ...] | None]


@dataclass(frozen=True, eq=False)
class TrainRow:
    """A row of ids and, by task, what its head should say.

    Targets by kind: classify, the class; multilabel, 0 or 1 a label (C,); regress, the number; tag,
    the class at each of the row's places (K,); answer, first and last token in the row (2,); masked
    LM, the token at each of the row's places (K,).

    Shapes: ids, types (T,).
    """

    ids: Ids
    types: Ids
    places: Ids
    # tag: first pieces of words; answer: tokens of the context; masked LM: tokens to predict
    targets: Mapping[str, Array] = field(default_factory=dict)
    soft: Mapping[str, Array] = field(default_factory=dict)
    # by task a teacher's logits: (C,); tag (K, C); answer (K + 1, 2), the first one's for "no
    # answer here"


@dataclass(frozen=True, eq=False)
class Encoded:
    """The rows that have a label."""

    rows: list[TrainRow]
    cut: int
    # texts that were cut to fit
    unreadable: int
    # texts that cannot be read
    most: int
    # rows that a single text fills, as one that is read in windows may


def encode(
    tokenizer: Tokenizer,
    heads: Mapping[str, HeadConfig],
    examples: Mapping[str, Sequence[Example]],
    *,
    limit: int,
) -> Encoded:
    """Rows of tasks that label texts of the same columns of the same files.

    A text that several tasks label is one row, with the target of each; one that a task has no
    label for has none of it. Rows are those of prediction, encoded by the same functions.

    Args:
        tokenizer: the model's.
        heads: of each task the head; an answer task stands alone.
        examples: each task's.
        limit: the longest row in tokens.
    """
    merged: dict[_Key, dict[str, Example]] = {}
    for name, own in examples.items():
        for example in own:
            if example.label is not None:
                key = (example.file, example.number, example.text, example.pair, example.words)
                merged.setdefault(key, {})[name] = example
    given = list(merged.values())
    kinds = {heads[name].kind for name in examples}
    if "answer" in kinds:
        ((name, _),) = examples.items()
        return _encode_questions(tokenizer, name, [item[name] for item in given], limit)
    firsts = [next(iter(item.values())) for item in given]
    texts = [first.text if first.words is None else first.words for first in firsts]
    paired = any(first.pair is not None for first in firsts)
    seconds = [first.pair or "" for first in firsts] if paired else None
    found, spans = _rows(tokenizer, kinds, texts, seconds, limit)
    out: list[TrainRow] = []
    cut = unreadable = most = 0
    for labelled, item, own_spans in zip(given, found, spans, strict=True):
        if isinstance(item, TextError):
            unreadable += 1
            continue
        # A tagged text is read to its end; a sequence head reads its first row.
        cut += item[0].cut > 0 and any(heads[name].is_sequence for name in labelled)
        most = max(most, len(item))
        for part, row in enumerate(item):
            targets = {
                name: _target(one, heads[name], row, own_spans)
                for name, one in labelled.items()
                if (len(row.places) if heads[name].kind == "tag" else part == 0)
            }
            if targets:
                out.append(TrainRow(row.ids, row.types, row.places, targets))
    return Encoded(out, cut, unreadable, most)


def unlabelled(
    tokenizer: Tokenizer, heads: Mapping[str, HeadConfig], texts: Sequence[str], *, limit: int
) -> list[TrainRow]:
    """Rows of texts that nobody has labelled, as `encode` makes those of labelled ones.

    Their targets are zeros, of the kinds that the heads have: for a teacher's answers to stand in.
    Texts that cannot be read are left out.

    Args:
        tokenizer: the model's.
        heads: of each task the head; none that answers questions.
        texts: single ones.
        limit: the longest row in tokens.
    """
    found, _ = _rows(tokenizer, {head.kind for head in heads.values()}, texts, None, limit)
    out = []
    for item in found:
        for part, row in enumerate([] if isinstance(item, TextError) else item):
            targets = {
                name: _blank(head, row)
                for name, head in heads.items()
                if (len(row.places) if head.kind == "tag" else part == 0)
            }
            if targets:
                out.append(TrainRow(row.ids, row.types, row.places, targets))
    return out


def _blank(head: HeadConfig, row: Row) -> Array:
    if head.kind == "tag":
        return np.zeros(len(row.places), np.int64)
    if head.kind == "multilabel":
        return np.zeros(len(head.labels), np.float32)
    return np.zeros((), np.float32 if head.kind == "regress" else np.int64)


def _rows(
    tokenizer: Tokenizer,
    kinds: Collection[str],
    texts: Sequence[Text],
    seconds: Sequence[str] | None,
    limit: int,
) -> tuple[list[Sequence[Row] | TextError], list[Ids | None]]:
    """The rows of each text, several only where it is tagged, and its words' spans if it is."""
    if "tag" in kinds:
        words = encode_to_tag(tokenizer, texts, limit=limit)
        return (
            [item if isinstance(item, TextError) else item.rows for item in words],
            [None if isinstance(item, TextError) else item.spans for item in words],
        )
    rows = encode_texts(tokenizer, texts, seconds, limit=limit)
    return (
        [item if isinstance(item, TextError) else [item] for item in rows],
        [None] * len(texts),
    )


def count_cut(
    tokenizer: Tokenizer, head: HeadConfig, examples: Sequence[Example], *, limit: int
) -> int:
    """How many texts a sequence head will be asked of in part, as they do not fit."""
    if not head.is_sequence or not examples:
        return 0
    texts = [one.text if one.words is None else one.words for one in examples]
    paired = any(one.pair is not None for one in examples)
    seconds = [one.pair or "" for one in examples] if paired else None
    rows = encode_texts(tokenizer, texts, seconds, limit=limit)
    return sum(not isinstance(row, TextError) and row.cut > 0 for row in rows)


def _target(example: Example, head: HeadConfig, row: Row, spans: Ids | None) -> Array:
    label: Any = example.label
    if head.kind == "regress":
        return np.array(label, np.float32)
    numbers = {name: number for number, name in enumerate(head.labels)}
    if head.kind == "classify":
        return np.array(numbers[label], np.int64)
    if head.kind == "multilabel":
        return np.array([name in label for name in head.labels], np.float32)
    if example.words is None:
        # Spans of characters, of which there may be none.
        assert spans is not None
        label = tags_of_spans(spans, label)
    return np.array([numbers[label[unit]] for unit in row.units], np.int64)


def _encode_questions(
    tokenizer: Tokenizer, name: str, examples: Sequence[Example], limit: int
) -> Encoded:
    found = encode_questions(
        tokenizer,
        [example.text for example in examples],
        [example.pair or "" for example in examples],
        limit=limit,
    )
    out: list[TrainRow] = []
    cut = unreadable = most = 0
    for example, item in zip(examples, found, strict=True):
        if isinstance(item, TextError):
            unreadable += 1
            continue
        cut += item.cut > 0
        most = max(most, len(item.rows))
        answers: Any = example.label
        for row in item.rows:
            places = (0, 0)
            if answers:
                start, text = answers[0]
                places = answer_places(row, item.spans, start, start + len(text))
            targets = {name: np.array(places, np.int64)}
            out.append(TrainRow(row.ids, row.types, row.places, targets))
    return Encoded(out, cut, unreadable, most)


def collate(
    rows: Sequence[TrainRow], kinds: Mapping[str, str]
) -> tuple[Ragged, dict[str, float], dict[str, Array]]:
    """A batch, its counts, and the targets as arrays.

    Counts: TASK of targets, TASK.rows of rows that have some, `.rows` of all rows.
    Arrays: TASK.rows (R,), which rows have a label; TASK.targets, these. Of a tag or masked-LM
    task TASK.places (K,) are positions of the flat batch, one a target. Of an answer task
    TASK.places (R, K) are those where an answer may begin and end, -1 after the last, and the
    targets (R, 2) count in it.
    TASK.soft, where the rows have a teacher's logits: (R, C); (K, C); (R, K, 2).
    """
    batch = Ragged.from_rows([row.ids for row in rows], [row.types for row in rows])
    counts: dict[str, float] = {".rows": len(rows)}
    arrays: dict[str, Array] = {}
    for name, kind in kinds.items():
        having = [number for number, row in enumerate(rows) if name in row.targets]
        targets = [rows[number].targets[name] for number in having]
        counts[f"{name}.rows"] = len(having)
        counts[name] = sum(t.size for t in targets) if kind in _PLACED else len(having)
        if not having:
            continue
        arrays[f"{name}.rows"] = np.array(having, np.int64)
        starts = batch.offsets[:-1][having]
        places = [rows[number].places for number in having]
        if kind in _PLACED:
            flat = [place + start for place, start in zip(places, starts, strict=True)]
            arrays[f"{name}.places"] = np.concatenate(flat)
            arrays[f"{name}.targets"] = np.concatenate(targets)
        elif kind == "answer":
            # The first special token stands for "no answer here".
            own = [np.append(0, place) for place in places]
            block = np.full((len(own), max(map(len, own))), -1, np.int64)
            for line, place, start in zip(block, own, starts, strict=True):
                line[: len(place)] = place + start
            arrays[f"{name}.places"] = block
            arrays[f"{name}.targets"] = np.stack(
                [np.searchsorted(place, target) for place, target in zip(own, targets, strict=True)]
            )
        else:
            arrays[f"{name}.targets"] = np.stack(targets)
        soft = [rows[number].soft[name] for number in having if name in rows[number].soft]
        if soft:
            arrays[f"{name}.soft"] = _collated(kind, soft)
    return batch, counts, arrays


def _collated(kind: str, soft: Sequence[Array]) -> Array:
    """A teacher's logits for the rows of a batch, as `collate` lays out the places."""
    if kind != "answer":
        return np.concatenate(soft) if kind == "tag" else np.stack(soft)
    block = np.zeros((len(soft), max(map(len, soft)), 2), np.float32)
    for line, logits in zip(block, soft, strict=True):
        line[: len(logits)] = logits
    return block


def head_loss(
    kind: str,
    logits: Tensor,
    arrays: Mapping[str, Tensor],
    *,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """The summed loss of one task on a batch; divide by its global count of targets.

    classify, tag: cross-entropy. multilabel: binary cross-entropy, the mean over labels. regress:
    squared error. answer: the mean of the cross-entropies of first and last token, each over the
    context of its row and "no answer here" (Devlin et al. 2019, section 4.3).

    Args:
        kind: the head's.
        logits: (B, C) of a sequence head, (T, C) of a tag or answer head.
        arrays: "rows", "targets", "places" as `collate` makes them.
        smoothing: label smoothing (Szegedy et al. 2016), for classify and tag.
        class_weights: (C,), for classify and tag.
    """
    picked = picked_logits(kind, logits, arrays)
    targets = arrays["targets"]
    if kind in ("classify", "tag"):
        return F.cross_entropy(
            picked, targets, weight=class_weights, label_smoothing=smoothing, reduction="sum"
        )
    if kind == "multilabel":
        each = F.binary_cross_entropy_with_logits(picked, targets, reduction="none")
        return each.mean(1).sum()
    if kind == "regress":
        return (picked[:, 0] - targets).square().sum()
    assert kind == "answer"
    return F.cross_entropy(picked, targets, reduction="sum") / 2


def picked_logits(kind: str, logits: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """The logits that have a target, in float32.

    Shapes: (B, C) -> (R, C) of a sequence head; (T, C) -> (K, C) of a tag head, (R, K, C) of an
    answer head, -inf beyond the places of a row.
    """
    logits = logits.float()
    if kind != "answer":
        return logits[arrays["rows" if kind in SEQUENCE_KINDS else "places"]]
    places = arrays["places"]
    return logits[places.clamp(min=0)].masked_fill((places < 0)[:, :, None], -torch.inf)
