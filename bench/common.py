"""What the benchmarks share: workloads, random models, workers that take turns, the report.

A contender runs in a process of its own, so that its peak memory is its own, and the processes take
turns, round by round, so that a machine whose speed drifts drifts for all of them.
"""

import gzip
import json
import lzma
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("ENROBE_DATA", ROOT.parent / "shared/data")).parent
BASE = {"layers": 12, "hidden": 768, "heads": 12, "wide": 3072}


def roberta_folder(
    folder: Path,
    *,
    seed: int = 0,
    layers: int,
    hidden: int,
    heads: int,
    wide: int,
    tokenizer: Path | None = None,
    vocabulary: int = 50_265,
) -> None:
    """A RoBERTa masked-LM folder with random weights and a tokenizer; None: the real one."""
    from enrobe import checkpoint
    from enrobe.config import EncoderConfig, HeadConfig

    config = EncoderConfig(
        family="roberta",
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=wide,
        max_positions=514,
        position_offset=2,
        type_vocab_size=1,
    )
    head = {"mlm": HeadConfig(kind="mlm")}
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in checkpoint.shapes(config, head).items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        tensors[name] = values + 1 if "norm.weight" in name else values
    checkpoint.write(
        folder,
        config=config,
        heads=head,
        tensors=tensors,
        tokenizer_folder=tokenizer or SHARED / "tokenizers/roberta-base",
    )
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def workload_1(tokenizer: Any, *, count: int = 512, seed: int = 0, masks: bool = True) -> list[str]:
    """Real texts with log-normal lengths: median 25 tokens, 4 to 256; one mask each, or none."""
    rng = random.Random(seed)
    ids = _real_ids(tokenizer, 3_000_000)
    texts = []
    while len(texts) < count:
        length = min(256, max(4, round(rng.lognormvariate(np.log(25), 0.77))))
        start = rng.randrange(len(ids) - 300)
        words = tokenizer.decode(ids[start : start + length - 2]).split()
        if words:
            place = rng.randrange(len(words))
            if masks:
                words[place] = "<mask>"
            texts.append(" ".join(words))
    return texts


def exact_texts(tokenizer: Any, *, tokens: int, count: int, seed: int = 0) -> list[str]:
    """Real texts of exactly so many tokens, special ones included; 32 of 128 are W2."""
    rng = random.Random(seed)
    ids = _real_ids(tokenizer, 300_000)
    texts: list[str] = []
    while len(texts) < count:
        start = rng.randrange(len(ids) - tokens)
        text = tokenizer.decode(ids[start : start + tokens - 2]).strip()
        # A cut inside a word may be read as other tokens than it was cut from.
        if len(tokenizer.encode([text])[0]) == tokens:
            texts.append(text)
    return texts


def _real_ids(tokenizer: Any, characters: int) -> Any:
    path = SHARED / "data/text-enwiki/valid.txt.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return tokenizer.encode([file.read(characters)])[0].ids[1:-1]


