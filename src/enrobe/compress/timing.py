"""How fast a folder runs and how much memory it takes, in a process of its own.

python -m enrobe.compress.timing FOLDER ENGINE PRECISION THREADS SECONDS
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from enrobe.engines.base import Engine, Request
from enrobe.errors import EnrobeError, ModelError
from enrobe.tasks.model import load
from enrobe.text.ragged import Ids, Ragged, plan

LENGTHS = (16, 128, 512)
"""Tokens of the one text whose latency is measured."""
_TOKENS = 2048
_FEWEST, _MOST = 20, 300


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Figures of one folder, engine, precision and number of threads on this machine."""

    p50: dict[int, float]
    p99: dict[int, float]
    # milliseconds a text, by its length in tokens; without the tokenizer
    runs: dict[int, int]
    # how often each was run; of fewer than 100 the 99th percentile is near the slowest
    tokens_per_second: float
    # over texts of usual lengths (median 25), in the batches that the engine is quickest with
    load_seconds: float
    memory: int
    # bytes that the process holds when it has run
    peak_memory: int


def time_folder(
    folder: Path,
    *,
    engine: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    seconds: float = 3.0,
) -> Speed:
    """Measure a folder in a new process.

    Args:
        folder: a model folder.
        engine, precision: as in `enrobe.load`.
        threads: processors that the process may use; None: all.
        seconds: about how long each of the four measurements may take.

    Raises:
        ModelError: the model does not run, and why.
    """
    count = threads or os.cpu_count() or 1
    command = [sys.executable, "-m", __name__, str(folder), engine, precision, str(count)]
    done = subprocess.run(  # noqa: S603  # our own module
        [*command, str(seconds)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise ModelError(f"{folder} could not be timed: {said[-1]}")
    values = json.loads(done.stdout)
    for name in ("p50", "p99", "runs"):
        values[name] = {int(length): value for length, value in values[name].items()}
    return Speed(**values)


def _measure(engine: Engine, seconds: float) -> dict[str, Any]:
    trained = tuple(name for name, head in engine.heads.items() if head.kind != "mlm")
    request = Request(heads=trained) if trained else Request(layers=(engine.config.num_layers,))
    rng = np.random.default_rng(0)
    p50, p99, runs = {}, {}, {}
    for length in [n for n in LENGTHS if n <= engine.config.max_tokens]:
        batch = Ragged.from_rows([_row(rng, engine, length)])
        engine.run(batch, request)
        taken: list[float] = []
        while len(taken) < _FEWEST or (sum(taken) < seconds and len(taken) < _MOST):
            start = time.perf_counter()
            engine.run(batch, request)
            taken.append(time.perf_counter() - start)
        p50[length], p99[length] = (float(np.percentile(taken, q)) * 1e3 for q in (50, 99))
        runs[length] = len(taken)
    rows = _usual_rows(rng, engine)
    batches = [
        Ragged.from_rows([rows[i] for i in group])
        for group in plan([len(row) for row in rows], budget=engine.budget)
    ]
    rounds: list[float] = []
    while len(rounds) < 2 or (sum(rounds) < seconds and len(rounds) < _FEWEST):
        start = time.perf_counter()
        for batch in batches:
            engine.run(batch, request)
        rounds.append(time.perf_counter() - start)
    rate = sum(map(len, rows)) / float(np.median(rounds))
    return {"p50": p50, "p99": p99, "runs": runs, "tokens_per_second": rate}


def _row(rng: np.random.Generator, engine: Engine, length: int) -> Ids:
    return rng.integers(0, engine.config.vocab_size, length)


def _usual_rows(rng: np.random.Generator, engine: Engine) -> list[Ids]:
    rows: list[Ids] = []
    while sum(map(len, rows)) < _TOKENS:
        length = int(np.clip(rng.lognormal(np.log(25), 0.77), 4, engine.config.max_tokens))
        rows.append(_row(rng, engine, length))
    return rows


def _memory() -> tuple[int, int]:
    """Bytes held now, and at most so far."""
    status = Path("/proc/self/status")
    if not status.exists():
        # Kilobytes on Linux, bytes on a Mac; there is no figure of now.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (peak, peak) if sys.platform == "darwin" else (peak * 1024, peak * 1024)
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    now, most = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return now, most


def main(arguments: Sequence[str]) -> None:
    """Measure, and print a `Speed` as JSON."""
    folder, engine, precision, threads, seconds = arguments
    if hasattr(os, "sched_setaffinity"):
        # What runs the products takes as many threads as it may use processors.
        own = sorted(os.sched_getaffinity(0))[: int(threads)]
        os.sched_setaffinity(0, own)
    start = time.perf_counter()
    model = load(folder, engine=engine, precision=precision)  # type: ignore[arg-type]  # checked
    model.embed("a")
    taken = time.perf_counter() - start
    found = _measure(model.engine, float(seconds))
    memory, peak = _memory()
    speed = Speed(**found, load_seconds=taken, memory=memory, peak_memory=peak)
    print(json.dumps(asdict(speed)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except EnrobeError as error:
        sys.exit(f"{error}")
