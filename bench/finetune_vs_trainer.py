"""Fine-tuning: Enrobe against transformers' Trainer, all-MiniLM-L6-v2's encoder, float32, a CPU.

    python scripts/fetch_weights.py .cache/weights      # Trainer needs `pip install accelerate`
    python bench/finetune_vs_trainer.py quality [--tasks mr ...] [--seeds 1 2 3] [--threads 2]
    python bench/finetune_vs_trainer.py speed   [--tasks mr ...] [--rounds 3]
    python bench/finetune_vs_trainer.py report

The same checkpoint, rows, epochs, rows a batch, learning rate, warm-up, decay, clipping and dropout
for both; Trainer groups rows of like length (`train_sampling_strategy="group_by_length"`) and pads
to the longest of a batch. TASKS says how many rows: a part of each set, drawn once.

quality: paired seeds, and the models after the last step on the same dev rows, by one scorer, which
is Enrobe's: it loads the folder that Trainer saves. A run is a process of its own; what is done is
kept, so that a call goes on where one ended.
speed: the same runs, both alive and in turn. A turn has as many updates as Trainer sorts at once
(50, or fewer of a small set), which so have the lengths of any others; the first turn is not
counted. Only training is timed: no setting up, measuring or saving.
report: what both found, as one file in bench/results.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    SHARED,
    jsonl,
    kept,
    machine,
    own_peak_mb,
    scratch,
    take_turns,
    write_jsonl,
    write_report,
)

os.environ["HF_HUB_OFFLINE"] = "1"
MODEL = ROOT / ".cache/weights/minilm"
FOUND = ROOT / ".cache/bench/finetune-found"
ROWS, LR, WARMUP, DECAY, LIMIT, STRIDE = 16, 2e-4, 0.06, 0.01, 384, 128
WHO = ("enrobe", "trainer")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A set, how much of it, and how long."""

    kind: str
    text: tuple[str, ...]
    label: str
    train: int
    # rows for quality
    dev: int
    epochs: int
    timed: int
    # rows for speed: as many as there are, but of questions