def take_turns(script: Path, arguments: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Start one worker a name, run them in turn, and return seconds a round and peak memory.

    A contender that takes five times as long as the quickest runs once: its figure is clear.
    """
    found = take_turns_at({"run": (rounds, 5)}, script, arguments)
    return {name: facts | facts.pop("run") for name, facts in found.items()}


def take_turns_at(
    works: Mapping[str, tuple[int, float]],
    script: Path,
    arguments: dict[str, list[str]],
    *,
    aside: Sequence[str] = (),
) -> dict[str, Any]:
    """The same for several kinds of work, one after another; a work's seconds are under its name.

    works: for each its rounds, and how many times the quickest's time makes one round enough.
    aside: workers that take their turns but are no contenders: not the quickest, never left out.
    """
    workers: dict[str, subprocess.Popen[str]] = {}
    quiet = Quiet(workers)
    for name, extra in arguments.items():
        workers[name] = subprocess.Popen(
            [sys.executable, str(script), "--worker", name, *extra],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # One after another: what warms up beside others warms up badly.
        print(f"{name} {_ask(workers[name], 'warm')}".strip(), file=sys.stderr)
    taken: dict[str, dict[str, list[float]]] = {}
    for work, (rounds, slow) in works.items():
        taken[work] = seconds = {name: [] for name in workers}
        for number in range(rounds):
            rivals = [statistics.median(s) for n, s in seconds.items() if s and n not in aside]
            # Who comes first changes: a turn is not quite alike after each of the others.
            shift = number % len(workers)
            for name, worker in [*workers.items()][shift:] + [*workers.items()][:shift]:
                late = name not in aside and number and rivals
                if late and statistics.median(seconds[name]) > slow * min(rivals):
                    continue
                seconds[name].append(quiet.measure(partial(_ask, worker, work)))
                line = f"{work} round {number} {name}: {seconds[name][-1]:.2f} s"
                print(line.removeprefix("run "), file=sys.stderr)
    facts: dict[str, Any] = {}
    for name, worker in workers.items():
        facts[name] = json.loads(_ask(worker, "stop"))
        for work, seconds in taken.items():
            facts[name][work] = {
                "rounds": len(seconds[name]),
                "median_s": round(statistics.median(seconds[name]), 3),
                "min_s": round(min(seconds[name]), 3),
                "max_s": round(max(seconds[name]), 3),
            }
        worker.wait()
    if quiet.disturbed:
        print(f"{quiet.disturbed} rounds were disturbed and done again", file=sys.stderr)
    return facts


class Quiet:
    """Measures again what other processes disturbed, on a system with /proc."""

    MOST = 0.1
    """Of all cores, what others may take in the meantime."""

    def __init__(self, workers: Mapping[str, "subprocess.Popen[str]"]) -> None:
        self.workers = workers
        self.disturbed = 0

    def measure(self, run: Callable[[], str]) -> float:
        """The seconds that a run says it took, the first time that nobody disturbs it.

        The fifth is taken as it is; `disturbed` counts them all.
        """
        for left in range(4, -1, -1):
            self._wait()
            others, began = self._others(), time.perf_counter()
            found = float(run())
            share = (self._others() - others) / (time.perf_counter() - began) / _cores()
            if share <= self.MOST:
                break
            self.disturbed += 1
            what = "once more" if left else "taken as it is"
            print(f"others took {share:.0%} of the machine: {what}", file=sys.stderr)
        return found

    def _wait(self) -> None:
        """Until a moment has gone by in which others did nothing much; two minutes at most."""
        for _ in range(400):
            others = self._others()
            time.sleep(0.3)
            if (self._others() - others) / 0.3 / _cores() <= self.MOST:
                return

    def _others(self) -> float:
        """Seconds of processor time that others than we and the workers have taken.

        Not those of other machines on the same processor: they do not go away.
        """
        if not Path("/proc/stat").exists():
            return 0.0
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().split("\n")[0].split()[1:]
        total = sum(map(int, (user, nice, system, *rest[:2])))
        own = 0
        for pid in (os.getpid(), *(worker.pid for worker in self.workers.values())):
            # After the name, which may hold anything but ends with the last parenthesis.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            own += int(fields[11]) + int(fields[12])
        return (total - own) / tick


def _cores() -> int:
    return os.cpu_count() or 1


def _ask(worker: "subprocess.Popen[str]", line: str) -> str:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(line, file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit("a worker ended early")
    return answer


def serve(
    run: Callable[[], object] | Mapping[str, Callable[[], object]],
    warm: Callable[[], object],
    facts: Callable[[], dict[str, Any]],
) -> None:
    """A worker's loop: `warm` once, one timed `run` a line on standard input, then the facts.

    run: one for each kind of work, by name, where there are several.
    """
    works = run if isinstance(run, Mapping) else {"run": run}
    for line in sys.stdin:
        start = time.perf_counter()
        if line.strip() == "warm":
            warm()
            print("ready", flush=True)
        elif line.strip() in works:
            works[line.strip()]()
            print(time.perf_counter() - start, flush=True)
        else:
            print(json.dumps({"peak_mb": own_peak_mb()} | facts()), flush=True)
            return


def own_peak_mb() -> int:
    """The most memory that this process has held."""
    # getrusage's figure begins at that of the process which started this one; VmHWM's at zero.
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return round((own or [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss])[0] / 1024)


def machine() -> dict[str, Any]:
    """The processor, the cores and the versions that a figure depends on."""
    model = platform.processor() or platform.machine()
    flags: list[str] = []
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        model = next(
            (x.split(":")[1].strip() for x in text.splitlines() if "model name" in x), model
        )
        known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
        flags = [flag for flag in known if f" {flag}" in text]
    packages = ("numpy", "onnxruntime", "tokenizers", "torch", "transformers")
    return {
        "processor": model,
        "flags": flags,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def write_report(name: str, report: dict[str, Any]) -> None:
    """Print a report and keep it under bench/results with its date."""
    report = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), **machine(), **report}
    text = json.dumps(report, indent=2)
    print(text)
    results = ROOT / "bench/results"
    results.mkdir(exist_ok=True)
    (results / f"{name}-{report['date']}.json").write_text(text + "\n")


def kept(place: Path, what: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Any:
    """What a run found; from a file, where it has been asked the same before.

    So a script of many runs goes on where a call of it ended.
    """
    asked = json.loads(json.dumps(what))
    if place.exists():
        known = json.loads(place.read_text())
        if known["what"] == asked:
            return known
    found = {"what": asked, **run()}
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(found))
    return found


def finetuned(folder: Path, values: Mapping[str, Any]) -> Any:
    """The result of a run of `enrobe.finetune` in a folder, which goes on where a call ended."""
    import enrobe
    from enrobe.train.finetune_recipe import FinetuneRecipe
    from enrobe.train.recipe import make

    recipe = make(FinetuneRecipe, {**values, "output": str(folder)})
    result = enrobe.finetune(recipe, resume=True)
    if not result.finished:
        raise SystemExit(f"stopped after step {result.step}; call again")
    return result


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, gz or not."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Rows as JSON lines; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scratch(name: str) -> Path:
    """An empty folder for this run's model, under .cache."""
    folder = ROOT / ".cache/bench" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder
