"""A folder with the scores by language: languages.json, languages.md and languages.png."""

import json
import os
from pathlib import Path
from typing import Any

from enrobe.atomic import check_new, new_folder
from enrobe.evaluate.files import HeadReport
from enrobe.evaluate.languages import LanguagesReport
from enrobe.evaluate.pictures import figure, plain_name, save


def write_languages(report: LanguagesReport, output: str | os.PathLike[str], *, name: str) -> None:
    """Write a report as a new folder: all of it or nothing.

    Args:
        report: what `evaluate_languages` found.
        output: the folder to write; it must not exist, or be empty.
        name: what the model is called.

    Raises:
        CallError: the folder exists or cannot be written.
        MissingExtraError: without matplotlib.
    """
    check_output(output)
    with new_folder(Path(output)) as work:
        values = json.dumps({"model": name, **report.to_dict()}, indent=2, allow_nan=False)
        (work / "languages.json").write_text(values + "\n", "utf-8")
        (work / "languages.md").write_text(as_markdown(report, name), "utf-8")
        draw_languages(report, name, work / "languages.png")


def check_output(output: str | os.PathLike[str]) -> None:
    """Refuse before anything is measured what `write_languages` would refuse after it.

    Raises:
        CallError, MissingExtraError: as `write_languages`.
    """
    check_new(Path(output))
    _figure(1)


def table(report: LanguagesReport) -> tuple[list[str], list[list[str]]]:
    """A header, and a row of text a language, the source first and the best next."""
    usual, *others = report.measures
    head = ["language", "rows", usual, "95% interval"]
    gaps = report.gap() is not None
    majorities = any(_majority(report, name) is not None for name in report.languages)
    head += ["gap"] * gaps + others + ["commonest label"] * majorities
    rows = []
    for name in ranked(report):
        value = report.usual(name)
        row = [name, f"{report.languages[name].rows:,}", f"{value.value:.4f}"]
        row.append(f"{value.low:.4f} to {value.high:.4f}")
        if gaps:
            gap = report.gap(name)
            row.append("" if name == report.source else f"{gap:+.4f}")
        scores = report.scores(name)
        row += [f"{scores[measure].value:.4f}" for measure in others]
        if majorities:
            majority = _majority(report, name)
            row.append("" if majority is None else f"{majority:.4f}")
        rows.append(row)
    return [part.replace("_", " ") for part in head], rows


def ranked(report: LanguagesReport) -> list[str]:
    """The languages, the source first, then by their scores from the best."""
    return sorted(
        report.languages,
        key=lambda name: (name != report.source, -report.usual(name).value, name),
    )


def notes(report: LanguagesReport) -> list[str]:
    """What a reader of the table has to know, a sentence each."""
    others = report.others
    measure = report.measures[0].replace("_", " ")
    count = len(report.languages) - (report.source is not None)
    out = []
    if others is not None:
        out.append(f"{measure} in the mean over {count} languages: {others:.4f}")
    gap = report.gap()
    if report.source is not None and gap is not None:
        value = report.usual(report.source).value
        out[0] += f"; {report.source} {value:.4f}, transfer gap {gap:+.4f}"
    if any(_majority(report, name) is not None for name in report.languages):
        out.append("commonest label: the accuracy of giving it always")
    return out


def as_markdown(report: LanguagesReport, name: str) -> str:
    """The table as languages.md has it."""
    head, rows = table(report)
    lines = [f"# {name} by language", "", f"| {' | '.join(head)} |"]
    lines.append(f"|---|{'---:|' * (len(head) - 1)}")
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {note}" for note in notes(report)), ""]
    return "\n".join(lines)


def draw_languages(report: LanguagesReport, name: str, picture: Path) -> None:
    """A bar a language with its interval; what falls short of the source's is the transfer gap.

    Raises:
        MissingExtraError: without matplotlib.
    """
    names = ranked(report)
    made = _figure(len(names))
    axes: Any = made.add_subplot()
    scores = [report.usual(language) for language in names]
    values = [score.value for score in scores]
    spread = [[s.value - s.low for s in scores], [s.high - s.value for s in scores]]
    colours = ["tab:orange" if language == report.source else "tab:blue" for language in names]
    places = range(len(names))
    axes.bar(places, values, color=colours, yerr=spread, error_kw={"lw": 1})
    if report.source is not None:
        value = report.usual(report.source).value
        axes.axhline(value, color="tab:orange", linestyle="--", label=report.source)
    others = report.others
    if others is not None:
        label = f"mean of the others, {others:.3f}" if report.source else f"mean, {others:.3f}"
        axes.axhline(others, color="tab:blue", linestyle=":", label=label)
    majorities = [_majority(report, language) for language in names]
    if report.measures[0] == "accuracy" and None not in majorities:
        axes.plot(places, majorities, "kx", markersize=5, label="commonest label")
    axes.set_xticks(
        places,
        [plain_name(one) for one in names],
        rotation=90 if len(names) > 12 else 0,
        fontsize=8,
    )
    axes.set_xmargin(0.01)
    axes.set_ylabel(report.measures[0].replace("_", " "))
    axes.set_title(plain_name(name, 80))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    save(made, picture)


def _majority(report: LanguagesReport, language: str) -> float | None:
    found = report.languages[language]
    return found.majority if isinstance(found, HeadReport) else None


def _figure(languages: int) -> Any:
    return figure(max(7, 2 + 0.22 * languages), 4, "a picture of the languages")
