"""The PyTorch engine: parity through the public batch type, read-only inputs, wrong calls."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from enrobe import checkpoint
from enrobe.engines.base import Engine, Request
from enrobe.engines.torch import TorchEngine
from enrobe.errors import CallError
from enrobe.text.ragged import Ragged
from tests.support import (
    FAMILIES,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)

LENGTHS = (17, 3, 512, 1, 3)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TorchEngine:
    folder = tmp_path_factory.mktemp("torch") / "model"
    reference(folder, "roberta", "mlm", seed=1)
    return TorchEngine(checkpoint.read(folder))


def batch_of(seed: int, lengths: tuple[int, ...] = LENGTHS) -> Ragged:
    print(f"seed {seed}")
    return Ragged.from_rows(random_rows(seed, lengths, 97), random_types(seed, lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_engine_equals_transformers(family: str, tmp_path: Path) -> None:
    model = reference(tmp_path / "model", family, "tag", seed=2)
    engine: Engine = TorchEngine(checkpoint.read(tmp_path / "model"))
    assert (engine.name, engine.precision) == ("torch", "float32")
    rows, types = random_rows(2, LENGTHS, 97), random_types(2, LENGTHS)
    theirs = reference_outputs(model, rows, types)
    answers = engine.run(Ragged.from_rows(rows, types), Request(layers=(3, 0), heads=("tag",)))
    assert list(answers.hidden) == [3, 0] and list(answers.heads) == ["tag"]
    for layer, hidden in answers.hidden.items():
        assert hidden.dtype == np.float32
        assert scaled_error(hidden, np.concatenate([row[layer] for row in theirs.hidden])) <= 1e-5
    assert scaled_error(answers.heads["tag"], np.concatenate(theirs.logits)) <= 1e-5


def test_alone_equals_batched(engine: TorchEngine) -> None:
    batch = batch_of(3)
    at = batch.offsets[1:] - 1
    request = Request(heads=("mlm",))
    batched = engine.run(batch, request, at).heads["mlm"]
    for i in range(len(batch)):
        row = Ragged.from_rows(
            [batch.row(i)], [batch.types[batch.offsets[i] : batch.offsets[i + 1]]]
        )
        alone = engine.run(row, request, np.array([len(row.ids) - 1])).heads["mlm"]
        assert scaled_error(alone[0], batched[i]) <= 5e-6


@pytest.mark.parametrize("layers", [(3,), (0, 2, 3)])
def test_a_picked_last_layer_is_the_whole_one_there(
    engine: TorchEngine, layers: tuple[int, ...]
) -> None:
    batch = batch_of(9)
    whole = engine.run(batch, Request(layers=layers)).hidden
    for at in (batch.offsets[:-1], np.array([0, 18, 19, 400])):
        found = engine.run(batch, Request(layers=layers, picked=True), at).hidden
        assert list(found) == list(layers)
        assert scaled_error(found[3], whole[3][at]) <= 5e-6


def test_two_runs_are_bitwise_equal(engine: TorchEngine) -> None:
    batch, at = batch_of(4), np.array([2, 19, 20])
    request = Request(layers=(0, 1, 2), heads=("mlm",))
    first, second = (engine.run(batch, request, at) for _ in range(2))
    assert all(np.array_equal(first.hidden[i], second.hidden[i]) for i in (0, 1, 2))
    assert np.array_equal(first.heads["mlm"], second.heads["mlm"])


def test_threads_may_share_an_engine(engine: TorchEngine) -> None:
    batches = [batch_of(seed, (5, 9, 2)) for seed in range(8)]
    request = Request(layers=(3,))
    wanted = [engine.run(batch, request).hidden[3] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda batch: engine.run(batch, request).hidden[3], batches)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_inputs_may_be_read_only_and_stay_as_they_are(engine: TorchEngine) -> None:
    batch, at = batch_of(5), np.array([0, 18])
    before = [batch.ids.copy(), batch.types.copy(), batch.offsets.copy(), at.copy()]
    for array in (batch.ids, batch.types, batch.offsets, at):
        array.flags.writeable = False
    answers = engine.run(batch, Request(layers=(0,), heads=("mlm",)), at)
    # What comes back is the caller's own.
    answers.hidden[0][:] = 0
    answers.heads["mlm"][:] = 0
    after = [batch.ids, batch.types, batch.offsets, at]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert engine.run(batch, Request(layers=(0,))).hidden[0].any()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_on_a_cpu_is_refused(engine: TorchEngine, precision: str) -> None:
    del engine
    with pytest.raises(CallError, match=f"'{precision}'.*allowed there: float32; fix: "):
        TorchEngine(None, precision=precision)  # type: ignore[arg-type]


def test_absent_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CallError, match="finds no CUDA device; allowed here: cpu; fix: ") as caught:
        TorchEngine(None, device="cuda")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "device"), [("int8", "cpu"), ("float32", "tpu")])
def test_unknown_values_are_refused(precision: str, device: str) -> None:
    with pytest.raises(CallError, match="allowed: "):
        TorchEngine(None, precision=precision, device=device)  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("precision", "limit"), [("float32", 1e-5), ("float16", 2e-2), ("bfloat16", 1e-1)]
)
def test_cuda_equals_the_cpu(precision: str, limit: float, tmp_path: Path) -> None:
    reference(tmp_path / "model", "roberta", "mlm", seed=6)
    read = checkpoint.read(tmp_path / "model")
    batch, at = batch_of(6), np.array([2, 19, 20, 400])
    request = Request(layers=(0, 1), heads=("mlm",))
    wanted = TorchEngine(read).run(batch, request, at)
    found = TorchEngine(read, precision=precision, device="cuda").run(batch, request, at)
    assert scaled_error(found.heads["mlm"], wanted.heads["mlm"]) <= limit
    assert scaled_error(found.hidden[1], wanted.hidden[1]) <= limit
