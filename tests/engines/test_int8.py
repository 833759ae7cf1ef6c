"""int8 in the ONNX engine: the arithmetic that the folder asks for, and no row knows of another."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import enrobe
from enrobe import checkpoint
from enrobe.config import SEQUENCE_KINDS
from enrobe.engines import onnx as onnx_engine
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.errors import CallError
from enrobe.text.ragged import Ragged
from enrobe.weights import Int8Rows
from tests.engines.int8_reference import Int8Reference
from tests.support import FAMILIES, HEADS, random_rows, random_types, reference, scaled_error
from tests.tasks.heads import bert_folder

LENGTHS = (7, 40, 3, 1, 7, 129, 2)
VOCAB = 97


def int8_folder(
    folder: Path, family: str, head: str | None, *, keep: str = "", smooth: str = "", seed: int = 1
) -> Path:
    """A random model as an int8 folder; matrices whose name has `keep` stay float32."""
    reference(folder / "float", family, head, seed=seed)
    read = checkpoint.read(folder / "float")
    rng = np.random.default_rng(seed)
    rows = {}
    for name, matrix in read.tensors.items():
        if matrix.ndim == 2 and not (keep and keep in name):
            factors = np.exp2(rng.integers(-3, 4, matrix.shape[1])).astype(np.float32)
            zero = 20 if ".down." in name else 128
            rows[name] = Int8Rows.of(matrix, factors if smooth and smooth in name else None, zero)
    checkpoint.write(
        folder / "int8", config=read.config, heads=read.heads, tensors=read.tensors, int8=rows
    )
    return folder / "int8"


def assert_same_arithmetic(pairs: list[tuple[Any, Any]]) -> None:
    """Equal, but where a number stood so near a half that its last bit rounded it the other way."""
    errors = [scaled_error(ours, theirs) for ours, theirs in pairs]
    assert max(errors) <= 0.1
    assert np.mean([error <= 1e-5 for error in errors]) >= 0.75, errors


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, *HEADS])
def test_equals_the_reference(family: str, head: str | None, tmp_path: Path) -> None:
    read = checkpoint.read(int8_folder(tmp_path, family, head, smooth=".up.", keep="1.down"))
    assert read.computes_int8 and "layers.1.down.weight" not in read.int8
    engine, told = OnnxEngine(read, precision="int8"), Int8Reference(read)
    rows, types = random_rows(2, LENGTHS, VOCAB), random_types(3, LENGTHS)
    batch = Ragged.from_rows(rows, types)
    at = np.arange(len(batch.ids), dtype=np.int64)
    out = engine.run(batch, Request(layers=(0, 1, 2, 3), heads=tuple(read.heads)), at)
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


@pytest.mark.parametrize("cuts_off", [False, True])
def test_a_rows_answer_is_bitwise_the_same_in_any_company(
    cuts_off: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_engine, "_cuts_off", lambda: cuts_off)
    read = checkpoint.read(int8_folder(tmp_path, "roberta", "mlm"))
    # A word a hundred times as large as its neighbours.
    words = read.int8["embeddings.word.weight"]
    scale = words.scale * np.where(np.arange(VOCAB) == 5, np.float32(100), np.float32(1))
    int8 = {**read.int8, "embeddings.word.weight": Int8Rows(words.values, scale)}
    engine = OnnxEngine(replace(read, int8=int8), precision="int8")
    rows = random_rows(22, LENGTHS, VOCAB)
    rows[1][3] = 5
    batch = Ragged.from_rows(rows)
    at = np.arange(len(batch.ids), dtype=np.int64)
    request = Request(layers=(1, 3), heads=("mlm",))
    together = engine.run(batch, request, at)
    for i, row in enumerate(rows):
        alone = engine.run(Ragged.from_rows([row]), request, np.arange(len(row)))
        start, stop = batch.offsets[i : i + 2]
        assert (together.hidden[3][start:stop] == alone.hidden[3]).all()
        assert (together.heads["mlm"][start:stop] == alone.heads["mlm"]).all()


def test_processors_that_cut_off_get_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = checkpoint.read(int8_folder(tmp_path, "bert", "mlm", smooth="query"))
    batch = Ragged.from_rows(random_rows(5, LENGTHS, VOCAB))
    request = Request(layers=(0, 3))
    found = []
    for cuts_off in (False, True):
        monkeypatch.setattr(onnx_engine, "_cuts_off", functools.partial(bool, cuts_off))
        found.append(OnnxEngine(read, precision="int8").run(batch, request).hidden)
    assert all((found[0][layer] == found[1][layer]).all() for layer in (0, 3))


def test_load_takes_what_the_folder_was_made_for(tmp_path: Path) -> None:
    bert_folder(tmp_path / "float", "classify")
    with pytest.raises(CallError, match="holds no int8 matrices; fix: enrobe quantize"):
        enrobe.load(tmp_path / "float", precision="int8")
    read = checkpoint.read(tmp_path / "float")
    parts = {"config": read.config, "heads": read.heads, "tensors": read.tensors}
    rows = {name: Int8Rows.of(m) for name, m in read.tensors.items() if m.ndim == 2}
    vocabulary = {"tokenizer_folder": tmp_path / "float"}
    checkpoint.write(tmp_path / "int8", **parts, **vocabulary, int8=rows)  # type: ignore[arg-type]
    checkpoint.write(tmp_path / "small", **parts, **vocabulary, int8_rows=True)  # type: ignore[arg-type]
    checkpoint.write(tmp_path / "half", **parts, **vocabulary, half=True)  # type: ignore[arg-type]
    made = {name: enrobe.load(tmp_path / name) for name in ("float", "int8", "small", "half")}
    assert [m.engine.precision for m in made.values()] == ["float32", "int8", "float32", "float32"]
    assert enrobe.load(tmp_path / "small", precision="int8").engine.precision == "int8"
    assert enrobe.load(tmp_path / "int8", precision="float32").engine.precision == "float32"
    answers = [model.predict("the cat sat on new york")[0].probability for model in made.values()]
    assert answers[0] != answers[1] and np.allclose(answers, answers[0], atol=0.05)
    assert answers[3] == pytest.approx(answers[0], abs=1e-3)
    for folder, wrong in (("int8", "int8"), ("float", "float16")):
        with pytest.raises(CallError, match=f"precision '{wrong}'"):
            enrobe.load(tmp_path / folder, engine="torch", precision=wrong)
    # transformers reads what is stored as float16.
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "half")
    assert theirs.config.num_labels == 5
