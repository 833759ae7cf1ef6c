"""Pretraining: Enrobe against transformers' Trainer, float32 on a CPU, two threads.

    python bench/pretrain_vs_trainer.py speed [--rounds 2]
    python bench/pretrain_vs_trainer.py loss  [--seeds 3] [--steps 200]

Trainer needs `pip install accelerate`. Both train the same model from the same initial weights on
the same rows in the same order, with the same optimiser settings; Trainer with
DataCollatorForLanguageModeling. 4x256 is enrobe-tiny's shape with its vocabulary of 8,192, base is
RoBERTa's with its 50,265. `lines`: one line of text a row, which Trainer pads to the longest of its
batch; `packed`: blocks of 512 tokens. Speed counts real tokens; a round is a
process of its own and its first step is not counted. `loss` measures both results on the same
held-out rows with the same masks.
"""

import argparse
import itertools
import json
import lzma
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import BASE, SHARED, roberta_folder, scratch, write_report

THREADS = 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
os.environ["HF_HUB_OFFLINE"] = "1"

TINY = {"layers": 4, "hidden": 256, "heads": 4, "wide": 1024, "vocabulary": 8192}
SIZES = {"4x256": TINY, "base": BASE}
# rows a step, and the steps of a round
ROUNDS = {
    ("4x256", "lines"): (32, 8),
    ("4x256", "packed"): (32, 6),
    ("base", "lines"): (16, 2),
    ("base", "packed"): (4, 2),
}
LR, WARMUP, DECAY, BETAS, EPS = 5e-4, 20, 0.01, (0.9, 0.98), 1e-6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("speed", "loss", "worker"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--job")
    options = parser.parse_args()
    if options.part == "worker":
        job = json.loads(options.job)
        {"enrobe": train_enrobe, "trainer": train_trainer}[job["who"]](job)
    elif options.part == "speed":
        speed(options.rounds)
    else:
        loss(options.seeds, options.steps)


def texts(folder: Path, longest: int = 500) -> tuple[Path, Path]:
    """Lines of 4 tokens and more, a document each, to train on; and others to measure on."""
    from enrobe.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(SHARED / "tokenizers/roberta-base", "roberta")
    out = []
    for name, limit in (("train-000", 6_000_000), ("valid", 400_000)):
        with lzma.open(SHARED / f"data/text-enwiki/{name}.txt.xz", "rt", encoding="utf-8") as file:
            lines = [line.strip() for line in file.read(limit).split("\n")[:-1] if line.strip()]
        rows = tokenizer.contents(lines, special=False)
        kept = [line for line, row in zip(lines, rows, strict=True) if 4 <= len(row.ids) <= longest]
        path = folder / f"{name}.txt"
        path.write_text("\n\n".join(kept), "utf-8")
        out.append(path)
    return out[0], out[1]


def recipe(job: dict[str, Any]) -> Any:
    """What both train: Enrobe as it stands, Trainer by hand from the same values."""
    from enrobe.train.recipe import PretrainRecipe, make

    values = {
        "output": job["output"],
        "model": job["model"],
        "seed": job["seed"],
        "corpus": {
            "folder": job["corpus"],
            "packing": "documents" if job["rows_are"] == "lines" else "full",
            "sources": {"text": {"files": [job["train"]]}},
            "heldout": {"text": {"files": [job["heldout"]], "rows": 400 if job["measure"] else 1}},
        },
        "train": {
            "steps": job["steps"],
            "batch_rows": job["batch_rows"],
            "lr": LR,
            "warmup": WARMUP,
            "betas": BETAS,
            "eps": EPS,
            "weight_decay": DECAY,
            "clip": 1.0,
            "log_every": 1,
            "save_every": 10**9,
        },
    }
    return make(PretrainRecipe, values)


def train_enrobe(job: dict[str, Any]) -> None:
    import enrobe

    result = enrobe.pretrain(recipe(job))
    lines = [json.loads(x) for x in (Path(job["output"]) / "log.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    after = dict(result.after["text"])
    print(json.dumps({"rates": rates[1:], "heldout": after}))


def train_trainer(job: dict[str, Any]) -> None:
    import torch
    import transformers

    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    work = masked_lm(job, job["model"])
    rows = [row for step in range(job["steps"]) for row in batch_rows(work, step)]
    sizes = [
        sum(len(row) for row in rows[i : i + job["batch_rows"]])
        for i in range(0, len(rows), job["batch_rows"])
    ]
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
    transformers.set_seed(job["seed"])
    model = transformers.AutoModelForMaskedLM.from_pretrained(job["model"])
    trainer = InOrder(
        model=model,
        train_dataset=[{"input_ids": row.tolist()} for row in rows],
        data_collator=transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[Clock()],
        args=transformers.TrainingArguments(
            output_dir=job["output"],
            max_steps=job["steps"],
            per_device_train_batch_size=job["batch_rows"],
            learning_rate=LR,
            warmup_steps=WARMUP,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPS,
            weight_decay=DECAY,
            max_grad_norm=1.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
    )
    trainer.train()
    rates = [size / (b - a) for size, a, b in zip(sizes[1:], ends[:-1], ends[1:], strict=True)]
    made = Path(job["output"]) / "made"
    trainer.save_model(str(made))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        # As it was: transformers would write it otherwise, and the corpus knows its own.
        shutil.copyfile(Path(job["model"]) / name, made / name)
    heldout = {}
    if job["measure"]:
        other = masked_lm({**job, "output": job["output"] + "-measured"}, str(made))
        other.model.eval()
        with torch.no_grad():
            heldout = dict(other.evaluate().results["text"])
    print(json.dumps({"rates": rates, "heldout": heldout}))


def masked_lm(job: dict[str, Any], model: str) -> Any:
    """The rows of a job, and its held-out measure, with the weights of `model`."""
    from enrobe.train import pretrain
    from enrobe.train.group import Group

    asked = recipe({**job, "model": model})
    group = Group.join("cpu")
    made, tokenizer, start = pretrain._model(asked, group)
    rows, heldout = pretrain.corpus_rows(asked, tokenizer, group)
    return pretrain.MaskedLM(made, tokenizer, start, rows, heldout, asked, group)


def batch_rows(work: Any, step: int) -> list[Any]:
    """The rows of a step before they are masked."""
    rows = []
    for micro in work.batch(step):
        ids = micro.batch.ids.copy()
        ids[micro.arrays["positions"]] = micro.arrays["targets"]
        offsets = micro.batch.offsets
        rows += [ids[a:b] for a, b in itertools.pairwise(offsets)]
    return rows


def start(job: dict[str, Any]) -> dict[str, Any]:
    """One worker to its end."""
    done = subprocess.run(
        [sys.executable, __file__, "worker", "--job", json.dumps(job)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def prepare(size: str, seed: int, folder: Path) -> str:
    from enrobe import hub

    model = folder / f"{size}-{seed}"
    if not model.exists():
        tokenizer = hub.resolve("enrobe-tiny") if size == "4x256" else None
        roberta_folder(model, seed=seed, tokenizer=tokenizer, **SIZES[size])
        settings = json.loads((model / "config.json").read_text())
        # Trainer's dropout draws other numbers; without it the two follow one path.
        settings |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        (model / "config.json").write_text(json.dumps(settings))
    return str(model)


def speed(rounds: int) -> None:
    folder = scratch("pretrain")
    folder.mkdir()
    train, heldout = texts(folder)
    cases: dict[str, Any] = {}
    for (size, rows_are), (batch, steps) in ROUNDS.items():
        model = prepare(size, 0, folder)
        rates: dict[str, list[float]] = {"enrobe": [], "trainer": []}
        for number in range(rounds):
            for who, found in rates.items():
                job = {
                    "who": who,
                    "model": model,
                    "rows_are": rows_are,
                    "batch_rows": batch,
                    "steps": steps + 1,
                    "seed": 1,
                    "train": str(train),
                    "heldout": str(heldout),
                    "corpus": str(folder / f"corpus-{size}"),
                    "output": str(folder / f"{size}-{rows_are}-{who}-{number}"),
                    "measure": False,
                }
                found.append(statistics.median(start(job)["rates"]))
                print(f"{size} {rows_are} {who}: {found[-1]:,.0f} tokens/s", file=sys.stderr)
        middle = {who: statistics.median(found) for who, found in rates.items()}
        cases[f"{size}, {rows_are}"] = {
            "rows_a_step": batch,
            "steps_a_round": steps,
            "tokens_per_second": {who: round(rate, 1) for who, rate in middle.items()},
            "rounds": {who: [round(r, 1) for r in found] for who, found in rates.items()},
            "times_faster": round(middle["enrobe"] / middle["trainer"], 2),
        }
    write_report("pretrain_vs_trainer-speed", {"threads": THREADS, "cases": cases})


def loss(seeds: int, steps: int) -> None:
    folder = scratch("pretrain-loss")
    folder.mkdir()
    # Short lines: Trainer is five times slower on long ones, and the question is another.
    train, heldout = texts(folder, longest=128)
    found: dict[str, list[float]] = {"enrobe": [], "trainer": []}
    for seed in range(1, seeds + 1):
        for who, losses in found.items():
            job = {
                "who": who,
                "model": prepare("4x256", seed, folder),
                "rows_are": "lines",
                "batch_rows": 8,
                "steps": steps,
                "seed": seed,
                "train": str(train),
                "heldout": str(heldout),
                "corpus": str(folder / "corpus"),
                "output": str(folder / f"{who}-{seed}"),
                "measure": True,
            }
            losses.append(start(job)["heldout"]["loss"])
            print(f"seed {seed} {who}: held-out loss {losses[-1]:.4f}", file=sys.stderr)
    means = {who: statistics.mean(losses) for who, losses in found.items()}
    write_report(
        "pretrain_vs_trainer-loss",
        {
            "threads": THREADS,
            "model": "4x256",
            "steps": steps,
            "heldout_loss": {who: [round(x, 4) for x in losses] for who, losses in found.items()},
            "means": {who: round(mean, 4) for who, mean in means.items()},
            "difference": round(means["enrobe"] / means["trainer"] - 1, 4),
        },
    )


if __name__ == "__main__":
    main()
