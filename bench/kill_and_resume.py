"""Kill a pretraining run with kill -9 at random moments, resume it each time, compare the weights.

    python bench/kill_and_resume.py [--kills 20] [--seed 1]

A tiny model on real text, on the CPU. The end must be bitwise that of a run nobody disturbed. The
kill falls at any moment: while the vocabulary is trained, shards are built, a step is computed or a
checkpoint is written.
"""

import argparse
import hashlib
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common import SHARED, scratch, write_report

os.environ["OMP_NUM_THREADS"] = "2"

RECIPE = """
output = "{name}"
seed = 7
[model]
num_layers = 2
hidden_size = 64
num_heads = 2
intermediate_size = 128
[corpus]
vocabulary = 8192
length = 64
[corpus.sources.a]
files = ["a.txt"]
weight = 2
[corpus.sources.b]
files = ["b.txt"]
[corpus.heldout.a]
files = ["held.txt"]
rows = 20
[masking]
unit = "word"
[train]
steps = {steps}
batch_rows = 16
optimizer = "muon"
lr = 1e-3
save_every = 7
evaluate_every = 31
log_every = 5
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    folder = scratch("kill")
    folder.mkdir()
    for name, source in (("a", "text-simplewiki/train-000"), ("b", "text-speeches/train-000")):
        with lzma.open(SHARED / f"data/{source}.txt.xz", "rt", encoding="utf-8") as file:
            (folder / f"{name}.txt").write_text(file.read(2_500_000), "utf-8")
    with lzma.open(SHARED / "data/text-enwiki/valid.txt.xz", "rt", encoding="utf-8") as file:
        (folder / "held.txt").write_text(file.read(100_000), "utf-8")
    for name in ("calm", "killed"):
        text = RECIPE.format(name=name, steps=options.steps)
        (folder / f"{name}.toml").write_text(text)
    began = time.monotonic()
    start(folder / "calm.toml").wait()
    whole = time.monotonic() - began
    chance = random.Random(options.seed)
    kills = runs = 0
    while kills < options.kills:
        process = start(folder / "killed.toml")
        runs += 1
        try:
            # At any moment of what an undisturbed run takes.
            process.wait(chance.uniform(0.3, whole))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            print(f"kill {kills} at {newest(folder / 'killed')}", file=sys.stderr)
            continue
        if process.returncode:
            raise SystemExit(f"run {runs} ended with {process.returncode}")
        if kills < options.kills:
            print("done before the last kill; once more from the start", file=sys.stderr)
            digest(folder / "killed") == digest(folder / "calm") or fail(options.seed)
            shutil.rmtree(folder / "killed")
    while start(folder / "killed.toml").wait():
        runs += 1
    same = digest(folder / "killed") == digest(folder / "calm")
    report = {"seed": options.seed, "kills": kills, "steps": options.steps, "bitwise_equal": same}
    write_report("kill_and_resume", report)
    if not same:
        fail(options.seed)


def fail(seed: int) -> None:
    raise SystemExit(f"the weights differ (seed {seed})")


def start(recipe: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "enrobe", "pretrain", str(recipe), "--resume"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def digest(output: Path) -> str:
    return hashlib.sha256((output / "model/model.safetensors").read_bytes()).hexdigest()


def newest(output: Path) -> str:
    pointer = output / "checkpoints/latest"
    return pointer.read_text().strip() if pointer.is_file() else "no checkpoint yet"


if __name__ == "__main__":
    main()
