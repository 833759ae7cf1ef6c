"""Our own engine: the folder's arithmetic, every kernel, and one answer in any company."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import enrobe
from enrobe import checkpoint, hub
from enrobe.config import SEQUENCE_KINDS
from enrobe.engines.base import Outputs, Request
from enrobe.errors import CallError
from enrobe.tasks import model as loading
from enrobe.tasks.info import info
from enrobe.text.ragged import Ragged
from enrobe.weights import Int8Rows
from tests.engines.int8_reference import Int8Reference
from tests.engines.test_int8 import LENGTHS, VOCAB, assert_same_arithmetic, int8_folder
from tests.engines.test_onnx import cut
from tests.support import (
    FAMILIES,
    HEADS,
    log_softmax,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)

pytest.importorskip("enrobe_native", reason="enrobe-native is not installed")
import enrobe_native as native

from enrobe.engines.native import NativeEngine

KERNELS = native.kernels()
ALL = Request(layers=(0, 1, 2, 3))


def test_there_is_always_a_plain_one() -> None:
    assert KERNELS[-1] == "plain"


# The quickest kernels for every family and head; the others have tests of their own below.
EVERY = [*itertools.product(FAMILIES, [None, *HEADS], KERNELS[:1])]
EVERY += [("roberta", "mlm", kernels) for kernels in KERNELS[1:]]


@pytest.mark.parametrize(("family", "head", "kernels"), EVERY)
def test_int8_equals_the_reference(
    family: str, head: str | None, kernels: str, tmp_path: Path
) -> None:
    read = checkpoint.read(int8_folder(tmp_path, family, head, smooth=".up.", keep="1.down"))
    told = Int8Reference(read, int16=True)
    rows, types = random_rows(2, LENGTHS, VOCAB), random_types(3, LENGTHS)
    batch = Ragged.from_rows(rows, types)
    at = np.arange(len(batch.ids), dtype=np.int64)
    engine = NativeEngine(read, precision="int8", kernels=kernels)
    out = engine.run(batch, Request(layers=ALL.layers, heads=tuple(read.heads)), at)
    pairs = []
    for i, (row, kinds) in enumerate(zip(rows, types, strict=True)):
        start, stop = batch.offsets[i : i + 2]
        found = [out.hidden[layer][start:stop] for layer in range(4)]
        pairs.append((found[0], told.embeddings(row, kinds)))
        # Each layer by itself: one number rounded otherwise would go through all that follow.
        pairs += [(found[n + 1], told.layer(found[n], n)) for n in range(3)]
        for name, values in out.heads.items():
            mine = values[i : i + 1] if head in SEQUENCE_KINDS else values[start:stop]
            pairs.append((mine, told.head(name, found[3])))
    assert_same_arithmetic(pairs)


@pytest.mark.parametrize(("family", "head", "kernels"), EVERY)
def test_float32_equals_transformers(
    family: str, head: str | None, kernels: str, tmp_path: Path
) -> None:
    model = reference(tmp_path, family, head, seed=11)
    lengths = (7, 512, 3, 30, 1, 7, 129, 2)
    rows, types = random_rows(12, lengths, VOCAB), random_types(13, lengths)
    expected = reference_outputs(model, rows, types)
    engine = NativeEngine(checkpoint.read(tmp_path), kernels=kernels)
    batch = Ragged.from_rows(rows, types)
    at = np.arange(len(batch.ids), dtype=np.int64)
    out = engine.run(batch, Request(layers=ALL.layers, heads=tuple(engine.heads)), at)
    for layer in range(4):
        for ours, theirs in zip(cut(out.hidden[layer], batch), expected.hidden, strict=True):
            assert scaled_error(ours, theirs[layer]) <= 1e-5
    for values in out.heads.values():
        found = list(values) if head in SEQUENCE_KINDS else cut(values, batch)
        for ours, theirs in zip(found, expected.logits, strict=True):
            assert scaled_error(ours, theirs) <= 1e-5
            assert scaled_error(log_softmax(ours), log_softmax(theirs)) <= 1e-5
    # Confined to what the head reads, the last layer gives the same.
    if engine.heads:
        alone = engine.run(batch, Request(heads=tuple(engine.heads)), at).heads
        assert all((alone[name] == out.heads[name]).all() for name in alone)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("hidden", "heads"), [(480, 10), (192, 12), (384, 3)])
def test_heads_that_fill_panels_equal_transformers(
    hidden: int, heads: int, kernels: str, tmp_path: Path
) -> None:
    sizes = {"hidden_size": hidden, "num_heads": heads, "intermediate_size": 100, "num_layers": 2}
    model = reference(tmp_path, "roberta", seed=5, **sizes)
    rows = random_rows(6, (70, 3, 200, 1, 33), VOCAB)
    theirs = reference_outputs(model, rows).hidden
    exact = reference_outputs(model.double(), rows).hidden
    # Weights of this spread make scores that a last digit moves by more than elsewhere.
    bounds = [
        1e-6 + 2 * max(scaled_error(a[n], b[n]) for a, b in zip(theirs, exact, strict=True))
        for n in range(3)
    ]
    batch = Ragged.from_rows(rows)
    at = np.arange(0, len(batch.ids), 3, dtype=np.int64)
    for threads in (1, 3):
        engine = NativeEngine(checkpoint.read(tmp_path), kernels=kernels, threads=threads)
        out = engine.run(batch, Request(layers=(0, 1, 2)))
        for layer in range(3):
            for ours, row in zip(cut(out.hidden[layer], batch), exact, strict=True):
                assert scaled_error(ours, row[layer]) <= bounds[layer] <= 1e-4
        picked = engine.run(batch, Request(layers=(2,), picked=True), at)
        assert (picked.hidden[2] == out.hidden[2][at]).all()


@pytest.mark.parametrize("count", [1, 12])
def test_sums_are_those_of_the_states(count: int, tmp_path: Path) -> None:
    read = checkpoint.read(int8_folder(tmp_path, "roberta", "mlm"))
    lengths = (300, 40, 3, 1, 7, 129, 2, 16, 33, 100, 65, 90)[:count]
    batch = Ragged.from_rows(random_rows(22, lengths, VOCAB))
    # All of a row, nothing of it, and what lies between.
    first = batch.offsets[:-1] + np.arange(count) % 3 // 2
    spans = np.stack([first, np.maximum(first, batch.offsets[1:] - np.arange(count) % 4)], axis=1)
    for threads in (1, 2, 5):
        engine = NativeEngine(read, precision="int8", threads=threads)
        states = engine.run(batch, ALL).hidden
        for layer, found in zip((3, 0), engine.sums(batch, (3, 0), spans), strict=True):
            for sum_H, (start, stop) in zip(found, spans, strict=True):
                assert (sum_H == states[layer][start:stop].sum(axis=0)).all()


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize(
    "kernels",
    [
        pytest.param(name, marks=[pytest.mark.slow] if 0 < n < len(KERNELS) - 1 else [])
        for n, name in enumerate(KERNELS)
    ],
)
def test_an_answer_is_bitwise_the_same_in_any_company(
    precision: str, kernels: str, tmp_path: Path
) -> None:
    read = checkpoint.read(int8_folder(tmp_path, "roberta", "mlm"))
    lengths = (300, 40, 3, 1, 7, 129, 2, 16, 17, 33, 100, 64, 65, 90)
    rows = random_rows(22, lengths, VOCAB)
    batch = Ragged.from_rows(rows)
    at = batch.offsets[1:] - 1
    requests = [Request(layers=(0, 2), heads=("mlm",)), Request(layers=(1, 3), picked=True), ALL]
    first: list[Outputs] = []
    for threads in (1, 2, 5):
        engine = NativeEngine(read, precision=precision, threads=threads, kernels=kernels)
        found = [engine.run(batch, request, at) for request in requests]
        first = first or found
        for one, same in zip(found, first, strict=True):
            assert all((one.hidden[n] == same.hidden[n]).all() for n in one.hidden)
            assert all((one.heads[n] == same.heads[n]).all() for n in one.heads)
        for i, row in enumerate(rows):
            start, stop = batch.offsets[i : i + 2]
            alone = engine.run(Ragged.from_rows([row]), ALL)
            assert all((alone.hidden[n] == first[2].hidden[n][start:stop]).all() for n in range(4))
            last = engine.run(Ragged.from_rows([row]), requests[0], np.array([len(row) - 1]))
            assert (last.heads["mlm"][0] == first[0].heads["mlm"][i]).all()


def test_the_best_entries_are_those_of_the_logits(tmp_path: Path) -> None:
    read = checkpoint.read(int8_folder(tmp_path, "roberta", "mlm"))
    # Rows of the table that are alike have the same logit: the lower id comes first.
    words = read.int8["embeddings.word.weight"]
    same = np.where(np.arange(VOCAB) % 3 == 0, 9, np.arange(VOCAB))
    bias = np.zeros(VOCAB, np.float32)
    read = replace(
        read,
        int8={
            **read.int8,
            "embeddings.word.weight": Int8Rows(words.values[same], words.scale[same]),
        },
        tensors={**read.tensors, "heads.mlm.bias": bias},
    )
    batch = Ragged.from_rows(random_rows(4, LENGTHS, VOCAB))
    at = np.arange(0, len(batch.ids), 2)
    for threads in (1, 3):
        engine = NativeEngine(read, precision="int8", threads=threads)
        logits = engine.run(batch, Request(heads=("mlm",)), at).heads["mlm"]
        expected = log_softmax(logits)
        for count in (1, 7, VOCAB):
            ids, logs = engine.best(batch, "mlm", at, count)
            assert (ids == np.argsort(-logits, axis=1, kind="stable")[:, :count]).all()
            assert scaled_error(logs, np.take_along_axis(expected, ids, axis=1)) <= 1e-6
    with pytest.raises(ValueError, match="count must be from 1 to 97"):
        engine.best(batch, "mlm", at, VOCAB + 1)


def test_threads_of_python_share_an_engine(tmp_path: Path) -> None:
    engine = NativeEngine(checkpoint.read(int8_folder(tmp_path, "bert", "classify")), threads=3)
    batches = [Ragged.from_rows(random_rows(seed, LENGTHS, VOCAB)) for seed in range(4)]
    request = Request(layers=(3,), heads=("classify",))
    expected = [engine.run(batch, request) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for n, found in enumerate(
            pool.map(lambda n: engine.run(batches[n % 4], request), range(40))
        ):
            assert (found.hidden[3] == expected[n % 4].hidden[3]).all()
            assert (found.heads["classify"] == expected[n % 4].heads["classify"]).all()


# --- kernels by themselves ------------------------------------------------------------------------


def encoder(
    kernels: str, sizes: tuple[int, int, int, int] = (1, 56, 72, 7), threads: int = 2
) -> Any:
    layers, hidden, wide, heads = sizes
    return native.Encoder(layers, hidden, wide, heads, 1e-5, threads, kernels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_whole_numbers_are_summed_exactly(kernels: str) -> None:
    rng = np.random.default_rng(1)
    for rows, n, k in itertools.product((1, 2, 5, 17, 31, 33, 70), (1, 63, 65, 200), (1, 66, 257)):
        zero = int(rng.integers(1, 255))
        numbers = rng.integers(-zero, 256 - zero, (rows, k))
        # Both ends are there, so that the scale is 1.
        numbers[:, 0], numbers[:, -1] = 255 - zero, -zero if k > 1 else 255 - zero
        matrix = rng.integers(-127, 128, (n, k)).astype(np.int8)
        made = encoder(kernels)
        made.set_linear(
            "m", matrix, np.ones(n, np.float32), np.zeros(n, np.float32), smooth=None, zero=zero
        )
        found = made.apply("m", numbers.astype(np.float32))
        assert (found == (numbers @ matrix.T.astype(np.int64)).astype(np.float32)).all()


@pytest.mark.parametrize("kernels", KERNELS)
def test_rounding_is_that_of_a_division(kernels: str) -> None:
    rng = np.random.default_rng(2)
    k = 400
    x = (rng.standard_normal((300, k)) * np.exp(rng.normal(0, 20, (300, 1)))).astype(np.float32)
    x[0], x[1] = 0, -1e-40
    made = encoder(kernels)
    # The numbers themselves: the matrix takes one out at a time.
    one = np.eye(k, dtype=np.int8)
    made.set_linear("m", one, np.ones(k, np.float32), np.zeros(k, np.float32))
    high = x.max(-1, keepdims=True) / np.float32(127)
    low = x.min(-1, keepdims=True) / np.float32(-128)
    scale = np.maximum(np.maximum(high, low), np.finfo(np.float32).tiny)
    assert (made.apply("m", x) == np.rint(x / scale) * scale).all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("d", "tokens"), [(1, 3), (8, 512), (64, 512), (128, 511)])
def test_attention_has_room_for_its_largest_sums(d: int, tokens: int, kernels: str) -> None:
    # Tokens of two kinds, x and -x, whose keys are as large as they can be, and as the queries are:
    # all attend to the first kind, whose sums would be the smallest if they did not fit.
    x = np.tile(np.array([1, -1], np.float32), d)
    hidden, zeros, one = len(x), np.zeros_like(x), np.ones_like(x)
    from_first = np.zeros((hidden, hidden), np.float32)
    from_first[:, 0] = 9.0
    value = np.diag(np.rint(np.linspace(127, -127, hidden)).astype(np.float32))
    ids = np.arange(tokens) % 2
    middle = np.stack([x, -x])[ids] + np.diag(value) * x
    expected = (middle - middle.mean(-1, keepdims=True)) / middle.std(-1, keepdims=True)
    for int8 in (False, True):
        made = encoder(kernels, (1, hidden, hidden, 2))
        made.set_table("word", np.stack([x, -x]))
        made.set_table("position", np.zeros((tokens, hidden), np.float32))
        for name in ("embeddings.norm", "layers.0.attention_norm", "layers.0.norm"):
            made.set_norm(name, one, zeros)
        made.set_linear("layers.0.query", 0 * from_first, 9 * one)
        made.set_linear("layers.0.key", from_first, zeros)
        made.set_linear("layers.0.value", value, zeros)
        output = np.eye(hidden, dtype=np.int8 if int8 else np.float32)
        made.set_linear("layers.0.output", output, *([one] if int8 else []), zeros)
        for part in ("up", "down"):
            made.set_linear(f"layers.0.{part}", 0 * from_first, zeros)
        made.finish()
        (found,) = made.run(ids, ids * 0, np.arange(tokens), np.array([0, tokens]), 1, [1])
        assert scaled_error(found, expected) <= 1e-5


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("spread", [0, 3])
def test_products_of_float32_are_as_near_as_float32_can_be(kernels: str, spread: int) -> None:
    rng = np.random.default_rng(3)
    for rows, n, k in ((1, 1, 1), (5, 70, 300), (33, 64, 768), (100, 65, 3072)):
        # Of all magnitudes: what a part of the number carries is not lost.
        x, w = (
            rng.standard_normal(s) * np.exp(rng.normal(0, spread, s)) for s in ((rows, k), (n, k))
        )
        x, w = x.astype(np.float32), w.astype(np.float32)
        bias = rng.standard_normal(n).astype(np.float32)
        made = encoder(kernels)
        made.set_linear("m", w, bias)
        exact = x.astype(np.float64) @ w.T.astype(np.float64) + bias
        large, heavy = np.abs(x).astype(np.float64), np.abs(w).astype(np.float64)
        if kernels == "amx" and spread:
            # Its numbers have the digits that the largest of the row leaves them.
            most = large.max(1, keepdims=True) * heavy.sum(1)
            most += large.sum(1, keepdims=True) * heavy.max(1)
            assert (np.abs(made.apply("m", x) - exact) / (most + np.abs(bias))).max() <= 1e-7
            continue
        room = large @ heavy.T + np.abs(bias)
        assert (np.abs(made.apply("m", x) - exact) / room).max() <= 3e-7 * np.sqrt(k)


@pytest.mark.parametrize("kernels", KERNELS)
def test_activations(kernels: str) -> None:
    import torch

    x = np.concatenate([np.linspace(-12, 12, 4001), [0.0, -0.0, 1e-30, -90, 90]])
    x = x.astype(np.float32)[:, None]
    made = encoder(kernels)
    made.set_linear("m", np.ones((1, 1), np.float32), np.zeros(1, np.float32))
    exact = torch.from_numpy(x.astype(np.float64))
    for name in ("gelu", "tanh", "relu"):
        expected = getattr(torch.nn.functional, name)(exact).numpy()
        error = np.abs(made.apply("m", x, name) - expected) / np.maximum(1, np.abs(x))
        assert error.max() <= 3e-7


@pytest.mark.parametrize("seed", range(8))
def test_sizes_that_are_multiples_of_nothing(seed: int) -> None:
    choose = random.Random(seed)
    print("seed", seed)
    heads = choose.choice([1, 2, 3, 5])
    longest = 90 if seed < 6 else 300
    # AMX has a way of its own for long texts whose heads are of so many numbers.
    hidden = heads * choose.choice([1, 7, 16, 20, 33, 65, 130] if seed < 6 else [64, 128])
    wide, layers = choose.randint(1, 300), 2
    rng = np.random.default_rng(seed)
    arrays: dict[str, tuple[np.ndarray, ...]] = {}
    for i in range(layers):
        for part, (n, k) in {
            **dict.fromkeys(("query", "key", "value", "output"), (hidden, hidden)),
            "up": (wide, hidden),
            "down": (hidden, wide),
        }.items():
            weight = rng.standard_normal((n, k)).astype(np.float32) / np.float32(np.sqrt(k))
            arrays[f"layers.{i}.{part}"] = weight, rng.standard_normal(n).astype(np.float32)
    lengths = [choose.randint(1, longest) for _ in range(12)]
    ids = rng.integers(0, 50, sum(lengths))
    offsets = np.cumsum([0, *lengths])
    places = np.concatenate([np.arange(n) for n in lengths])
    found = []
    for kernels, threads in [*((name, 2) for name in KERNELS), ("plain", 1)]:
        made = encoder(kernels, (layers, hidden, wide, heads), threads)
        rng = np.random.default_rng(seed)
        made.set_table("word", rng.standard_normal((50, hidden)).astype(np.float32))
        made.set_table("position", rng.standard_normal((longest, hidden)).astype(np.float32))
        for name in (
            "embeddings.norm",
            *(f"layers.{i}.{p}" for i in range(layers) for p in ("attention_norm", "norm")),
        ):
            made.set_norm(name, *rng.standard_normal((2, hidden)).astype(np.float32))
        for name, (weight, bias) in arrays.items():
            made.set_linear(name, weight, bias)
        made.finish()
        found.append(made.run(ids, ids * 0, places, offsets, layers, [0, 1, 2]))
    for values in found:
        assert all(scaled_error(a, b) <= 1e-5 for a, b in zip(values, found[-1], strict=True))


# --- mistakes and damage --------------------------------------------------------------------------


def small(**changes: Any) -> Any:
    """An encoder of one layer; parts may be changed or left out (None)."""
    made = encoder("plain", (1, 8, 12, 2), 1)
    rng = np.random.default_rng(0)
    tables = {"word": 20, "position": 9, "token_type": 2}
    for name, rows in tables.items():
        if changes.get(name, 0) is not None:
            made.set_table(name, changes.get(name, np.ones((rows, 8), np.float32)))
    for name in ("embeddings.norm", "layers.0.attention_norm", "layers.0.norm"):
        made.set_norm(name, *changes.get(name, (np.ones(8, np.float32), np.ones(8, np.float32))))
    for part in ("query", "key", "value", "output", "up", "down"):
        n, k = {"up": (12, 8), "down": (8, 12)}.get(part, (8, 8))
        weight = rng.standard_normal((n, k)).astype(np.float32)
        made.set_linear(f"layers.0.{part}", *changes.get(part, (weight, np.ones(n, np.float32))))
    made.finish()
    return made


def test_what_does_not_fit_is_refused() -> None:
    ones = np.ones((8, 8), np.float32)
    small()
    for changes, what in (
        ({"word": None}, "no table word"),
        ({"word": np.ones((20, 7), np.float32)}, "not as wide"),
        ({"up": (ones, ones[0])}, "8 outputs of 8 inputs; wanted 12 of 8"),
        ({"up": (np.ones((12, 8), np.float32), ones[0])}, "has 8 numbers; wanted 12"),
        ({"layers.0.norm": (ones[0][:7], ones[0][:7])}, "not as wide"),
    ):
        with pytest.raises(ValueError, match=what):
            small(**changes)
    for sizes in ((0, 8, 8, 2), (1, 8, 8, 3), (1, 0, 8, 1)):
        with pytest.raises(ValueError, match="sizes of an encoder"):
            encoder("plain", sizes)
    with pytest.raises(ValueError, match=r"kernels 'nothing'; this processor has: .*plain"):
        encoder("nothing")
    with pytest.raises(ValueError, match="finish"):
        encoder("plain").run(*(np.zeros(1, np.int64),) * 3, np.array([0, 1]), 0, [0])
    with pytest.raises(ValueError, match="no linear layer"):
        small().apply("nothing", ones)
    with pytest.raises(ValueError, match="activation 'swish'"):
        small().apply("layers.0.up", ones, "swish")
    with pytest.raises(ValueError, match="zero must be"):
        small().set_linear("m", ones.astype(np.int8), ones[0], ones[0], None, 255)
    with pytest.raises(TypeError):
        small().set_linear("m", ones.astype(np.float64), ones[0])


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.integers(-2, 22), min_size=0, max_size=12),
    types=st.lists(st.integers(-1, 2), min_size=0, max_size=12),
    places=st.lists(st.integers(-1, 9), min_size=0, max_size=12),
    offsets=st.lists(st.integers(-1, 13), min_size=0, max_size=5),
    depth=st.integers(0, 2),
    layers=st.lists(st.integers(0, 2), max_size=3),
    picks=st.none() | st.lists(st.integers(-1, 12), max_size=4),
    spans=st.none() | st.lists(st.tuples(st.integers(-1, 12), st.integers(-1, 13)), max_size=5),
)
def test_any_call_is_answered_or_refused(
    ids: list[int],
    types: list[int],
    places: list[int],
    offsets: list[int],
    depth: int,
    layers: list[int],
    picks: list[int] | None,
    spans: list[tuple[int, int]] | None,
) -> None:
    arrays = [np.array(values, np.int64) for values in (ids, types, places, offsets)]
    asked = None if picks is None else np.array(picks, np.int64)
    try:
        ranges = None if spans is None else np.array(spans, np.int64).reshape(-1, 2)
        found = _SMALL.run(*arrays, depth, layers, asked, ranges)
    except ValueError:
        return
    assert len(found) == len(layers)
    assert offsets[-1] == len(ids) == len(types) == len(places)
    for layer, values in zip(layers, found, strict=True):
        rows = len(picks) if picks is not None and layer == depth else len(ids)
        rows = rows if spans is None else len(offsets) - 1
        assert values.shape == (rows, 8) and np.isfinite(values).all()


_SMALL = small()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_damaged_folder_is_refused_or_read(data: st.DataObject, tmp_path_factory: Any) -> None:
    global _FOLDER
    if _FOLDER is None:
        made = int8_folder(tmp_path_factory.mktemp("whole"), "roberta", "classify", smooth="up")
        _FOLDER = {path.name: path.read_bytes() for path in made.iterdir()}
    weights = bytearray(_FOLDER["model.int8.safetensors"])
    for _ in range(data.draw(st.integers(1, 4))):
        weights[data.draw(st.integers(0, len(weights) - 1))] = data.draw(st.integers(0, 255))
    weights = weights[: data.draw(st.integers(0, len(weights)) | st.just(len(weights)))]
    folder = tmp_path_factory.mktemp("damaged")
    for name, content in {**_FOLDER, "model.int8.safetensors": bytes(weights)}.items():
        (folder / name).write_bytes(content)
    try:
        engine = NativeEngine(checkpoint.read(folder), precision="int8", threads=1)
    except (enrobe.EnrobeError, ValueError):
        return
    batch = Ragged.from_rows(random_rows(1, (3, 9), VOCAB))
    engine.run(batch, Request(heads=tuple(engine.heads)))


_FOLDER: dict[str, bytes] | None = None


# --- loading --------------------------------------------------------------------------------------


def test_load_and_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "int8"
    read = checkpoint.read(hub.resolve("enrobe-tiny"))
    kept = ("position", "token_type")
    rows = {
        name: Int8Rows.of(matrix)
        for name, matrix in read.tensors.items()
        if matrix.ndim == 2 and not any(part in name for part in kept)
    }
    checkpoint.write(
        folder,
        config=read.config,
        heads=read.heads,
        tensors=read.tensors,
        int8=rows,
        tokenizer_folder=read.folder,
    )
    model = enrobe.load(folder)
    chosen = "onnx" if KERNELS[0] in ("avx2", "plain") else "native"
    assert (model.engine.name, model.engine.precision) == (chosen, "int8")
    quickest = "native" if KERNELS[0] in ("amx", "avx512") else "onnx"
    assert enrobe.load(folder, precision="float32").engine.name == quickest
    assert enrobe.load("enrobe-tiny", engine="native").engine.precision == "float32"
    told = info(folder)["engine"]
    assert told["name"] == chosen
    if chosen == "native":
        assert told["why"] == f"the quickest at int8 here ({KERNELS[0]})"
    with pytest.raises(
        CallError, match="engine 'native' runs float32 or int8 on a CPU, not float16"
    ):
        enrobe.load(folder, engine="native", precision="float16")
    (fill,) = model.fill("Paris is the capital of <mask>.", top_k=3)
    (same,) = enrobe.load(folder, engine="onnx").fill("Paris is the capital of <mask>.", top_k=3)
    ours, theirs = (f.masks[0].candidates for f in (fill, same))
    assert [c.word for c in ours] == [c.word for c in theirs]
    assert max(abs(a.probability - b.probability) for a, b in zip(ours, theirs, strict=True)) < 0.01
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    assert enrobe.load(folder).engine.name == "onnx"
    assert info(folder)["engine"]["why"].startswith("enrobe-native is not installed")
