"""Vocabulary rows that a corpus never uses, dropped from tokenizer, embeddings and decoder.

What is kept still means what it meant: any text whose tokens are all kept is cut into the same
tokens, and so gets the same vectors, bit for bit.

    WordPiece   takes the longest piece first: a shorter list cannot offer a longer one
    Unigram     takes the best of all paths: the best one is kept, others can only go
    BPE         joins the pair of the lowest rank again and again: every pair that is joined on the
                way to a kept token is kept, and pairs that go were joined in none of them
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from enrobe import checkpoint, hub
from enrobe.atomic import check_new, new_folder
from enrobe.checkpoint import Checkpoint
from enrobe.data.readers import Source
from enrobe.dialects import DIALECTS
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.errors import CallError, ModelError, RefusedError, TextError, show
from enrobe.sentence_folder import copy_sentence_files
from enrobe.text.ragged import Ids, Ragged
from enrobe.text.tokenizer import Tokenizer
from enrobe.weights import Int8Rows

_BLOCK = 1000
_COMPARED = 200
# Texts whose vectors are compared, from the beginning of the corpus.
_LONGEST = 128


@dataclass(frozen=True, kw_only=True)
class TrimReport:
    """What a corpus uses of a vocabulary."""

    output: Path
    texts: int
    # of the corpus, all of which are cut into the same tokens as before
    tokens: int
    rows: tuple[int, int]
    # of the embeddings, before and after
    file_bytes: tuple[int, int]
    # of the weights
    compared: int
    # texts whose hidden states were found to be the same, bit for bit
    skipped: int
    error: str | None
    # rows that could not be read, and the first one's error

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON has them."""
        return {**asdict(self), "output": str(self.output)}


def trim(
    model: str | os.PathLike[str] | None,
    output: str | os.PathLike[str],
    *,
    corpus: str | os.PathLike[str],
    column: str | None = None,
) -> TrimReport:
    """Write a model without the vocabulary entries that a corpus never uses.

    Args:
        model: a folder, a built-in name or a hub id.
        output: a new folder.
        corpus: a file of texts (txt, jsonl, csv, tsv, parquet; gz and xz of them), like those that
            the model will read: another word becomes smaller pieces, or unknown.
        column: which column holds the text.

    Raises:
        CallError: the corpus cannot be read or has no text, or the output is there already.
        ModelError: a tokenizer of a kind that cannot be trimmed; the folder cannot be read.
        RefusedError: a text of the corpus would be read otherwise; nothing was written.
    """
    folder = Path(output)
    check_new(folder)
    read = checkpoint.read(hub.resolve(model))
    family, count = read.config.family, read.config.vocab_size
    tokenizer = Tokenizer.from_folder(read.folder, family, count)
    used, texts, tokens, errors = _used(tokenizer, corpus, column, count)
    state = json.loads(tokenizer.to_json())
    kept = _kept(state, used, read.config.pad_id, count)
    smaller = Tokenizer(
        tokenizers.Tokenizer.from_str(json.dumps(_trimmed(state, kept))),
        DIALECTS[family],
        len(kept),
    )
    new_ids = np.full(count, -1, np.int64)
    new_ids[kept] = np.arange(len(kept))
    for one in _blocks(corpus, column):
        _same_tokens(tokenizer, smaller, new_ids, one)
    trimmed = _rows_of(read, kept)
    some = list(islice((t for one in _blocks(corpus, column) for t in one), _COMPARED))
    _same_vectors(read, trimmed, [row for row in _rows(tokenizer, some) if len(row)], new_ids)
    with new_folder(folder) as work:
        checkpoint.write(
            work / "model",
            config=trimmed.config,
            heads=trimmed.heads,
            tensors=trimmed.tensors,
            tokenizer_files={
                "tokenizer.json": smaller.to_json(),
                "tokenizer_config.json": _settings(read.folder),
            },
            int8=trimmed.int8 if read.computes_int8 else None,
            int8_rows=bool(read.int8) and not read.computes_int8,
        )
        for path in (work / "model").iterdir():
            path.rename(work / path.name)
        (work / "model").rmdir()
        if (read.folder / "special_tokens_map.json").is_file():
            names = "special_tokens_map.json"
            shutil.copyfile(read.folder / names, work / names)
        copy_sentence_files(read.folder, work)
        sizes = tuple(
            sum(file.stat().st_size for file in checkpoint.weight_files(f))
            for f in (read.folder, work)
        )
    return TrimReport(
        output=folder,
        texts=texts,
        tokens=tokens,
        rows=(count, len(kept)),
        file_bytes=(sizes[0], sizes[1]),
        compared=min(len(some), _COMPARED),
        skipped=len(errors),
        error=errors[0] if errors else None,
    )


