"""The OpenVINO engine against ONNX Runtime's: every family and head, layers, picks, threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import enrobe
from enrobe import checkpoint
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.errors import CallError
from enrobe.text.ragged import Ragged
from tests.support import FAMILIES, HEADS, random_rows, random_types, reference, scaled_error

pytest.importorskip("openvino", reason="OpenVINO is not installed")
from enrobe.engines.openvino import OpenvinoEngine

LENGTHS = (7, 40, 3, 1, 7, 129, 2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, *HEADS])
def test_equals_the_onnx_engine(family: str, head: str | None, tmp_path: Path) -> None:
    reference(tmp_path, family, head, seed=4)
    read = checkpoint.read(tmp_path)
    batch = Ragged.from_rows(random_rows(5, LENGTHS, 97), random_types(6, LENGTHS))
    at = np.array([0, 5, 50, 180])
    every = Request(layers=(0, 2, 3), heads=tuple(read.heads))
    ours, theirs = (e.run(batch, every, at) for e in (OpenvinoEngine(read), OnnxEngine(read)))
    for layer in every.layers:
        assert scaled_error(ours.hidden[layer], theirs.hidden[layer]) <= 1e-5
    for name in every.heads:
        assert scaled_error(ours.heads[name], theirs.heads[name]) <= 1e-5


def test_picks_and_threads(tmp_path: Path) -> None:
    reference(tmp_path, "roberta", "mlm", seed=5)
    read = checkpoint.read(tmp_path)
    engine = OpenvinoEngine(read)
    batch = Ragged.from_rows(random_rows(7, LENGTHS, 97))
    request, at = Request(layers=(1, 3), picked=True), batch.offsets[:-1]
    expected = OnnxEngine(read).run(batch, request, at).hidden
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: engine.run(batch, request, at).hidden, range(8)):
            assert all(scaled_error(found[n], expected[n]) <= 1e-5 for n in (1, 3))


def test_load() -> None:
    model = enrobe.load("enrobe-tiny", engine="openvino")
    (fill,) = model.fill("Paris is the capital of <mask>.", top_k=2)
    (same,) = enrobe.load("enrobe-tiny").fill("Paris is the capital of <mask>.", top_k=2)
    assert [c.word for c in fill.masks[0].candidates] == [c.word for c in same.masks[0].candidates]
    with pytest.raises(CallError, match="engine 'openvino' runs float32 on a CPU, not int8"):
        enrobe.load("enrobe-tiny", engine="openvino", precision="int8")
