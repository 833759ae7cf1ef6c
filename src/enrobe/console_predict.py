"""Predictions as the command line shows them: a table on a terminal, JSON lines elsewhere."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType

from enrobe.console import Job, answer_rows, printable, under
from enrobe.tasks.predict_file import FilePredictor, Input, Inputs, Predicted


def predict_rows(job: Job, predictor: FilePredictor, columns: Sequence[str]) -> int:
    """Answer the rows of a file, in their order and in constant memory; returns the exit code."""
    inputs = Inputs(job.input or "-", columns, predictor.wanted)
    cut = 0

    def run(rows: list[Input]) -> list[Predicted]:
        nonlocal cut
        found = predictor.run(rows)
        cut += sum(one.cut for one in found)
        return found

    code = answer_rows(job, iter(inputs), inputs, run, predictor.failed, _table)
    if cut:
        print(f"enrobe: {cut} texts were cut, having more tokens than a row", file=sys.stderr)
    return code


def _table(found: Predicted) -> RenderableType:
    text = next(iter(found.asked.values()))
    if isinstance(text, list):
        text = " | ".join(t if isinstance(t, str) else " ".join(t) for t in text)
    if found.error is not None:
        return under(text, f"  {printable(found.error)}")
    heads = found.said.get("heads")
    if heads is None:
        return under(text, "\n".join(_lines(found.said)))
    lines = [f"  {printable(name)}" + line for name, one in heads.items() for line in _lines(one)]
    return under(text, "\n".join(lines))


def _lines(said: Any) -> list[str]:
    """What one head says, a line or more."""
    if isinstance(said, dict) and "label" in said:
        return [f"  {_label(said)}"]
    parts = said if isinstance(said, list) else said.get("spans", said.get("answers", []))
    return [_part(part) for part in parts] or ["  none"]


def _part(part: dict[str, Any]) -> str:
    """A span, or an answer."""
    label = f"  {printable(part['label'])}" if "label" in part else ""
    text = printable(part["text"]) or "(no answer)"
    return f"{label}  {text}  {part['start']}-{part['end']}  {part['probability']:.4f}"


def _label(said: dict[str, Any]) -> str:
    if isinstance(said["value"], float):
        return f"{said['value']:.4f}"
    if isinstance(said["value"], dict):
        return ", ".join(f"{printable(name)} {n:.4f}" for name, n in said["value"].items())
    if isinstance(said["label"], str):
        return f"{printable(said['label'])}  {said['probability']:.4f}"
    chances = said["probabilities"]
    return ", ".join(f"{printable(n)} {chances[n]:.4f}" for n in said["label"] or ()) or "none"
