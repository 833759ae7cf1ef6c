"""A model in another form: what `enrobe export` writes."""

import os
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

from enrobe import checkpoint, hub
from enrobe.atomic import check_new
from enrobe.compress.api import ExportFormat
from enrobe.compress.calibrate import rows_of
from enrobe.compress.export_graph import export_graph
from enrobe.compress.int8 import Int8Model, static
from enrobe.data.readers import Source
from enrobe.errors import CallError, ModelError, nearest, show
from enrobe.text.ragged import Ragged
from enrobe.text.tokenizer import Tokenizer

_MOST_ROWS = 10_000
# Of a file, which are read to calibrate with.


def export(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    format: ExportFormat,
    head: str | None = None,
    calibrate: str | os.PathLike[str] | None = None,
    column: str | None = None,
) -> Path:
    """Write a model in another form.

    Args:
        model: a folder, a built-in name or a hub id; None: as `enrobe.load` has it.
        output: a new folder.
        format: "huggingface": one head on its encoder, which transformers loads as it is; "onnx",
            "openvino", "tensorrt": a graph with all heads (`compress.export_graph`).
        head: its name, where the model has several; of a graph None is all.
        calibrate: a file of texts like those that the graph will read (txt, jsonl, csv, tsv,
            parquet; gz and xz of them): of "onnx" and "openvino" the graph is then in int8 (Q/DQ),
            with scales for these texts. None: in float32.
        column: which of the file's columns holds the text.

    Raises:
        CallError: no such format or head, or several and none is named; the folder is there; the
            file has no text, or is given for another format.
        RefusedError: a graph says something else than the model.
        HubError, ModelError: as `enrobe.load`.
    """
    if format not in get_args(ExportFormat):
        hint = nearest(str(format), get_args(ExportFormat))
        raise CallError(
            f"format is {show(format)}; allowed: {', '.join(get_args(ExportFormat))}{hint}"
        )
    if calibrate is None and column is not None:
        raise CallError("a column is named, and no file; fix: --calibrate FILE")
    if calibrate is not None and format not in ("onnx", "openvino"):
        raise CallError(f"a file to calibrate with, for {format}; allowed: for onnx and openvino")
    read, folder = checkpoint.read(hub.resolve(model)), Path(output)
    if format == "huggingface":
        return _huggingface(read, folder, head)
    if head is not None:
        name = _chosen(read, head)
        read = replace(read, heads={name: read.heads[name]})
    if calibrate is None:
        return export_graph(read, folder, format)
    check_new(folder)
    batch = _batch(read, Path(calibrate), column)
    if not read.int8:
        read = Int8Model.of(read, batch).without(())
    return export_graph(read, folder, format, static(read, batch))


def _batch(read: checkpoint.Checkpoint, file: Path, column: str | None) -> Ragged:
    """The first texts of a file as rows."""
    source = Source(file, column)
    rows = islice((row for row in source if row.error is None), _MOST_ROWS)
    texts = [row.text for row in rows if row.text.strip()]
    tokenizer = Tokenizer.from_folder(read.folder, read.config.family, read.config.vocab_size)
    batch = rows_of(tokenizer, texts, read.config)
    if not len(batch.ids):
        raise CallError(f"{file}: no text that can be read")
    return batch


def _huggingface(read: checkpoint.Checkpoint, output: Path, head: str | None) -> Path:
    """What enrobe.json says beyond config.json (temperature, thresholds, ...) goes along."""
    name = _chosen(read, head)
    others = tuple(f"heads.{other}." for other in read.heads if other != name)
    checkpoint.write(
        output,
        config=read.config,
        heads={name: read.heads[name]},
        tensors={key: value for key, value in read.tensors.items() if not key.startswith(others)},
        tokenizer_folder=read.folder,
    )
    return output


def _chosen(read: checkpoint.Checkpoint, head: str | None) -> str:
    has = ", ".join(map(show, read.heads)) or "none"
    if head is not None:
        if head not in read.heads:
            raise CallError(f"head is {show(head)}; the model's: {has}{nearest(head, read.heads)}")
        return head
    if not read.heads:
        raise ModelError(f"{read.folder}: the model has no head")
    if len(read.heads) > 1:
        raise CallError(f"the model has several heads; name one: {has}; fix: --head NAME")
    return next(iter(read.heads))
