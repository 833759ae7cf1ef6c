"""What a student keeps of its teacher, how much faster it is, and what the teacher was worth.

    python bench/distil.py train      teachers and students, on mr and on snips; call again to go on
    python bench/distil.py report     their scores, from what `train` has made
    python bench/distil.py speed      tokens a second of teachers and students, in turn

A teacher is all-MiniLM-L6-v2 (6 layers of 384), fine-tuned; a student has 3 of its layers. Each is
trained with its teacher and without, from the same initial layers, on the same labels, for as many
epochs, with three seeds; the teacher answers what nobody has labelled, too ([augment]): on mr the
sentences of movie_reviews' training texts, on snips its own rows with other words.
For the large pair only the speed is asked, so its weights are random: 12 layers of 768 against 6 of
512 (44.9 million parameters), RoBERTa's vocabulary.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import BASE, ROOT, SHARED, jsonl, roberta_folder, workload_1, write_report

import enrobe
from enrobe import checkpoint
from enrobe.compress.measure import Data
from enrobe.text.tokenizer import Tokenizer

HERE = ROOT / ".cache/distil"
DATA = SHARED / "data"
SEEDS = (1, 2, 3)
# With the teacher, and the labels alone.
ARMS = ("taught", "alone")
# Of a sentence, in words.
LENGTHS = range(5, 61)
TASKS: dict[str, dict[str, Any]] = {
    "mr": {
        "recipe": "distil-mr.toml",
        "lr": 5e-5,
        "epochs": 3,
        "student": ("epochs = 8", "lr = 1e-4"),
        "taught": (f'augment.files = ["{HERE / "reviews.txt"}"]',),
        "tasks": {"polarity": ("classify", "sentence", "label")},
    },
    "snips": {
        "recipe": "distil-snips.toml",
        "lr": 1e-4,
        "epochs": 8,
        "student": ("epochs = 8", "lr = 3e-4"),
        "taught": ("augment.copies = 4",),
        "tasks": {
            "intent": ("classify", "tokens", "label"),
            "slots": ("tag", "tokens", "slots"),
        },
    },
}
SMALL = {"layers": 6, "hidden": 512, "heads": 8, "wide": 2048}
ROUNDS = 3


def files(name: str) -> list[str]:
    """Changes to a recipe: where the data are."""
    return [
        f'tasks.{task}.{part} = "{DATA / name / file}"'
        for task in TASKS[name]["tasks"]
        for part, file in (("train", "train.jsonl.gz"), ("dev", "dev.jsonl"))
    ]


def teacher(name: str) -> bool:
    """Fine-tune a teacher, or go on; whether it is there."""
    from enrobe.train.finetune_recipe import FinetuneRecipe
    from enrobe.train.recipe import make

    asked = TASKS[name]
    tasks = {
        task: {
            "kind": kind,
            "text": text,
            "label": label,
            "train": str(DATA / name / "train.jsonl.gz"),
            "dev": str(DATA / name / "dev.jsonl"),
        }
        for task, (kind, text, label) in asked["tasks"].items()
    }
    recipe = make(
        FinetuneRecipe,
        {
            "model": str(ROOT / ".cache/weights/minilm"),
            "output": str(HERE / f"{name}-teacher"),
            "tasks": tasks,
            "train": {"epochs": asked["epochs"], "lr": asked["lr"], "batch_rows": 32},
        },
    )
    return enrobe.finetune(recipe, resume=True).finished


def write_reviews() -> None:
    """Sentences of reviews, each once, but those that mr has; a line each."""
    known: set[str] = set()
    for part in ("train.jsonl.gz", "dev.jsonl", "test.jsonl"):
        known |= {letters(row["sentence"]) for row in jsonl(DATA / "mr" / part)}
    kept = []
    for row in jsonl(DATA / "movie_reviews/train.jsonl.gz"):
        for line in row["text"].split("\n"):
            if len(line.split()) in LENGTHS and letters(line) not in known:
                known.add(letters(line))
                kept.append(line.strip() + "\n")
    HERE.mkdir(parents=True, exist_ok=True)
    (HERE / "reviews.txt").write_text("".join(kept))


def letters(text: str) -> str:
    """What is the same for texts that differ in case, spaces and signs alone."""
    return "".join(filter(str.isalnum, text.casefold()))


def student(name: str, arm: str, seed: int) -> bool:
    """Train a student, or go on; whether it is there."""
    taught = ("losses.soft = 1.0", *TASKS[name]["taught"])
    result = enrobe.distill(
        ROOT / "recipes" / TASKS[name]["recipe"],
        resume=True,
        changes=[
            *files(name),
            f'teacher = "{HERE / f"{name}-teacher/model"}"',
            f'output = "{run_folder(name, arm, seed)}"',
            f'cache = "{HERE / "answers"}"',
            f"seed = {seed}",
            "student.layers = 3",
            *(taught if arm == "taught" else ("losses.soft = 0.0",)),
            *TASKS[name]["student"],
            'freeze = "embeddings"',
        ],
    )
    return result.finished


def run_folder(name: str, arm: str, seed: int) -> Path:
    """Where a student is."""
    return HERE / f"{name}-{arm}-{seed}"


def train(names: list[str]) -> None:
    """All that is not there yet, in an order that leaves whole pairs behind."""
    if "mr" in names and not (HERE / "reviews.txt").is_file():
        write_reviews()
    for name in names:
        if not (HERE / f"{name}-teacher/model").is_dir() and not teacher(name):
            sys.exit(130)
    for seed in SEEDS:
        for name in names:
            for arm in ARMS:
                done = (run_folder(name, arm, seed) / "report.json").is_file()
                if not done and not student(name, arm, seed):
                    sys.exit(130)


def scores(name: str, folder: Path, part: str) -> dict[str, float]:
    """A model's usual numbers on dev or test, by task."""
    model, found = enrobe.load(folder, precision="float32"), {}
    for task, (_, text, label) in TASKS[name]["tasks"].items():
        file = DATA / name / f"{part}.jsonl"
        data = Data(file=file, head=task, text=(text,), label=(label,))
        (found[task],) = (value.value for value in data.scores(model).values())
    return found


