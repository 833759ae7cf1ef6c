"""A model in another form: what `enrobe export` writes."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

from enrobe import checkpoint, hub
from enrobe.compress.api import ExportFormat
from enrobe.compress.export_graph import GraphFormat, export_graph
from enrobe.errors import CallError, ModelError, nearest, show


def export(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    format: ExportFormat,
    head: str | None = None,
) -> Path:
    """Write a model in another form.

    Args:
        model: a folder, a built-in name or a hub id; None: as `enrobe.load` has it.
        output: a new folder.
        format: "huggingface": one head on its encoder, which transformers loads as it is; "onnx",
            "openvino", "tensorrt": a graph with all heads (`compress.export_graph`).
        head: its name, where the model has several; of a graph None is all.

    Raises:
        CallError: no such format or head, or several and none is named; the folder is there.
        RefusedError: a graph says something else than the model.
        HubError, ModelError: as `enrobe.load`.
    """
    if format not in get_args(ExportFormat):
        hint = nearest(str(format), get_args(ExportFormat))
        raise CallError(
            f"format is {show(format)}; allowed: {', '.join(get_args(ExportFormat))}{hint}"
        )
    folder = Path(output)
    return _FORMATS[format](checkpoint.read(hub.resolve(model)), folder, head)


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


def _graph(format: GraphFormat) -> Callable[[checkpoint.Checkpoint, Path, str | None], Path]:
    def write(read: checkpoint.Checkpoint, output: Path, head: str | None) -> Path:
        if head is not None:
            name = _chosen(read, head)
            read = replace(read, heads={name: read.heads[name]})
        return export_graph(read, output, format)

    return write


_FORMATS: Mapping[str, Callable[[checkpoint.Checkpoint, Path, str | None], Path]] = {
    "huggingface": _huggingface,
    "onnx": _graph("onnx"),
    "openvino": _graph("openvino"),
    "tensorrt": _graph("tensorrt"),
}
