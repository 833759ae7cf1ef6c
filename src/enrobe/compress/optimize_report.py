"""What `optimize` tried, as optimize.md, optimize.json and optimize.png beside the winner."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enrobe.compress.quantize_report import NO_PICTURE
from enrobe.compress.timing import Speed
from enrobe.evaluate.intervals import Interval, plain

LENGTH = 128
"""The text whose latency decides, in tokens, or the model's longest row."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to run the model."""

    engine: str
    precision: str
    threads: int
    lost: float
    # of the number that falls most, as a share of it in float32
    speed: Speed

    @property
    def latency(self) -> float:
        """Milliseconds of one text, the median."""
        return self.speed.p50[max(n for n in self.speed.p50 if n <= LENGTH)]


@dataclass(frozen=True, kw_only=True)
class OptimizeReport:
    """All that were tried, the winner, and those that no other beats in both speed and quality."""

    output: Path
    choices: tuple[Choice, ...]
    winner: Choice
    front: tuple[Choice, ...]
    scores: Mapping[str, Mapping[str, Interval]]
    # by "engine precision"
    said: tuple[str, ...]
    # what was not tried, and why

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {
            "output": str(self.output),
            "choices": [asdict(choice) for choice in self.choices],
            "winner": asdict(self.winner),
            "front": [self.choices.index(choice) for choice in self.front],
            "scores": {
                way: {name: plain(value) for name, value in scores.items()}
                for way, scores in self.scores.items()
            },
            "said": list(self.said),
        }


def write_report(report: OptimizeReport, folder: Path) -> None:
    """Write the report into the winner's folder."""
    drawn = draw(report, folder / "optimize.png")
    (folder / "optimize.md").write_text(as_markdown(report, drawn), "utf-8")
    values = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    (folder / "optimize.json").write_text(values + "\n", "utf-8")


def table(report: OptimizeReport) -> list[tuple[str, ...]]:
    """A row a choice, the quickest first: marks, how it runs, what it costs."""
    rows: list[tuple[str, ...]] = []
    for choice in sorted(report.choices, key=lambda c: c.latency):
        mark = "best" if choice == report.winner else "*" if choice in report.front else ""
        speed = choice.speed
        rows.append(
            (
                mark,
                choice.engine,
                choice.precision,
                str(choice.threads),
                f"{choice.lost:+.2%}",
                " / ".join(f"{speed.p50[n]:.1f}" for n in speed.p50),
                " / ".join(f"{speed.p99[n]:.1f}" for n in speed.p99),
                f"{speed.tokens_per_second:,.0f}",
                f"{speed.memory / 1e6:,.0f}",
            )
        )
    return rows


def header(report: OptimizeReport) -> tuple[str, ...]:
    """The names of the table's columns."""
    lengths = "/".join(map(str, report.winner.speed.p50))
    ways = ("", "engine", "precision", "threads", "lost")
    return (*ways, f"p50 ms at {lengths}", f"p99 ms at {lengths}", "tokens/s", "process MB")


def as_markdown(report: OptimizeReport, drawn: bool) -> str:
    """The report as text with a table."""
    names = header(report)
    lines = [f"# {in_words(report.winner)}", "", "| " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * len(names))
    lines += ["| " + " | ".join(row) + " |" for row in table(report)]
    lines += ["", "\\* no other is both quicker and nearer to float32."]
    call = f'enrobe.load("{report.output.name}", engine="{report.winner.engine}")'
    lines += ["", f"`{call}`, on {report.winner.threads} processors.", ""]
    lines += ["![](optimize.png)" if drawn else f"({NO_PICTURE})"]
    lines += [f"({line})" for line in report.said]
    return "\n".join(lines) + "\n"


def in_words(choice: Choice) -> str:
    """How a choice runs."""
    return f"{choice.engine}, {choice.precision}, {choice.threads} threads"


def draw(report: OptimizeReport, picture: Path) -> bool:
    """Quality against latency, the Pareto front as a line; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for way in dict.fromkeys((c.engine, c.precision) for c in report.choices):
        own = [c for c in report.choices if (c.engine, c.precision) == way]
        axes.plot(
            [c.latency for c in own], [100 - 100 * c.lost for c in own], "o", label=" ".join(way)
        )
        for choice in own:
            place = (choice.latency, 100 - 100 * choice.lost)
            axes.annotate(f" {choice.threads}", place, fontsize="small")
    line = report.front
    axes.step(
        [c.latency for c in line], [100 - 100 * c.lost for c in line], "k-", where="post", lw=0.8
    )
    axes.set_xscale("log")
    axes.set_xlabel("ms a text of 128 tokens, median (number: threads)")
    axes.set_ylabel("% of float32's measure")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(picture, dpi=120)
    return True


def _points(choices: Sequence[Choice]) -> tuple[list[float], list[float]]:
    return [c.latency for c in choices], [100 - 100 * c.lost for c in choices]
