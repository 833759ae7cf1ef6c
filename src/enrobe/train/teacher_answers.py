"""A teacher's answers, computed once a row and kept in a mapped file.

    CACHE/KEY.f32     float32 numbers, row after row
    CACHE/KEY.json    {"rows": how many are complete}

KEY is a hash of the teacher and of all rows, so that a file can only be found by runs to which it
belongs: those with other seeds, students or losses share it. Killed at any moment, the work goes on
after the last complete block.

Legend: N rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from enrobe.atomic import replace_file, sync
from enrobe.checkpoint import read_json
from enrobe.config import SEQUENCE_KINDS, HeadConfig
from enrobe.engines.base import Array, Engine
from enrobe.errors import ModelError
from enrobe.tasks.heads import run_heads
from enrobe.text.ragged import row_offsets
from enrobe.text.rows import Row
from enrobe.train.supervised import TrainRow

# Rows that are computed between two writes.
_BLOCK = 1024


class Answers:
    """One flat array of numbers a row."""

    def __init__(
        self,
        folder: Path,
        key: str,
        sizes: Sequence[int],
        compute: Callable[[range], Sequence[Array]],
        *,
        report: Callable[[int, int], object] = lambda done, rows: None,
    ) -> None:
        """Open those that are kept, and compute the rest.

        Args:
            folder: where they are kept; it is made.
            key: says all that they follow from; names the files.
            sizes: how many numbers each row has (N,).
            compute: the answers of some rows, each flattened or not.
            report: told before each block how many of the rows are done.

        Raises:
            OSError: the file cannot be written; what is complete stays.
            ModelError: what says how much is complete is damaged.
        """
        self._path, self._progress = folder / f"{key}.f32", folder / f"{key}.json"
        self._offsets = row_offsets(sizes)
        folder.mkdir(parents=True, exist_ok=True)
        done, rows = self._done(), len(sizes)
        if done < rows:
            with self._path.open("r+b" if done else "wb") as file:
                file.truncate(4 * int(self._offsets[done]))
                file.seek(0, 2)
                # Always the same blocks: how rows share batches does not depend on a kill.
                for start in range(done, rows, _BLOCK):
                    report(start, rows)
                    block = range(start, min(start + _BLOCK, rows))
                    flat = [np.ravel(one) for one in compute(block)]
                    assert [len(one) for one in flat] == [sizes[i] for i in block]
                    file.write(np.concatenate(flat).astype("<f4").tobytes())
                    file.flush()
                    sync(self._path)
                    replace_file(self._progress, json.dumps({"rows": block.stop}) + "\n")
        numbers = int(self._offsets[-1])
        self._flat: npt.NDArray[np.float32] = (
            np.memmap(self._path, "<f4", "r", shape=(numbers,))
            if numbers
            else np.empty(0, np.float32)
        )
        self.computed = rows - done
        # rows that were not there before

    def _done(self) -> int:
        if not self._progress.is_file() or not self._path.is_file():
            return 0
        done = read_json(self._progress).get("rows")
        most = len(self._offsets) - 1
        if type(done) is not int or not 0 <= done <= most or done % _BLOCK * (done - most):
            raise ModelError(f"{self._progress}: damaged; fix: delete it")
        whole = self._path.stat().st_size >= 4 * int(self._offsets[done])
        return done if whole else 0

    def __getitem__(self, row: int) -> npt.NDArray[np.float32]:
        """The numbers of one row, not copied."""
        return self._flat[self._offsets[row] : self._offsets[row + 1]]


def key_of(teacher: str, parts: Iterable[str | npt.NDArray[np.generic]]) -> str:
    """A name for all that answers follow from.

    Args:
        teacher: the hash of its files.
        parts: what it is asked; the same parts in the same order give the same name.
    """
    total = hashlib.sha256(teacher.encode())
    for part in parts:
        data = part.encode() if isinstance(part, str) else part.tobytes()
        total.update(f"\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()[:32]


def head_answers(
    engine: Engine,
    teacher: str,
    rows: Sequence[TrainRow],
    heads: dict[str, str],
    folder: Path,
    *,
    report: Callable[[int, int], object] = lambda done, rows: None,
) -> list[dict[str, Array]]:
    """For each row the teacher's logits by task, of the tasks that it has a target for.

    All heads of a row come from one pass of the encoder. Shapes: as `TrainRow.soft`.

    Args:
        engine: the teacher.
        teacher: the hash of its files.
        rows: of tasks that read the same texts.
        heads: by task the teacher's head.
        folder: where the answers are kept.
        report: as in `Answers`.
    """
    wanted = {name: engine.heads[head] for name, head in heads.items()}
    shapes = [
        {name: _shape(head, row) for name, head in wanted.items() if name in row.targets}
        for row in rows
    ]

    def compute(block: range) -> list[Array]:
        asked = [_asked(rows[i]) for i in block]
        found = run_heads(engine, asked, list(dict.fromkeys(heads.values())))
        return [
            np.concatenate([np.ravel(logits[heads[name]]) for name in shapes[i]])
            for i, logits in zip(block, found, strict=True)
        ]

    parts: list[str | npt.NDArray[np.generic]] = [json.dumps(heads)]
    for row in rows:
        parts += [row.ids, row.types, row.places, " ".join(row.targets)]
    sizes = [sum(a * b for a, b in shape.values()) for shape in shapes]
    answers = Answers(folder, key_of(teacher, parts), sizes, compute, report=report)
    out = []
    for number, shape in enumerate(shapes):
        ends = np.cumsum([a * b for a, b in shape.values()])[:-1]
        flat = np.split(answers[number], ends)
        out.append(
            {
                # A sequence head has one answer a row.
                name: part if wanted[name].is_sequence else part.reshape(size)
                for (name, size), part in zip(shape.items(), flat, strict=True)
            }
        )
    return out


def _shape(head: HeadConfig, row: TrainRow) -> tuple[int, int]:
    if head.kind in SEQUENCE_KINDS:
        return 1, head.width
    return len(row.places) + (head.kind == "answer"), head.width


def _asked(row: TrainRow) -> Row:
    return Row(ids=row.ids, types=row.types, places=row.places, units=row.places)
