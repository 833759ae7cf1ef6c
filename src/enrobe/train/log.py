"""What a run says: JSON lines and TensorBoard in its folder, progress on the screen."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

LOG = "log.jsonl"


class Log:
    """The log of one run. A resumed run goes on where its checkpoint stands."""

    def __init__(self, folder: Path | None, *, steps: int, start: int) -> None:
        """Open it; lines of steps after `start`, from a run that was killed, go.

        Without a folder nothing is written or shown: one process of several speaks for all.
        """
        self._steps, self._start = steps, start
        self._began = time.monotonic()
        self._bar = sys.stderr.isatty()
        self._file: IO[str] | None = None
        if folder is None:
            return
        path = folder / LOG
        # A run that begins anew measures held-out data again, too.
        kept = [line for line in _lines(path) if start and _step(line) <= start]
        temporary = folder / f".{LOG}"
        temporary.write_text("".join(kept), "utf-8")
        temporary.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", start + 1 if start else 0)

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a stretch of steps that ends with this one."""
        if self._file is None:
            return
        record = {"step": step, **{name: _short(value) for name, value in numbers.items()}}
        self._write(record)
        self._plot(step, "train", numbers)
        if self._bar:
            line = f"\r\033[K{self._line(step, numbers)}"
            print(line, end="\n" if step == self._steps else "", file=sys.stderr, flush=True)
        else:
            print(json.dumps(record), file=sys.stderr, flush=True)

    def evaluation(self, step: int, results: Mapping[str, Mapping[str, float]]) -> None:
        """Results on held-out data: {set: {measure: value}}."""
        if self._file is None:
            return
        shown = {name: {k: _short(v) for k, v in one.items()} for name, one in results.items()}
        self._write({"step": step, "evaluation": shown})
        for name, one in results.items():
            self._plot(step, name, one)
        if self._bar:
            for name, one in shown.items():
                values = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in one.items())
                print(f"\r\033[Kstep {step:,}  {name}: {values}", file=sys.stderr, flush=True)
        else:
            record = {"step": step, "evaluation": shown}
            print(json.dumps(record), file=sys.stderr, flush=True)

    def cosines(self, step: int, found: Mapping[str, float]) -> None:
        """Cosines between gradients at a step; they go to the files alone."""
        if self._file is None:
            return
        record = {"step": step, "cosines": {name: _short(value) for name, value in found.items()}}
        self._write(record)
        self._plot(step, "cosines", found)

    def say(self, text: str) -> None:
        """A line for whoever watches; it stands in no file."""
        if self._file is None:
            return
        print(f"\r\033[K{text}" if self._bar else text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Write out what is held back."""
        if self._file is None:
            return
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def _plot(self, step: int, group: str, numbers: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def _line(self, step: int, numbers: Mapping[str, float]) -> str:
        done = step - self._start
        left = (time.monotonic() - self._began) / max(1, done) * (self._steps - step)
        return (
            f"step {step:,} of {self._steps:,} ({step / self._steps:.0%})  "
            f"loss {numbers['loss']:.3f}  {numbers['tokens_per_second']:,.0f} tokens/s  "
            f"{_duration(left)} left"
        )


def _tensorboard(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        # `pip install tensorboard` is all that is missing; log.jsonl has the same numbers.
        return None
    return SummaryWriter(str(folder), purge_step=first)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    # The last line may have been cut by a kill.
    text = path.read_text("utf-8", "replace")
    return [line for line in text.splitlines(True) if line.endswith("}\n")]


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        # Not written here, so it goes.
        return math.inf


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
