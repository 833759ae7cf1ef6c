"""How exact: both engines against transformers, and alone against batched, as scaled errors.

    python bench/parity.py

Scaled: max|a - b| / max(1, max|reference|). Random models in which no two sizes are equal and every
parameter is perturbed; rows of 1 to 512 tokens; the worst over families, heads and layers.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import ROOT, write_report

sys.path.insert(0, str(ROOT))

from tests.support import (
    FAMILIES,
    HEADS,
    ReferenceOutputs,
    Row,
    log_softmax,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)

from enrobe import checkpoint
from enrobe.config import SEQUENCE_KINDS
from enrobe.engines.base import Engine, Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.engines.torch import TorchEngine
from enrobe.text.ragged import Ragged

LENGTHS = (7, 512, 3, 30, 1, 7, 129, 2, 512)
LIMITS = {"hidden": 1e-5, "logits": 1e-5, "log_probabilities": 1e-5}


def compare(
    engine: Engine, rows: list[Row], types: list[Row], expected: ReferenceOutputs
) -> dict[str, float]:
    layers = tuple(range(engine.config.num_layers + 1))
    request = Request(layers=layers, heads=tuple(engine.heads))
    worst = {"hidden": 0.0, "logits": 0.0, "log_probabilities": 0.0, "alone": 0.0}

    def note(name: str, value: float) -> None:
        worst[name] = max(worst[name], value)

    batch = Ragged.from_rows(rows, types)
    together = engine.run(batch, request, np.arange(len(batch.ids)))
    for index, row in enumerate(rows):
        part = slice(batch.offsets[index], batch.offsets[index + 1])
        single = Ragged.from_rows([row], [types[index]])
        alone = engine.run(single, request, np.arange(len(row)))
        for layer in layers:
            ours = together.hidden[layer][part]
            note("hidden", scaled_error(ours, expected.hidden[index][layer]))
            note("alone", scaled_error(ours, alone.hidden[layer]))
        for name, head in engine.heads.items():
            values = together.heads[name]
            mine = values[index] if head.kind in SEQUENCE_KINDS else values[part]
            theirs = expected.logits[index]
            note("logits", scaled_error(mine, theirs))
            note("log_probabilities", scaled_error(log_softmax(mine), log_softmax(theirs)))
            own = alone.heads[name]
            note("alone", scaled_error(mine, own[0] if head.kind in SEQUENCE_KINDS else own))
    return worst


def main() -> None:
    rows, types = random_rows(1, LENGTHS, 97), random_types(2, LENGTHS)
    found: dict[str, dict[str, dict[str, float]]] = {"onnx": {}, "torch": {}}
    for family in FAMILIES:
        for head in (None, *HEADS):
            with tempfile.TemporaryDirectory() as folder:
                model = reference(Path(folder), family, head, seed=3)
                expected = reference_outputs(model, rows, types)
                read = checkpoint.read(Path(folder))
                for engine in (OnnxEngine(read), TorchEngine(read)):
                    worst = found[engine.name].setdefault(family, {})
                    for name, value in compare(engine, rows, types, expected).items():
                        worst[name] = max(worst.get(name, 0.0), float(f"{value:.1e}"))
    write_report("parity", {"rows": list(LENGTHS), "limits": LIMITS, "worst": found})


if __name__ == "__main__":
    main()
