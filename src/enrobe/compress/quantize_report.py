"""What `quantize` made, as report.md, report.json and report.png beside the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from enrobe.compress.api import Quantized
from enrobe.compress.timing import Speed
from enrobe.evaluate.intervals import Interval, plain

_WORST = 8
NO_PICTURE = "no picture: matplotlib is not installed; fix: pip install 'enrobe[train]'"


@dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """What was made, and what it cost."""

    precision: Quantized
    output: Path
    file_bytes: tuple[int, int]
    # of the weights on disk, before and after
    parameter_bytes: tuple[int, int]
    # of the numbers in memory, before and after
    before: Mapping[str, Interval]
    after: Mapping[str, Interval]
    drop: Mapping[str, float]
    # as a share of the number before; empty where no data was given
    kept: tuple[str, ...]
    # groups of matrices that stay float32
    smoothed: tuple[str, ...]
    # groups whose inputs are smoothed
    layers_db: tuple[float, ...]
    # signal to noise of each layer's hidden states, the embeddings first
    products_db: Mapping[str, float]
    # of each group's own product in int8, with exact inputs
    speed: Mapping[str, Speed]
    # "float32" and the new one, in turn on this machine
    said: tuple[str, ...]
    # what was taken for granted

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        out = {key: plain(value) for key, value in vars(self).items()}
        out["output"] = str(self.output)
        out["before"] = {name: plain(value) for name, value in self.before.items()}
        out["after"] = {name: plain(value) for name, value in self.after.items()}
        out["speed"] = {name: asdict(value) for name, value in self.speed.items()}
        out["products_db"], out["drop"] = dict(self.products_db), dict(self.drop)
        return out


def write_report(report: QuantizeReport, folder: Path) -> None:
    """Write the report into the folder of the model that it is of."""
    drawn = draw(report, folder / "report.png")
    (folder / "report.md").write_text(as_markdown(report, drawn), "utf-8")
    values = json.dumps(report.to_dict(), indent=2, allow_nan=False)
    (folder / "report.json").write_text(values + "\n", "utf-8")


def as_markdown(report: QuantizeReport, drawn: bool) -> str:
    """The report as text with tables."""
    before, after = report.speed["float32"], report.speed[report.precision]
    lines = [f"# {report.precision} against float32", ""]
    if report.before:
        lines += [
            "| on the data | float32 | " + report.precision + " | lost |",
            "|---|---|---|---|",
        ]
        for name, value in report.before.items():
            new = report.after[name]
            lines.append(
                f"| {name} | {value.value:.4f} ({value.low:.4f} to {value.high:.4f}) "
                f"| {new.value:.4f} ({new.low:.4f} to {new.high:.4f}) "
                f"| {report.drop[name]:+.2%} |"
            )
        lines += ["", "In brackets the 95% bootstrap interval over the rows.", ""]
    lines += [f"| on this machine | float32 | {report.precision} | times |", "|---|---|---|---|"]
    for label, (old, new_) in {
        "weights on disk, MB": tuple(n / 1e6 for n in report.file_bytes),
        "parameters in memory, MB": tuple(n / 1e6 for n in report.parameter_bytes),
        "process, MB": (before.memory / 1e6, after.memory / 1e6),
        "process at its peak, MB": (before.peak_memory / 1e6, after.peak_memory / 1e6),
        "load, s": (before.load_seconds, after.load_seconds),
    }.items():
        lines.append(f"| {label} | {old:,.2f} | {new_:,.2f} | {new_ / old:.2f} |")
    for length in before.p50:
        old, new_ = before.p50[length], after.p50[length]
        lines.append(
            f"| one text of {length} tokens, ms, p50 / p99 | {old:.2f} / {before.p99[length]:.2f} "
            f"| {new_:.2f} / {after.p99[length]:.2f} | {new_ / old:.2f} |"
        )
    old, new_ = before.tokens_per_second, after.tokens_per_second
    lines.append(f"| tokens a second | {old:,.0f} | {new_:,.0f} | {new_ / old:.2f} |")
    lines += ["", "Signal to noise of the hidden states, dB, the embeddings first: "]
    lines[-1] += ", ".join(f"{value:.1f}" for value in report.layers_db)
    if report.products_db:
        worst = sorted(report.products_db.items(), key=lambda item: item[1])[:_WORST]
        lines += ["", "Noisiest products, dB: "]
        lines[-1] += ", ".join(f"{name} {value:.1f}" for name, value in worst)
        lines += ["", f"Kept as float32: {', '.join(report.kept) or 'nothing'}."]
        lines += ["", f"Smoothed: {', '.join(report.smoothed) or 'nothing'}."]
    lines += ["", "![](report.png)" if drawn else f"({NO_PICTURE})"]
    lines += [f"({line})" for line in report.said]
    return "\n".join(lines) + "\n"


def draw(report: QuantizeReport, picture: Path) -> bool:
    """Noise by layer, latency and bytes as a PNG; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    noise, latency, size = figure.subplots(1, 3)
    noise.plot(range(len(report.layers_db)), report.layers_db, "o-", markersize=3)
    noise.set_xlabel("layer (0: embeddings)")
    noise.set_ylabel("signal to noise, dB")
    names = ("float32", report.precision)
    speeds = [report.speed[name] for name in names]
    lengths = list(speeds[0].p50)
    for number, (name, speed) in enumerate(zip(names, speeds, strict=True)):
        places = [place + 0.4 * number for place in range(len(lengths))]
        latency.bar(places, [speed.p50[n] for n in lengths], 0.38, label=f"{name}, p50")
        latency.plot(places, [speed.p99[n] for n in lengths], "k_", markersize=12)
    latency.set_xticks([place + 0.2 for place in range(len(lengths))], lengths)
    latency.set_yscale("log")
    latency.set_xlabel("tokens of one text (mark: p99)")
    latency.set_ylabel("ms")
    latency.legend(fontsize="small")
    pairs: dict[str, Any] = {
        "on disk": report.file_bytes,
        "parameters": report.parameter_bytes,
        "process": tuple(speed.memory for speed in speeds),
    }
    for number, name in enumerate(names):
        places = [place + 0.4 * number for place in range(len(pairs))]
        size.bar(places, [pair[number] / 1e6 for pair in pairs.values()], 0.38, label=name)
    size.set_xticks([place + 0.2 for place in range(len(pairs))], pairs)
    size.set_ylabel("MB")
    for axes in (noise, latency, size):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)
    return True
