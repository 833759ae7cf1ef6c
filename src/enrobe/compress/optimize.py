"""Which engine, precision and number of threads serve a model best here, on a person's own data."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, new_folder
from enrobe.compress.measure import Data, drops
from enrobe.compress.optimize_report import Choice, OptimizeReport, write_report
from enrobe.compress.quantize import MAX_DROP, quantize
from enrobe.compress.timing import time_folder
from enrobe.engines.base import allowed_processors
from enrobe.errors import CallError, RefusedError, show
from enrobe.evaluate.intervals import Interval
from enrobe.sentence_folder import copy_sentence_files
from enrobe.tasks.model import EngineName, load


def optimize(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    data: Data,
    max_drop: float = MAX_DROP,
    threads: Sequence[int] = (),
    seconds: float = 3.0,
) -> OptimizeReport:
    """Try engines, precisions and numbers of threads, and write the best as a folder.

    The best has the lowest median latency at 128 tokens among those that lose at most `max_drop`.

    Args:
        model: a folder, a built-in name or a hub id.
        output: a new folder: the model, with optimize.md, optimize.json and optimize.png.
        data: what must not be lost.
        max_drop: the largest loss of any number, as a share of the float32 one.
        threads: numbers of threads to try; (): 1, 2, 4, ... and all processors.
        seconds: about how long each timing may take.

    Raises:
        CallError: an argument is wrong, or the output is there already.
        ModelError, HubError: as `enrobe.load`.
    """
    folder = Path(output)
    check_new(folder)
    counts = _counts(threads)
    source = hub.resolve(model)
    ways: list[tuple[EngineName, str, Path]] = [("onnx", "float32", source)]
    said: list[str] = []
    for engine, package, extra in (
        ("openvino", "openvino", "openvino"),
        ("torch", "torch", "train"),
        ("native", "enrobe_native", "native"),
    ):
        if find_spec(package):
            ways.append((engine, "float32", source))  # type: ignore[arg-type]  # a name of ours
        else:
            said.append(f"{engine} is not installed; fix: pip install 'enrobe[{extra}]'")
    with new_folder(folder) as work:
        small = work / "int8"
        try:
            quantize(source, small, data=data, max_drop=max_drop, seconds=0.01)
            ways.append(("onnx", "int8", small))
            if find_spec("enrobe_native"):
                ways.append(("native", "int8", small))
        except RefusedError as error:
            said.append(f"int8: {error}")
        scores: dict[str, Mapping[str, Interval]] = {}
        choices = []
        for engine, precision, place in ways:
            loaded = load(place, engine=engine, precision=precision)  # type: ignore[arg-type]
            found = scores[f"{engine} {precision}"] = data.scores(loaded)
            del loaded
            lost = max(drops(scores["onnx float32"], found).values())
            for count in counts:
                speed = time_folder(
                    place, engine=engine, precision=precision, threads=count, seconds=seconds
                )
                choices.append(
                    Choice(
                        engine=engine, precision=precision, threads=count, lost=lost, speed=speed
                    )
                )
        good = [choice for choice in choices if choice.lost <= max_drop]
        winner = min(good, key=lambda choice: choice.latency)
        report = OptimizeReport(
            output=folder,
            choices=tuple(choices),
            winner=winner,
            front=tuple(front(choices)),
            scores=scores,
            said=tuple(said),
        )
        _keep(source, small, winner, work)
        write_report(report, work)
    return report


def front(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other beats in latency without losing more; the quickest first."""
    kept: list[Choice] = []
    least = math.inf
    for choice in sorted(choices, key=lambda c: (c.latency, c.lost)):
        if choice.lost < least:
            kept.append(choice)
            least = choice.lost
    return kept


def _counts(threads: Sequence[int]) -> list[int]:
    there = allowed_processors()
    if any(type(count) is not int or not 1 <= count <= there for count in threads):
        raise CallError(f"threads are {show(tuple(threads))}; allowed here: from 1 to {there}")
    powers = [2**n for n in range(there.bit_length()) if 2**n <= there]
    return sorted(set(threads) or {*powers, there})


def _keep(source: Path, small: Path, winner: Choice, work: Path) -> None:
    """The winner's folder becomes what stands in `work`."""
    if winner.precision == "int8":
        for path in small.iterdir():
            path.rename(work / path.name)
        small.rmdir()
        return
    shutil.rmtree(small, ignore_errors=True)
    read = checkpoint.read(source)
    checkpoint.write(
        work / "model",
        config=read.config,
        heads=read.heads,
        tensors=read.tensors,
        tokenizer_folder=read.folder,
    )
    for path in (work / "model").iterdir():
        path.rename(work / path.name)
    (work / "model").rmdir()
    copy_sentence_files(source, work)
