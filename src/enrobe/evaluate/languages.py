"""One model, many languages: what was learned in one of them and holds in the others."""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from enrobe.data.records import Records
from enrobe.errors import CallError, nearest, show
from enrobe.evaluate.files import HeadReport, Report, Task, evaluate_file, evaluate_head
from enrobe.evaluate.intervals import Interval
from enrobe.evaluate.similarity import Embedding, Progress
from enrobe.tasks.model import Model

# A column of these names says a row's language.
COLUMNS = ("language", "lang")
# Training is most often in English, by whichever code or name.
_ENGLISH = ("en", "eng", "english")
# What a file's name is cut at, and a language's name never holds.
_CUTS = re.compile(r"[/._\-]+")
_MOST = 1000


@dataclass(frozen=True, kw_only=True)
class LanguagesReport:
    """Scores by language."""

    source: str | None
    # the language that the others are compared with: the one trained on
    languages: Mapping[str, HeadReport | Report]
    # in the order of the files

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the scores, the usual one first."""
        return tuple(self.scores(next(iter(self.languages))))

    def scores(self, language: str) -> dict[str, Interval]:
        """One language's scores."""
        report = self.languages[language]
        found = report.scores if isinstance(report, HeadReport) else vars(report)
        return {name: value for name, value in found.items() if isinstance(value, Interval)}

    def usual(self, language: str) -> Interval:
        """One language's score by the usual measure."""
        return self.scores(language)[self.measures[0]]

    @property
    def others(self) -> float | None:
        """The mean of the usual score over all languages but the source; None without any."""
        values = [self.usual(name).value for name in self.languages if name != self.source]
        return float(np.mean(values)) if values else None

    def gap(self, language: str | None = None) -> float | None:
        """How much lower a language's usual score is than the source's; None: the others' mean."""
        if self.source is None or self.others is None:
            return None
        value = self.others if language is None else self.usual(language).value
        return self.usual(self.source).value - value

    @property
    def skipped(self) -> int:
        """Rows that could not be read, in all."""
        return sum(report.skipped for report in self.languages.values())

    @property
    def error(self) -> str | None:
        """The first one's."""
        return next((report.error for report in self.languages.values() if report.error), None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: each language's report with its gap."""
        return {
            "source": self.source,
            "measure": self.measures[0],
            "others": self.others,
            "gap": self.gap(),
            "languages": {
                name: {**report.to_dict(), "gap": self.gap(name)}
                for name, report in self.languages.items()
            },
        }


def evaluate_languages(
    model: Model,
    data: Sequence[str | os.PathLike[str]],
    *,
    source: str | None = None,
    head: str | None = None,
    task: Task | None = None,
    text: Sequence[str] = (),
    label: Sequence[str] = (),
    embedding: Embedding | None = None,
    progress: Progress | None = None,
) -> LanguagesReport:
    """Evaluate a model on a file of every language, or on one file with a column of languages.

    Args:
        data: the files, each called after what tells its name from the others'
            (`de.dev.jsonl.gz` and `fr.dev.jsonl.gz` are de and fr); a single one has a column
            "language" or "lang".
        source: the language that was trained on; None: English where there is one, else none.
        head, text, label: as `evaluate_head`, for heads (without a task).
        task, embedding, progress: as `evaluate_file`, for the similarity of texts.

    Raises:
        CallError, ModelError: as these; names that cannot be told apart; no such column.
    """
    paths = [Path(path) for path in data]
    with tempfile.TemporaryDirectory() as scratch:
        if len(paths) == 1:
            files = _by_column(paths[0], Path(scratch))
        else:
            files = dict(zip(language_names(paths), paths, strict=True))
        names = {name.lower(): name for name in files}
        if source is None and task != "bitext":
            source = next((names[name] for name in _ENGLISH if name in names), None)
        elif source is not None and source not in files:
            hint = nearest(source, files)
            raise CallError(f"source is {show(source)}; allowed: {', '.join(files)}{hint}")
        found: dict[str, HeadReport | Report] = {}
        for number, (name, path) in enumerate(files.items()):
            try:
                if task is None:
                    found[name] = evaluate_head(model, path, head=head, text=text, label=label)
                else:
                    found[name] = evaluate_file(
                        model,
                        path,
                        task=task,
                        text=text,
                        label=label[0] if label else None,
                        embedding=embedding,
                    )
            except CallError as error:
                raise CallError(f"{name}: {error}") from None
            if progress is not None:
                progress(number + 1, 0, (number + 1) / len(files))
    return LanguagesReport(source=source, languages=found)


def language_names(paths: Sequence[Path]) -> list[str]:
    """What tells each file's name from the others': its language, where files are named so.

    The first part, between slashes, full stops, hyphens or underscores, that is another one in
    every path.

    Raises:
        CallError: there is none.
    """
    parts = [_CUTS.split(str(path)) for path in paths]
    for column in zip(*parts, strict=False):
        if len(set(column)) == len(paths):
            return list(column)
    shown = ", ".join(str(path) for path in paths[:3])
    raise CallError(
        f"no part of the files' names is another one in each ({shown}); "
        "fix: name them after their languages (de.jsonl, fr.jsonl)"
    )


def _by_column(path: Path, folder: Path) -> dict[str, Path]:
    """The rows of each language in a file of its own, in a folder that is thrown away."""
    files: dict[str, IO[str]] = {}
    with ExitStack() as opened:
        for record in Records(path):
            name = next((record.values[key] for key in COLUMNS if key in record.values), None)
            if not isinstance(name, str) or not name:
                if record.error is not None:
                    continue
                names = ", ".join(list(record.values)[:20])
                allowed = " or ".join(COLUMNS)
                raise CallError(
                    f"{path}: row {record.number} has no language; allowed: a column {allowed}, or "
                    f"a file a language; it has: {names}"
                )
            if name not in files:
                if len(files) == _MOST:
                    raise CallError(f"{path}: more than {_MOST} languages")
                file = (folder / f"{len(files):04d}.jsonl").open("w", encoding="utf-8")
                files[name] = opened.enter_context(file)
            files[name].write(json.dumps(dict(record.values), default=str) + "\n")
    if not files:
        raise CallError(f"{path}: no row can be read")
    return {name: Path(file.name) for name, file in files.items()}
