"""Memory with XLM-R's vocabulary of 250,002: filling masks, and a step of pretraining.

    python bench/large_vocabulary.py

A model of xlm-roberta-base's shape, random weights, XLM-R's own tokenizer. Each part runs in a
process of its own, whose peak is told beside what the weights alone take. 512 texts of tatoeba in
all its languages with a mask each; then updates of 16 rows of 128 tokens, 15% of them masked.
"""

import gzip
import json
import lzma
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import BASE, SHARED, write_report

TEXTS = 512


def main() -> None:
    if len(sys.argv) == 3:
        work(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        parameters = write_model(folder)
        found: dict[str, object] = {"parameters": parameters, "weights_MB": parameters * 4 // 10**6}
        for part in ("load", "fill", "train"):
            command = [sys.executable, __file__, part, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[part] = json.loads(done.stdout.splitlines()[-1])
    write_report("large_vocabulary", found)


def write_model(folder: Path) -> int:
    from enrobe import checkpoint
    from enrobe.config import EncoderConfig, HeadConfig

    config = EncoderConfig(
        family="xlm-roberta",
        vocab_size=250_002,
        hidden_size=BASE["hidden"],
        num_layers=BASE["layers"],
        num_heads=BASE["heads"],
        intermediate_size=BASE["wide"],
        max_positions=514,
        position_offset=2,
        type_vocab_size=1,
    )
    heads = {"mlm": HeadConfig(kind="mlm")}
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in checkpoint.shapes(config, heads).items():
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        tensors[name] = values + 1 if "norm.weight" in name else values
    whole = lzma.decompress((SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz").read_bytes())
    checkpoint.write(
        folder,
        config=config,
        heads=heads,
        tensors=tensors,
        tokenizer_files={"tokenizer.json": whole.decode()},
    )
    return sum(tensor.size for tensor in tensors.values())


def work(part: str, folder: Path) -> None:
    """One part, in a process of its own: its peak in megabytes, and how much it did."""
    done = {"load": load, "fill": fill, "train": train}[part](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6
    print(json.dumps({"peak_MB": peak, **done}))


def load(folder: Path) -> dict[str, int]:
    import enrobe

    enrobe.load(folder).fill("A <mask>.")
    return {}


def fill(folder: Path) -> dict[str, int]:
    import enrobe

    with gzip.open(SHARED / "data/tatoeba/test.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["source"] for line in file]
    step = len(texts) // TEXTS
    some = [f"{text} <mask>" for text in texts[: step * TEXTS : step]]
    return {"texts": len(enrobe.load(folder).fill(some))}


def train(folder: Path) -> dict[str, int]:
    import enrobe

    out = folder.parent / "run"
    text = folder.parent / "text.txt"
    with lzma.open(SHARED / "data/text-books-de/train-000.txt.xz", "rt", encoding="utf-8") as file:
        text.write_text(file.read(400_000), "utf-8")
    recipe = folder.parent / "recipe.toml"
    recipe.write_text(
        f'model = "{folder}"\noutput = "{out}"\n[corpus]\nlength = 128\n'
        f'[corpus.sources.de]\nfiles = ["{text}"]\n'
        "[train]\nsteps = 2\nbatch_rows = 16\nsave_every = 100\n"
    )
    return {"steps": enrobe.pretrain(recipe).step}


if __name__ == "__main__":
    main()
