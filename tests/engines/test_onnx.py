"""The ONNX engine against transformers: five families, every head, rows up to the full 512."""

import os
from pathlib import Path

import numpy as np
import pytest

from enrobe import checkpoint
from enrobe.config import SEQUENCE_KINDS
from enrobe.engines.base import Outputs, Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.text.ragged import Ragged
from tests.support import (
    FAMILIES,
    HEADS,
    Row,
    log_softmax,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)

# Lengths out of order, equal ones apart, the shortest and the longest row.
LENGTHS = (7, 512, 3, 30, 1, 7, 129, 2)
VOCAB = 97


def cut(values: np.ndarray, batch: Ragged) -> list[np.ndarray]:
    return [values[a:b] for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)]


def open_engine(folder: Path) -> OnnxEngine:
    return OnnxEngine(checkpoint.read(folder))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, *HEADS])
def test_equals_transformers(family: str, head: str | None, tmp_path: Path) -> None:
    model = reference(tmp_path, family, head, seed=11)
    rows = random_rows(12, LENGTHS, VOCAB)
    types = random_types(13, LENGTHS)
    expected = reference_outputs(model, rows, types)
    engine = open_engine(tmp_path)
    batch = Ragged.from_rows(rows, types)
    at = np.arange(len(batch.ids), dtype=np.int64)
    every = Request(layers=(0, 1, 2, 3), heads=tuple(engine.heads))
    out = engine.run(batch, every, at)
    for layer in range(4):
        for ours, theirs in zip(cut(out.hidden[layer], batch), expected.hidden, strict=True):
            assert scaled_error(ours, theirs[layer]) <= 1e-5
    assert (head is None) == (not engine.heads)
    for values in out.heads.values():
        found = list(values) if head in SEQUENCE_KINDS else cut(values, batch)
        for ours, theirs in zip(found, expected.logits, strict=True):
            assert scaled_error(ours, theirs) <= 1e-5
            assert scaled_error(log_softmax(ours), log_softmax(theirs)) <= 1e-5
        # Confined to what the head reads, the last layer gives the same.
        alone = engine.run(batch, Request(heads=tuple(engine.heads)), at).heads
        assert all(scaled_error(alone[name], out.heads[name]) <= 1e-6 for name in alone)


@pytest.mark.parametrize("head", ["mlm", "classify", "tag"])
def test_alone_equals_batched(head: str, tmp_path: Path) -> None:
    reference(tmp_path, "roberta", head, seed=21)
    engine = open_engine(tmp_path)
    rows = random_rows(22, LENGTHS, VOCAB)
    batch = Ragged.from_rows(rows)
    request = Request(layers=(2,), heads=(head,))
    together = engine.run(batch, request, np.arange(len(batch.ids), dtype=np.int64))
    for index, row in enumerate(rows):
        alone = run_alone(engine, row, request)
        hidden = cut(together.hidden[2], batch)[index]
        assert scaled_error(hidden, alone.hidden[2]) <= 1e-6
        values = together.heads[head]
        mine = values[index : index + 1] if head == "classify" else cut(values, batch)[index]
        assert scaled_error(mine, alone.heads[head]) <= 1e-6


def run_alone(engine: OnnxEngine, row: Row, request: Request) -> Outputs:
    return engine.run(Ragged.from_rows([row]), request, np.arange(len(row), dtype=np.int64))


def test_only_asked_positions_are_decoded(tmp_path: Path) -> None:
    reference(tmp_path, "bert", "mlm", seed=31)
    engine = open_engine(tmp_path)
    batch = Ragged.from_rows(random_rows(32, (9, 4, 20, 6), VOCAB))
    full = engine.run(batch, Request(heads=("mlm",)), np.arange(39, dtype=np.int64)).heads["mlm"]
    # Several in a row, one at its very end, none at all in the third row.
    at = np.array([0, 4, 8, 12, 33, 38])
    some = engine.run(batch, Request(heads=("mlm",)), at).heads["mlm"]
    assert some.shape == (6, VOCAB)
    assert scaled_error(some, full[at]) <= 1e-6


def test_nothing_is_computed_that_was_not_asked_for(tmp_path: Path) -> None:
    reference(tmp_path, "roberta", "mlm", seed=41)
    engine = open_engine(tmp_path)
    batch = Ragged.from_rows(random_rows(42, (5,), VOCAB))
    out = engine.run(batch, Request(layers=(1,)))
    assert list(out.hidden) == [1]
    assert not out.heads
    session, _ = engine._session(Request(layers=(1,)))
    assert {value.name for value in session.get_inputs()} == {
        "ids",
        "positions",
        "types",
        "lengths",
        "cells",
        "tokens",
    }


def test_several_threads_get_their_own_answers(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    reference(tmp_path, "roberta", "mlm", seed=51)
    engine = open_engine(tmp_path)
    rows = random_rows(52, [3 + n % 11 for n in range(60)], VOCAB)
    expected = [run_alone(engine, row, Request(heads=("mlm",))).heads["mlm"] for row in rows]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda row: run_alone(engine, row, Request(heads=("mlm",))), rows)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.heads["mlm"] == theirs).all()


@pytest.mark.parametrize("layers", [(3,), (0, 2, 3)])
def test_a_picked_last_layer_is_the_whole_one_there(
    layers: tuple[int, ...], tmp_path: Path
) -> None:
    reference(tmp_path, "roberta", "mlm", seed=31)
    engine = open_engine(tmp_path)
    batch = Ragged.from_rows(random_rows(32, LENGTHS, VOCAB))
    whole = engine.run(batch, Request(layers=layers)).hidden
    for at in (batch.offsets[:-1], np.array([0, 5, 6, 400, 519]), np.arange(len(batch.ids))):
        found = engine.run(batch, Request(layers=layers, picked=True), at).hidden
        assert list(found) == list(layers)
        assert scaled_error(found[3], whole[3][at]) <= 1e-6
        assert all(np.array_equal(found[i], whole[i]) for i in layers[:-1])


@pytest.mark.parametrize(
    ("asked", "allowed", "threads"),
    [("", 8, 0), ("", 3, 3), ("2", 8, 2), ("16", 8, 0), ("x", 8, 0)],
)
def test_it_keeps_to_the_processors_that_it_may_use(
    asked: str, allowed: int, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    reference(tmp_path, "roberta", seed=1)
    session, _ = open_engine(tmp_path)._session(Request(layers=(1,)))
    # 0: ONNX Runtime's own choice, a thread for each core.
    assert session.get_session_options().intra_op_num_threads == threads
