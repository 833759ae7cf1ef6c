"""Several tasks on one encoder against each of them alone.

    python scripts/fetch_weights.py .cache/weights
    python bench/multitask.py snips     # intent and slots, together and alone, three paired seeds
    python bench/multitask.py four      # recipes/four-tasks.toml: with mr and banking77 too, a seed
    python bench/multitask.py resume    # the four, killed in the middle by kill -9 and gone on with
    python bench/multitask.py report

all-MiniLM-L6-v2's encoder. ROWS rows of each set, drawn once; scores on each set's dev file
(banking77 has none: a part of its test file). Runs are kept, and a call goes on where one ended.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

from common import ROOT, SHARED, finetuned, jsonl, kept, scratch, write_jsonl, write_report

MODEL = ROOT / ".cache/weights/minilm"
FOUND = ROOT / ".cache/bench/multitask"
RECIPE = ROOT / "recipes/four-tasks.toml"
SEEDS = {"snips": (1, 2, 3), "four": (1,)}
ROWS = {"snips": 13_084, "four": 1000, "resume": 160}
DEV = 1000
EPOCHS = {"snips": 3, "four": 3, "resume": 1}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=(*ROWS, "report"))
    options = parser.parse_args()
    if options.part == "report":
        report()
    elif options.part == "resume":
        resume()
    else:
        compare(options.part)


def recipe(part: str, folder: Path) -> dict[str, Any]:
    """The recipe in recipes/, with MiniLM and so many rows of each file."""
    values = tomllib.loads(RECIPE.read_text())
    del values["output"]
    for task in values["tasks"].values():
        for side, most in (("train", ROWS[part]), ("dev", DEV)):
            source = (RECIPE.parent / task[side]).resolve()
            path = folder / f"{source.parent.name}-{side}.jsonl"
            rows = jsonl(SHARED / "data" / source.relative_to(source.parents[1]))
            random.Random(0).shuffle(rows)
            # Labels are whole numbers in mr, which leave it open what they are.
            rows = [row | {"label": f"class {row['label']}"} for row in rows[:most]]
            task[side] = str(write_jsonl(path, rows))
    values["train"]["epochs"] = EPOCHS[part]
    return values | {"model": str(MODEL)}


def compare(part: str) -> None:
    folder = FOUND / part
    values = recipe(part, folder)
    if part == "snips":
        values["tasks"] = {name: values["tasks"][name] for name in ("intent", "slots")}
    names = list(values["tasks"])
    for seed in SEEDS[part]:
        for chosen in (names, *([name] for name in names)):
            title = "together" if len(chosen) > 1 else chosen[0]
            tasks = {name: values["tasks"][name] for name in chosen}
            asked = {"rows": ROWS[part], "train": values["train"], "tasks": chosen}
            run = partial(train, folder / f"run-{title}-{seed}", values | {"tasks": tasks}, seed)
            found = kept(FOUND / f"{part}-{title}-{seed}.json", asked, run)
            print(f"{part} seed {seed} {title}: {found['scores']}", file=sys.stderr)


def train(folder: Path, values: dict[str, Any], seed: int) -> dict[str, Any]:
    values = {**values, "seed": seed, "train": {**values["train"], "save_every": 100}}
    result = finetuned(folder, values)
    shutil.rmtree(folder)
    return {"scores": {name: dict(own) for name, own in result.scores.items()}}


def resume() -> None:
    """Kill a four-task run in its middle, go on, and compare with one that was left alone."""
    folder = scratch("multitask-resume")
    values = recipe("resume", folder)
    values["train"] |= {"save_every": 10, "evaluate_every": 20}

    def start(name: str) -> "subprocess.Popen[bytes]":
        path = folder / f"{name}.json"
        path.write_text(json.dumps(values | {"output": str(folder / name)}))
        code = (
            "import json, enrobe, sys; from enrobe.train.recipe import make;"
            "from enrobe.train.finetune_recipe import FinetuneRecipe;"
            "values = json.load(open(sys.argv[1]));"
            "enrobe.finetune(make(FinetuneRecipe, values), resume=True)"
        )
        quiet = subprocess.DEVNULL
        line = [sys.executable, "-c", code, str(path)]
        return subprocess.Popen(line, stdout=quiet, stderr=quiet)

    def steps(name: str) -> int:
        checkpoints = (folder / name / "checkpoints").glob("step-*")
        return max((int(path.name[5:]) for path in checkpoints), default=0)

    if start("calm").wait():
        raise SystemExit("the undisturbed run failed")
    total = steps("calm")
    kills = []
    for place in (0.3, 0.6):
        process = start("killed")
        while process.poll() is None and steps("killed") < place * total:
            time.sleep(0.02)
        # In the middle of a step, somewhere.
        time.sleep(random.SystemRandom().uniform(0, 1))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills.append(steps("killed"))
    if start("killed").wait():
        raise SystemExit("the resumed run failed")
    weights = [(folder / n / "model/model.safetensors").read_bytes() for n in ("calm", "killed")]
    found = {
        "steps": total,
        "last_checkpoint_at_each_kill": kills,
        "bitwise_equal": weights[0] == weights[1],
    }
    (FOUND / "resume.json").write_text(json.dumps(found))
    print(found)


def report() -> None:
    parts: dict[str, Any] = {}
    for part in ("snips", "four"):
        runs = {path.stem: json.loads(path.read_text()) for path in FOUND.glob(f"{part}-*.json")}
        seeds = SEEDS[part]
        together = [runs[f"{part}-together-{seed}"] for seed in seeds]
        facts = together[0]["what"]
        rows: dict[str, Any] = {}
        for name in facts["tasks"]:
            metric = next(iter(together[0]["scores"][name]))
            both = {
                "together": [one["scores"][name][metric] for one in together],
                "alone": [runs[f"{part}-{name}-{seed}"]["scores"][name][metric] for seed in seeds],
            }
            means = {key: statistics.mean(own) for key, own in both.items()}
            rows[name] = {
                "metric": metric,
                **{key: [round(score, 4) for score in own] for key, own in both.items()},
                "means": {key: round(mean, 4) for key, mean in means.items()},
                "points_gained": round(100 * (means["together"] - means["alone"]), 2),
            }
        about = {"rows_of_each_set": facts["rows"], "train": facts["train"], "seeds": seeds}
        parts[part] = {**about, "tasks": rows}
    killed = json.loads((FOUND / "resume.json").read_text())
    write_report("multitask", {"model": MODEL.name, **parts, "resume": killed})


if __name__ == "__main__":
    main()
