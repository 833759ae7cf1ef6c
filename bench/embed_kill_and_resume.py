"""A bulk job that is killed at random ends with the bytes of one that was left alone.

python bench/embed_kill_and_resume.py MODEL [--rows 100000] [--kills 5] [--format npy] [--workers 1]

Short rows of real text are embedded once in peace, then by a job that is killed (kill -9) at random
moments and goes on with --resume. Peak memory is that of whole jobs of a tenth of the rows and of
all of them.
"""

import argparse
import hashlib
import lzma
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import SHARED, scratch, write_report

WORDS = 12


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--format", default="npy")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    folder = scratch("embed-kill")
    folder.mkdir()
    texts = write_texts(folder, options.rows, chance)
    print(f"seed {options.seed}", file=sys.stderr)

    def job(rows: int, output: Path) -> "subprocess.Popen[bytes]":
        options_of_job = ["--workers", str(options.workers), "--resume"]
        arguments = [texts[rows], "--output", output, "--model", options.model, *options_of_job]
        return subprocess.Popen(
            [sys.executable, "-m", "enrobe", "embed", *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    peaks, seconds = {}, {}
    calm = folder / f"calm.{options.format}"
    for rows in texts:
        output = calm if rows == options.rows else folder / f"tenth.{options.format}"
        began = time.monotonic()
        peaks[rows] = peak_mb(job(rows, output))
        seconds[rows] = round(time.monotonic() - began, 2)
        print(f"{rows} rows: {seconds[rows]} s, {peaks[rows]} MB", file=sys.stderr)
    killed = folder / f"killed.{options.format}"
    kills, runs = [], 0
    while len(kills) < options.kills:
        process = job(options.rows, killed)
        runs += 1
        # Starting takes a while; a kill must fall into the work, too.
        patience = chance.uniform(0.3, 3.0 + 1.5 * seconds[options.rows] / options.kills)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills.append(rows_done(killed))
            print(f"kill {len(kills)} after {kills[-1]} rows", file=sys.stderr)
            continue
        if process.returncode:
            raise SystemExit(f"run {runs} ended with {process.returncode}")
        print("done before the last kill; once more from the start", file=sys.stderr)
        if digest(killed) != digest(calm):
            raise SystemExit(f"the files differ (seed {options.seed})")
        killed.unlink()
    if job(options.rows, killed).wait():
        raise SystemExit("the last run failed")
    same = digest(killed) == digest(calm)
    small, large = peaks.values()
    report: dict[str, Any] = {
        "model": options.model.name,
        "format": options.format,
        "workers": options.workers,
        "seed": options.seed,
        "kills": options.kills,
        "rows_done_at_each_kill": kills,
        "byte_identical": same,
        "rows": list(peaks),
        "seconds": list(seconds.values()),
        "peak_mb": list(peaks.values()),
        "peak_ratio": round(large / small, 3),
    }
    write_report("embed_kill_and_resume", report)
    if not same:
        raise SystemExit(f"the files differ (seed {options.seed})")
    if large > 1.1 * small:
        raise SystemExit("memory grows with the rows")


def write_texts(folder: Path, count: int, chance: random.Random) -> dict[int, Path]:
    """A file of a tenth of the rows and one of all, each row 1 to 2 * WORDS words."""
    with lzma.open(SHARED / "data/text-enwiki/valid.txt.xz", "rt", encoding="utf-8") as file:
        words = file.read(6_000_000).split()
    out = {}
    for rows in (count // 10, count):
        out[rows] = folder / f"{rows}.txt"
        with out[rows].open("w", encoding="utf-8") as target:
            for _ in range(rows):
                start = chance.randrange(len(words) - 2 * WORDS)
                target.write(" ".join(words[start : start + chance.randint(1, 2 * WORDS)]) + "\n")
    return out


def peak_mb(process: "subprocess.Popen[bytes]") -> float:
    """Wait for a job; the most memory that its first process held."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a job ended with {process.returncode}")
    return round(usage.ru_maxrss / 1024, 1)


def rows_done(output: Path) -> int:
    from enrobe.checkpoint import read_json

    progress = output.with_name(f"{output.name}.part") / "progress.json"
    return int(str(read_json(progress)["rows"])) if progress.is_file() else 0


def digest(output: Path) -> list[str]:
    beside = output.with_name(f"{output.name}.json")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in (output, beside)]


if __name__ == "__main__":
    main()
