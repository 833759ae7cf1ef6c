"""Pack a pretrained model folder into the package, as one of its built-in models.

    python scripts/pack_builtin.py SOURCE_FOLDER {enrobe-small,enrobe-tiny} [--card FILE]

src/enrobe/models/NAME gets config.json, the weights as int8 rows, tokenizer.json with its
tokenizer_config.json, and the model card as README.md (without --card the one that is there stays).
The folder is replaced when the new one is complete. Prints bytes, and how far the worst matrix is
from what it was.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from enrobe import checkpoint
from enrobe.errors import CallError, EnrobeError, ModelError
from enrobe.hub import BUILT_IN
from enrobe.text.tokenizer import Tokenizer
from enrobe.weights import INT8_WEIGHTS

MODELS = Path(__file__).resolve().parents[1] / "src/enrobe/models"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def pack(source: Path, name: str, card: Path | None, models: Path) -> dict[str, object]:
    """Write models/NAME from a folder and say what it has become."""
    target = models / name
    card = target / "README.md" if card is None else card
    if not card.is_file():
        raise CallError(f"{card}: no such file; a built-in model has a card, give it as --card")
    read = checkpoint.read(source)
    if list(read.heads) != ["mlm"]:
        raise ModelError(f"{source} has {', '.join(read.heads) or 'no head'}; needed: mlm")
    for file in _TOKENIZER:
        if not (source / file).is_file():
            raise ModelError(f"{source} has no {file}; fix: enrobe convert it first")
    Tokenizer.from_folder(source, read.config.family, read.config.vocab_size)
    models.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=models) as scratch:
        work = Path(scratch) / "new"
        checkpoint.write(
            work,
            # Pretrained without; those who train it further expect the usual one.
            config=replace(read.config, hidden_dropout=0.1, attention_dropout=0.1),
            heads=read.heads,
            tensors=read.tensors,
            tokenizer_files={file: (source / file).read_text("utf-8") for file in _TOKENIZER},
            int8_rows=True,
        )
        shutil.copyfile(card, work / "README.md")
        packed = checkpoint.read(work).tensors
        if target.exists():
            target.rename(Path(scratch) / "old")
        work.rename(target)
    errors = {
        key: float(np.linalg.norm(packed[key] - tensor) / max(np.linalg.norm(tensor), 1e-30))
        for key, tensor in read.tensors.items()
    }
    worst = max(errors, key=errors.__getitem__)
    return {
        "folder": str(target),
        "parameters": sum(tensor.size for tensor in packed.values()),
        "bytes_of_weights": (target / INT8_WEIGHTS).stat().st_size,
        "bytes": sum(path.stat().st_size for path in target.iterdir()),
        "worst_relative_error": errors[worst],
        "worst_tensor": worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("name", choices=BUILT_IN)
    parser.add_argument("--card", type=Path)
    given = parser.parse_args()
    try:
        print(json.dumps(pack(given.source, given.name, given.card, MODELS), indent=2))
    except EnrobeError as error:
        sys.exit(f"pack_builtin: {error}")


if __name__ == "__main__":
    main()
