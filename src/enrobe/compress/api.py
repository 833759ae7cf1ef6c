"""What `enrobe` offers of compression; its parts are imported when a call needs them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from enrobe.compress.quantize_report import QuantizeReport

ExportFormat = Literal["huggingface", "onnx", "openvino", "tensorrt"]
Quantized = Literal["int8", "float16", "int8-weights"]


def quantize(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    precision: Quantized = "int8",
    evaluate: str | os.PathLike[str] | None = None,
    max_drop: float = 0.003,
    head: str | None = None,
    task: Literal["sts", "bitext"] | None = None,
    text: Sequence[str] = (),
    label: Sequence[str] = (),
) -> "QuantizeReport":
    """Make a smaller, faster folder of a model, and measure what that cost.

    The folder is one that `load` reads, with report.md, report.json and report.png in it. Matrices
    become int8, smoothed where their inputs have outliers; where a number falls too far, the
    costliest stay float32, as few as it takes.

    Args:
        model: a folder, a built-in name or a hub id.
        output: a new folder.
        precision: "int8" is multiplied in int8; "int8-weights" and "float16" are only stored so.
        evaluate: a labelled file that the model is measured on, before and after; None: only noise
            is measured, on random words.
        max_drop: the largest loss of any number, as a share of the float32 one.
        head: the head that is measured; None: all that were trained on labels.
        task: measures vectors in place of heads, as `enrobe evaluate` does.
        text, label: columns; (): as `enrobe evaluate` finds them.

    Raises:
        CallError: an argument is wrong, the output is there already, or the file cannot be used.
        RefusedError: the loss is beyond `max_drop`; nothing was written.
        ModelError, HubError: as `enrobe.load`.
    """
    from enrobe.compress import quantize as module
    from enrobe.compress.measure import Data

    data = None
    if evaluate is not None:
        data = Data(file=Path(evaluate), task=task, head=head, text=tuple(text), label=tuple(label))
    return module.quantize(model, output, precision=precision, data=data, max_drop=max_drop)