def report(names: list[str]) -> None:
    """The scores of all pairs, and what distilling was worth.

    Dev has chosen the best epoch of each; test has had no part in it.
    """
    found: dict[str, Any] = {}
    for name in names:
        done = [
            seed
            for seed in SEEDS
            if all((run_folder(name, arm, seed) / "report.json").is_file() for arm in ARMS)
        ]
        for part in ("dev", "test"):
            best = scores(name, HERE / f"{name}-teacher/model", part)
            own = [
                {arm: scores(name, run_folder(name, arm, seed) / "model", part) for arm in ARMS}
                for seed in done
            ]
            for task, (kind, _, _) in TASKS[name]["tasks"].items():
                gains = [one["taught"][task] - one["alone"][task] for one in own]
                found[f"{name} {task}, {part}"] = {
                    "measure": "f1" if kind == "tag" else "accuracy",
                    "teacher": best[task],
                    **{arm: [round(one[arm][task], 4) for one in own] for arm in ARMS},
                    "kept": [round(one["taught"][task] / best[task], 4) for one in own],
                    "gain_mean": round(statistics.mean(gains), 4),
                    "gain_each": [round(gain, 4) for gain in gains],
                }
        sides = json.loads((run_folder(name, "taught", done[0]) / "report.json").read_text())
        found[f"{name} sizes"] = {
            side: sides[side]["parameters"] for side in ("teacher", "student")
        }
    write_report("-".join(["distil-scores", *(names if names != [*TASKS] else [])]), found)


def speed(names: list[str]) -> None:
    """Tokens a second of the onnx engine, teacher and student in turn."""
    from enrobe.train.distil_recipe import StudentTable
    from enrobe.train.distil_report import parameters
    from enrobe.train.student import student_of

    found: dict[str, Any] = {}
    for name in names:
        # An untrained student is as fast.
        folders = [HERE / f"{name}-teacher/model", HERE / f"{name}-layers"]
        read = checkpoint.read(folders[0])
        if not folders[1].is_dir():
            begun = student_of(read, StudentTable(layers=3))
            checkpoint.write(
                folders[1],
                config=begun.config,
                heads=begun.heads,
                tensors=begun.tensors,
                tokenizer_folder=folders[0],
            )
        tokenizer = Tokenizer.from_folder(folders[0], read.config.family, read.config.vocab_size)
        lines = [json.loads(x) for x in (DATA / name / "dev.jsonl").read_text().splitlines()]
        key = next(iter(TASKS[name]["tasks"].values()))[1]
        texts = [x[key] if isinstance(x[key], str) else " ".join(x[key]) for x in lines]
        found[name] = compared(folders, tokenizer, texts)
    folders = [HERE / "base", HERE / "small"]
    for folder, shape in zip(folders, (BASE, SMALL), strict=True):
        if not folder.is_dir():
            roberta_folder(folder, **shape)
    tokenizer = Tokenizer.from_folder(folders[0], "roberta", 50_265)
    found["base"] = compared(folders, tokenizer, workload_1(tokenizer, masks=False))
    sizes = [parameters(checkpoint.read(folder)) for folder in folders]
    found["base"]["parameters"] = sizes
    write_report("distil-speed", found)


def compared(folders: list[Path], tokenizer: Tokenizer, texts: list[str]) -> dict[str, Any]:
    """Tokens a second of two models, and how many times as many the second has."""
    from enrobe.train.distil_report import speeds

    rows = [row.ids for row in tokenizer.encode(texts)]
    rounds = np.array([speeds(folders, rows) for _ in range(ROUNDS)])
    ratios = rounds[:, 1] / rounds[:, 0]
    return {
        "teacher": round(float(np.median(rounds[:, 0]))),
        "student": round(float(np.median(rounds[:, 1]))),
        "times": round(float(np.median(ratios)), 2),
        "times_least": round(float(ratios.min()), 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", choices=["train", "report", "speed"])
    parser.add_argument("names", nargs="*", default=[*TASKS])
    given = parser.parse_args()
    {"train": train, "report": report, "speed": speed}[given.work](given.names)