def _blocks(corpus: str | os.PathLike[str], column: str | None) -> Iterator[list[str]]:
    rows = (row.text for row in Source(Path(corpus), column) if row.error is None)
    while block := list(islice(rows, _BLOCK)):
        yield block


def _used(
    tokenizer: Tokenizer, corpus: str | os.PathLike[str], column: str | None, count: int
) -> tuple[npt.NDArray[np.bool_], int, int, list[str]]:
    """Which ids texts need, how many texts and tokens there are, and what could not be read."""
    used, texts, tokens = np.zeros(count, bool), 0, 0
    errors = [row.error for row in Source(Path(corpus), column) if row.error is not None]
    for block in _blocks(corpus, column):
        for one in tokenizer.ids(block):
            if isinstance(one, TextError):
                errors.append(str(one))
                continue
            used[one] = True
            texts, tokens = texts + 1, tokens + len(one)
    if not tokens:
        first = f"; the first: {errors[0]}" if errors else ""
        raise CallError(f"{corpus}: no text that can be read{first}")
    return used, texts, tokens, errors


def _kept(
    state: Mapping[str, Any], used: npt.NDArray[np.bool_], pad: int, count: int
) -> npt.NDArray[np.int64]:
    """Ids to keep, in their order: used ones, special ones, and what leads to them."""
    model = state["model"]
    keep = used.copy()
    # Positions count from the padding's id, which so stays what it is.
    keep[: pad + 1] = True
    for token in state["added_tokens"]:
        if token["id"] < count:
            keep[token["id"]] = True
    kind = model["type"]
    if kind == "Unigram":
        scores = [score for _, score in model["vocab"]]
        # An unknown character costs as much as the worst piece and more.
        keep[int(np.argmin(scores))] = True
        if model.get("unk_id") is not None:
            keep[model["unk_id"]] = True
    elif kind == "BPE":
        ids: dict[str, int] = model["vocab"]
        for token, number in ids.items():
            if len(token) == 1 and number < count:
                keep[number] = True
        names = {number: token for token, number in ids.items()}
        ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}
        for kept_id in np.flatnonzero(keep):
            for pair in joined(names.get(int(kept_id), ""), ranks, _parts(model)):
                for token in (*pair, "".join(_plain(pair, model))):
                    keep[ids[token]] = True
    elif kind not in ("WordPiece", "WordLevel"):
        raise ModelError(f"a tokenizer of kind {kind}; allowed: BPE, Unigram, WordPiece")
    if kind != "Unigram" and model.get("unk_token") in model["vocab"]:
        keep[model["vocab"][model["unk_token"]]] = True
    return np.flatnonzero(keep)


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges, in the order of their ranks; older files have them as text."""
    return [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]  # type: ignore[misc]


def _parts(model: Mapping[str, Any]) -> str:
    return model.get("continuing_subword_prefix") or ""


def _plain(pair: tuple[str, str], model: Mapping[str, Any]) -> tuple[str, str]:
    return pair[0], pair[1].removeprefix(_parts(model))


def joined(
    token: str, ranks: Mapping[tuple[str, str], int], prefix: str = ""
) -> list[tuple[str, str]]:
    """The pairs that BPE joins on its way to a token, in their order."""
    parts = [c if not i else prefix + c for i, c in enumerate(token)]
    done = []
    while len(parts) > 1:
        found = enumerate(pairwise(parts))
        rank, place = min((ranks.get(pair, len(ranks)), i) for i, pair in found)
        if rank == len(ranks):
            break
        done.append((parts[place], parts[place + 1]))
        parts[place : place + 2] = [parts[place] + parts[place + 1].removeprefix(prefix)]
    return done


def _trimmed(state: Mapping[str, Any], kept: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The tokenizer's JSON with the kept entries under their new ids."""
    new = {int(old): place for place, old in enumerate(kept)}
    out = json.loads(json.dumps(state))
    model = out["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[i] for token, i in model["vocab"].items() if i in new}
    if model["type"] == "BPE":
        vocab = model["vocab"]
        model["merges"] = [
            list(pair)
            for pair in _pairs(model)
            if pair[0] in vocab and pair[1] in vocab and "".join(_plain(pair, model)) in vocab
        ]
    out["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in out["added_tokens"] if token["id"] in new
    ]
    _renumber(out.get("post_processor"), new)
    out["padding"] = out["truncation"] = None
    return dict(out)


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """New ids of the special tokens that a post-processor adds, in place."""
    if not isinstance(processor, dict):
        return
    for part in processor.get("processors") or ():
        _renumber(part, new)
    for key in ("sep", "cls"):
        if isinstance(processor.get(key), list):
            processor[key] = [processor[key][0], new[processor[key][1]]]
    if isinstance(processor.get("special_tokens"), dict):
        for token in processor["special_tokens"].values():
            token["ids"] = [new[i] for i in token["ids"]]


def _rows_of(read: Checkpoint, kept: npt.NDArray[np.int64]) -> Checkpoint:
    """The model with the kept rows of everything that has a row an entry."""
    tensors: dict[str, Any] = {}
    int8: dict[str, Int8Rows] = {}
    decoders = {f"heads.{name}." for name, head in read.heads.items() if head.kind == "mlm"}
    for name in read.tensors:
        by_entry = name == "embeddings.word.weight" or any(
            name in (f"{path}bias", f"{path}decoder.weight") for path in decoders
        )
        if name in read.int8:
            matrix = read.int8[name]
            if by_entry:
                matrix = replace(matrix, values=matrix.values[kept], scale=matrix.scale[kept])
            int8[name] = matrix
            tensors[name] = matrix.restore()
        else:
            tensors[name] = read.tensors[name][kept] if by_entry else read.tensors[name]
    config = replace(read.config, vocab_size=len(kept))
    return replace(read, config=config, tensors=tensors, int8=int8)


def _rows(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Ids]:
    given = tokenizer.encode(list(texts), limit=_LONGEST)
    return [row.ids for row in given if not isinstance(row, TextError)]


def _same_tokens(
    before: Tokenizer, after: Tokenizer, new_ids: npt.NDArray[np.int64], texts: Collection[str]
) -> None:
    pairs = zip(texts, before.ids(list(texts)), after.ids(list(texts)), strict=True)
    for text, old, new in pairs:
        if isinstance(old, TextError):
            continue
        if isinstance(new, TextError) or not np.array_equal(new_ids[old], new):
            raise RefusedError(
                f"{show(text)} would be cut into other tokens; nothing was written; this is a "
                "mistake of ours: please report it with the tokenizer"
            )


def _same_vectors(
    before: Checkpoint, after: Checkpoint, rows: list[Ids], new_ids: npt.NDArray[np.int64]
) -> None:
    request = Request(layers=(before.config.num_layers,))
    precision = "int8" if before.computes_int8 else "float32"
    engines = [OnnxEngine(read, precision=precision) for read in (before, after)]
    for start in range(0, len(rows), 8):
        block = rows[start : start + 8]
        found = [
            engine.run(Ragged.from_rows(ids), request).hidden[before.config.num_layers]
            for engine, ids in zip(engines, (block, [new_ids[r] for r in block]), strict=True)
        ]
        if not (found[0] == found[1]).all():
            raise RefusedError("hidden states would not be the same; nothing was written")


def _settings(folder: Path) -> str:
    """tokenizer_config.json without the ids of the old vocabulary."""
    path = folder / "tokenizer_config.json"
    settings = checkpoint.read_json(path) if path.is_file() else {}
    settings.pop("added_tokens_decoder", None)
    return json.dumps(settings, indent=2) + "\n"
