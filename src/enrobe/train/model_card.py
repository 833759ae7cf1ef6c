"""README.md of a fine-tuned model: a card as the hub reads it, with what is known and no more."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import enrobe
from enrobe.config import HeadConfig
from enrobe.data.examples import TaskConfig
from enrobe.evaluate.task_report import TaskReport, between, escaped

CARD = "README.md"
_PIPELINES = {
    "classify": ("text-classification", "AutoModelForSequenceClassification"),
    "multilabel": ("text-classification", "AutoModelForSequenceClassification"),
    "regress": ("text-classification", "AutoModelForSequenceClassification"),
    "tag": ("token-classification", "AutoModelForTokenClassification"),
    "answer": ("question-answering", "AutoModelForQuestionAnswering"),
}
# The hub's names of our metrics.
_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "exact": "exact_match",
}
_CALLS = {
    "tag": "model.tag({text}{head})",
    "answer": "model.answer(question, context{head})",
}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LABELS_SHOWN = 40


def model_card(
    name: str,
    base: str,
    family: str,
    reports: Sequence[TaskReport],
    tasks: Mapping[str, TaskConfig],
    settings: Mapping[str, Any],
) -> str:
    """The card's text; licence and language are for a person to add.

    Args:
        name: the model's.
        base: what it was trained from.
        family: the encoder's.
        reports: one a task, on its dev rows.
        tasks: their columns and files.
        settings: of the training.
    """
    heads = {report.head: report.config for report in reports}
    lines = [
        "---",
        *_front(name, base, family, reports, tasks),
        "---",
        "",
        f"# {escaped(name)}",
        "",
    ]
    several = f"{len(heads)} heads on one encoder" if len(heads) > 1 else "one head"
    lines += [
        f"Fine-tuned from {escaped(base)} by Enrobe {enrobe.__version__}: {several}.",
        "",
        *_heads(heads),
        *_scores(reports, tasks),
        *_use(heads),
        "## Training",
        "",
        "```json",
        json.dumps(settings, indent=2, ensure_ascii=False),
        "```",
        "",
        "This card was written by the program that trained the model. It does not know the "
        "licences of the data and of the base model, the language, or what the model is meant for: "
        "add them.",
        "",
    ]
    return "\n".join(lines)


def _front(
    name: str,
    base: str,
    family: str,
    reports: Sequence[TaskReport],
    tasks: Mapping[str, TaskConfig],
) -> list[str]:
    """YAML, whose strings are JSON's."""
    kinds = [report.config.kind for report in reports]
    single = len({report.head for report in reports}) == 1
    lines = [f"library_name: {'transformers' if single else 'enrobe'}"]
    # What is no id of the hub names nothing there.
    if _HUB_ID.fullmatch(base) and not Path(base).exists():
        lines.append(f"base_model: {json.dumps(base)}")
    if single:
        lines.append(f"pipeline_tag: {_PIPELINES[kinds[0]][0]}")
    lines += ["tags:", *(f"- {tag}" for tag in dict.fromkeys(["enrobe", family, *kinds]))]
    metrics = dict.fromkeys(hub_metric(key) for report in reports for key in report.scores)
    lines += ["metrics:", *(f"- {metric}" for metric in metrics)]
    lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
    for report in reports:
        lines += [
            "  - task:",
            f"      type: {_PIPELINES[report.config.kind][0]}",
            f"      name: {json.dumps(report.name, ensure_ascii=False)}",
            "    dataset:",
            "      type: file",
            f"      name: {json.dumps(_dev_name(tasks[report.name]), ensure_ascii=False)}",
            "      split: dev",
            "    metrics:",
        ]
        for key, score in report.scores.items():
            if score.value == score.value:
                lines += [
                    f"    - type: {hub_metric(key)}",
                    f"      name: {json.dumps(key.replace('_', ' '))}",
                    f"      value: {score.value:.4f}",
                ]
    return lines


def hub_metric(name: str) -> str:
    """A metric as the hub calls it."""
    return _METRICS.get(name, "f1" if name.endswith("_f1") else name)


def _dev_name(task: TaskConfig) -> str:
    if task.dev:
        return ", ".join(path.name for path in task.dev)
    return f"a part of {', '.join(path.name for path in task.train)}"


def _heads(heads: Mapping[str, HeadConfig]) -> list[str]:
    lines = ["| head | kind | reads | labels |", "|---|---|---|---|"]
    for name, head in heads.items():
        shown = ", ".join(escaped(label) for label in head.labels[:_LABELS_SHOWN])
        more = len(head.labels) - _LABELS_SHOWN
        labels = "–" if head.kind == "regress" else shown or "–"
        labels += f" and {more} more" if more > 0 else ""
        reads = ", ".join(escaped(column) for column in head.text)
        lines.append(f"| {escaped(name)} | {head.kind} | {reads} | {labels} |")
    return [*lines, ""]


def _scores(reports: Sequence[TaskReport], tasks: Mapping[str, TaskConfig]) -> list[str]:
    lines = ["## Scores", "", "| task | dev rows | metric | score | 95% interval |"]
    lines.append("|---|---|---|---:|---:|")
    for report in reports:
        rows = f"{report.rows:,} of {escaped(_dev_name(tasks[report.name]))}"
        for key, score in report.scores.items():
            name = key.replace("_", " ")
            cells = [escaped(report.name), rows, name, f"{score.value:.4f}", between(score)]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "The step that was kept was chosen by these rows."]
    if any(report.config.thresholds or report.config.no_answer for report in reports):
        lines.append("So were the thresholds.")
    return [*lines, ""]


def _use(heads: Mapping[str, HeadConfig]) -> list[str]:
    lines = ["## Use", "", "```python", "import enrobe", "", 'model = enrobe.load("FOLDER")']
    for name, head in heads.items():
        named = f", head={name!r}" if len(heads) > 1 else ""
        pairs = "pairs=[(first, second)]" if len(head.text) == 2 else "[text]"
        call = _CALLS.get(head.kind, "model.predict({text}{head})")
        lines.append(call.format(text=pairs, head=named))
    lines.append("```")
    if len(heads) == 1:
        ((_, head),) = heads.items()
        auto = _PIPELINES[head.kind][1]
        lines += ["", f"transformers loads it, too: `{auto}.from_pretrained(FOLDER)`."]
        if head.temperature != 1:
            lines += [
                f"Its logits are to be divided by {head.temperature:g} there before they are "
                "probabilities; `enrobe` does so."
            ]
    else:
        lines += ["", "`model.predict_all(texts)` asks all heads in one pass of the encoder."]
    return [*lines, ""]