TEXT, PAIR, QUESTION = ("text",), ("premise", "hypothesis"), ("question", "context")
TASKS = {
    name: Task(kind=kind, text=text, label=label, train=train, dev=dev, epochs=epochs, timed=timed)
    for name, kind, text, label, train, dev, epochs, timed in (
        ("mr", "classify", TEXT, "label", 1000, 1066, 2, 8530),
        ("snips", "classify", TEXT, "label", 1000, 700, 2, 13_084),
        ("wnut17", "tag", ("tokens",), "tags", 1000, 1009, 3, 3394),
        ("nli", "classify", PAIR, "label", 2000, 1500, 1, 17_288),
        ("tydiqa", "answer", QUESTION, "answers", 640, 431, 2, 448),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("quality", "speed", "report", "one"), nargs="?")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", choices=WHO)
    parser.add_argument("--who", choices=WHO)
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.worker:
        timed(options.worker, options.task)
    elif options.part == "one":
        print(json.dumps(train_and_score(options.who, options.task, options.seed)))
    elif options.part == "quality":
        quality(options.tasks, options.seeds, options.threads)
    elif options.part == "speed":
        speed(options.tasks, options.rounds)
    else:
        report()


# --- the data -------------------------------------------------------------------------------------


def rows_of(name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows to train on and to measure on, in an order drawn once."""
    data = SHARED / "data"
    if name == "nli":
        rows = [*jsonl(data / "mnli_dev/all.jsonl.gz"), *jsonl(data / "snli_dev/all.jsonl.gz")]
        rows = [row for row in rows if row["label"] in ("entailment", "neutral", "contradiction")]
        train, dev = split(rows, "premise")
    elif name == "wnut17":
        train = _conll(data / "wnut17/train.conll.gz")
        dev = _conll(data / "wnut17/dev.conll")
    elif name == "tydiqa":
        # The answers of the published dev file are empty.
        train, dev = split(jsonl(data / "tydiqa_goldp/en.train.jsonl.gz"), "context")
    else:
        train, dev = jsonl(data / f"{name}/train.jsonl.gz"), jsonl(data / f"{name}/dev.jsonl")
        for row in (*train, *dev):
            row["text"] = row["sentence"] if name == "mr" else " ".join(row["tokens"])
            row["label"] = f"class {row['label']}"
    for rows in (train, dev):
        random.Random(0).shuffle(rows)
    return train, dev


def split(rows: list[dict[str, Any]], column: str) -> tuple[list[Any], list[Any]]:
    """Seven eighths and one, equal texts together."""
    part = [int(hashlib.sha256(row[column].encode()).hexdigest(), 16) % 8 for row in rows]
    return (
        [row for row, number in zip(rows, part, strict=True) if number],
        [row for row, number in zip(rows, part, strict=True) if not number],
    )


def _conll(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    out = []
    for block in text.split("\n\n"):
        cells = [line.split("\t") for line in block.splitlines() if "\t" in line]
        if cells:
            out.append({"tokens": [c[0] for c in cells], "tags": [c[1] for c in cells]})
    return out


def files(name: str, folder: Path, train: int) -> tuple[Path, Path]:
    """The first rows of a set as files that both read."""
    task = TASKS[name]
    to_train, to_measure = rows_of(name)
    return (
        write_jsonl(folder / "train.jsonl", to_train[:train]),
        write_jsonl(folder / "dev.jsonl", to_measure[: task.dev]),
    )


# --- training -------------------------------------------------------------------------------------


def train_enrobe(
    name: str, train: Path, dev: Path, output: Path, *, seed: int, epochs: int, **more: Any
) -> tuple[Path, float]:
    import enrobe
    from enrobe.train.finetune_recipe import FinetuneRecipe
    from enrobe.train.recipe import make

    task = TASKS[name]
    values = {
        "output": str(output),
        "model": str(MODEL),
        "seed": seed,
        "tasks": {
            name: {
                "kind": task.kind,
                "train": str(train),
                "dev": str(dev),
                "text": list(task.text),
                "label": task.label,
            }
        },
        "train": {
            "epochs": epochs,
            "batch_rows": ROWS,
            "lr": LR,
            "warmup": WARMUP,
            "weight_decay": DECAY,
            "limit": LIMIT,
            "evaluate_every": float(epochs),
            "save_every": 10**9,
            **more,
        },
    }
    result = enrobe.finetune(make(FinetuneRecipe, values))
    return result.model, result.seconds


def train_trainer(
    name: str,
    train: Path,
    output: Path,
    *,
    seed: int,
    epochs: int,
    callbacks: Iterable[Any] = (),
) -> tuple[Path, float]:
    import transformers

    task = TASKS[name]
    transformers.set_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    rows = jsonl(train)
    data, more = DATA[task.kind](tokenizer, rows, task)
    cls = {
        "classify": transformers.AutoModelForSequenceClassification,
        "tag": transformers.AutoModelForTokenClassification,
        "answer": transformers.AutoModelForQuestionAnswering,
    }[task.kind]
    model = cls.from_pretrained(MODEL, **more)
    collator = (
        transformers.DataCollatorForTokenClassification
        if task.kind == "tag"
        else transformers.DataCollatorWithPadding
    )(tokenizer)
    trainer = transformers.Trainer(
        model=model,
        train_dataset=data,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[*callbacks],
        args=transformers.TrainingArguments(
            output_dir=str(output),
            num_train_epochs=epochs,
            per_device_train_batch_size=ROWS,
            learning_rate=LR,
            warmup_steps=WARMUP,
            weight_decay=DECAY,
            train_sampling_strategy="group_by_length",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=seed,
        ),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    made = output / "made"
    trainer.save_model(str(made))
    return made, seconds


Data = tuple[list[dict[str, Any]], dict[str, Any]]


def classify_data(tokenizer: Any, rows: list[dict[str, Any]], task: Task) -> Data:
    names = sorted({row[task.label] for row in rows})
    columns = [[row[column] for row in rows] for column in task.text]
    encoded = tokenizer(*columns, truncation=True, max_length=LIMIT)
    labels = [names.index(row[task.label]) for row in rows]
    return _items(encoded, labels=labels), _labels(names)


def tag_data(tokenizer: Any, rows: list[dict[str, Any]], task: Task) -> Data:
    names = sorted({tag for row in rows for tag in row[task.label]})
    words = [row["tokens"] for row in rows]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LIMIT)
    labels = []
    for number, row in enumerate(rows):
        places = encoded.word_ids(number)
        # The first piece of a word has its tag, as run_ner.py has it.
        first = [word is not None and word != places[n - 1] for n, word in enumerate(places)]
        labels.append(
            [
                names.index(row[task.label][word]) if new else -100
                for word, new in zip(places, first, strict=True)
            ]
        )
    return _items(encoded, labels=labels), _labels(names)


def answer_data(tokenizer: Any, rows: list[dict[str, Any]], task: Task) -> Data:
    """Windows and places as run_qa.py has them."""
    encoded = tokenizer(
        [row["question"] for row in rows],
        [row["context"] for row in rows],
        truncation="only_second",
        max_length=LIMIT,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    sources = encoded.pop("overflow_to_sample_mapping")
    starts, ends = [], []
    for number, offsets in enumerate(encoded.pop("offset_mapping")):
        answer = rows[sources[number]]["answers"][0]
        begin, end = _start(answer), _start(answer) + len(answer["text"])
        sides = encoded.sequence_ids(number)
        inside = [n for n, side in enumerate(sides) if side == 1]
        held = offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= end
        within = [n for n in inside if offsets[n][1] > begin and offsets[n][0] < end]
        starts.append(within[0] if held else 0)
        ends.append(within[-1] if held else 0)
    return _items(encoded, start_positions=starts, end_positions=ends), {}


def _start(answer: dict[str, Any]) -> int:
    return int(answer["answer_start"] if "answer_start" in answer else answer["start"])


def _items(encoded: Any, **more: list[Any]) -> list[dict[str, Any]]:
    columns = {**encoded, **more}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _labels(names: list[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}


DATA: dict[str, Callable[[Any, list[dict[str, Any]], Task], Data]] = {
    "classify": classify_data,
    "tag": tag_data,
    "answer": answer_data,
}

# --- quality --------------------------------------------------------------------------------------


def quality(tasks: list[str], seeds: list[int], threads: int) -> None:
    for seed, name, who in itertools.product(seeds, tasks, WHO):
        found = kept(place(name, who, seed), what(name), partial(one, name, who, seed, threads))
        print(f"seed {seed} {name} {who}: {found['score']:.4f}", file=sys.stderr)


def place(name: str, who: str, seed: int) -> Path:
    """Where the result of a run is kept."""
    return FOUND / f"quality-{name}-{who}-{seed}.json"


def what(name: str) -> dict[str, Any]:
    """All that a score rests on, but its seed."""
    facts = {**asdict(TASKS[name]), "rows_a_batch": ROWS, "lr": LR, "limit": LIMIT}
    del facts["timed"]
    return facts


def one(name: str, who: str, seed: int, threads: int) -> dict[str, Any]:
    """A run in a process of its own."""
    line = [sys.executable, __file__, "one", "--task", name, "--who", who, "--seed", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def train_and_score(who: str, name: str, seed: int) -> dict[str, Any]:
    import enrobe
    from enrobe.evaluate.files import evaluate_head

    task = TASKS[name]
    folder = scratch(f"finetune-{name}-{who}-{seed}")
    train, dev = files(name, folder, task.train)
    if who == "enrobe":
        made, _ = train_enrobe(name, train, dev, folder / "run", seed=seed, epochs=task.epochs)
    else:
        made, _ = train_trainer(name, train, folder / "run", seed=seed, epochs=task.epochs)
    found = evaluate_head(enrobe.load(made), dev, text=task.text, label=[task.label])
    shutil.rmtree(folder)
    metric = next(iter(found.scores))
    scores = {key: round(interval.value, 4) for key, interval in found.scores.items()}
    return {"metric": metric, "score": scores[metric], "scores": scores, "rows": found.rows}


# --- speed ----------------------------------------------------------------------------------------


class Turns:
    """Between two turns: how long the last one took, then wait for the next."""

    def __init__(self) -> None:
        self.began: float | None = None

    def next(self) -> None:
        if self.began is not None:
            print(time.perf_counter() - self.began, flush=True)
        if sys.stdin.readline().strip() in ("", "stop"):
            print(json.dumps({"peak_mb": own_peak_mb()}), flush=True)
            os._exit(0)
        self.began = time.perf_counter()


def updates(name: str) -> int:
    """Of a turn: transformers' LengthGroupedSampler sorts so many batches at once."""
    return min(50, TASKS[name].timed // (4 * ROWS))


def timed(who: str, name: str) -> None:
    """A worker that trains a turn at a time, until it is told to stop."""
    turns, task = Turns(), TASKS[name]
    folder = scratch(f"finetune-speed-{name}-{who}")
    train, dev = files(name, folder, task.timed)
    settings: dict[str, Any] = {"seed": 1, "epochs": task.epochs}
    if who == "enrobe":
        from enrobe.train import finetune
        from enrobe.train.work import Evaluation

        class Waiting(finetune.HeadTraining):
            def evaluate(self) -> Evaluation:
                turns.next()
                return Evaluation(results={}, score=None)

        finetune.HeadTraining = Waiting  # type: ignore[misc]
        turns.next()
        train_enrobe(name, train, dev, folder / "run", evaluate_every=updates(name), **settings)
        return
    import transformers

    class Wait(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.next()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step % updates(name) == 0:
                turns.next()

    train_trainer(name, train, folder / "run", callbacks=[Wait()], **settings)


def speed(tasks: list[str], rounds: int) -> None:
    FOUND.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "2"
    for name in tasks:
        extra = ["--task", name]
        found = take_turns(Path(__file__), dict.fromkeys(WHO, extra), rounds)
        seconds = {who: found[who]["median_s"] for who in WHO}
        facts = {
            "rows": TASKS[name].timed,
            "updates_a_turn": updates(name),
            "turns": {who: found[who]["rounds"] for who in WHO},
            "seconds_a_turn": seconds,
            "spread": {who: [found[who]["min_s"], found[who]["max_s"]] for who in WHO},
            "peak_mb": {who: found[who]["peak_mb"] for who in WHO},
            "times_faster": round(seconds["trainer"] / seconds["enrobe"], 2),
        }
        (FOUND / f"speed-{name}.json").write_text(json.dumps(facts))
        print(f"{name}: {facts['times_faster']} times", file=sys.stderr)


# --- the report -----------------------------------------------------------------------------------


def report() -> None:
    cases: dict[str, Any] = {}
    for name in TASKS:
        case: dict[str, Any] = {"what": what(name)}
        scores: dict[str, list[float]] = {who: [] for who in WHO}
        for who, own in scores.items():
            for seed in itertools.count(1):
                if not place(name, who, seed).exists():
                    break
                found = json.loads(place(name, who, seed).read_text())
                assert found["what"] == json.loads(json.dumps(what(name))), "run quality again"
                own.append(found["score"])
                case |= {"metric": found["metric"], "dev_rows": found["rows"]}
        if all(scores.values()):
            means = {who: statistics.mean(own) for who, own in scores.items()}
            case |= {
                "scores": scores,
                "means": {who: round(mean, 4) for who, mean in means.items()},
                "points_above_trainer": round(100 * (means["enrobe"] - means["trainer"]), 2),
            }
        timing = FOUND / f"speed-{name}.json"
        if timing.exists():
            case["speed"] = json.loads(timing.read_text())
        cases[name] = case
    versions = {**machine()["versions"], "accelerate": version("accelerate")}
    write_report("finetune_vs_trainer", {"versions": versions, "tasks": cases})


if __name__ == "__main__":
    main()
