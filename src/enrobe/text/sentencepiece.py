"""sentencepiece's model file (`sentencepiece.bpe.model`) to one of the library `tokenizers`.

The file is a protocol buffer, ModelProto of sentencepiece_model.proto; what is read of it are its
pieces with their scores and kinds, and how it normalises text. XLM-R and CamemBERT were trained by
fairseq, whose dictionary stands around the pieces, and each moves their ids in a way of its own:

    id           0           1      2            3      4                5 ...        last
    XLM-R        <s>         <pad>  </s>         <unk>  piece 3          piece 4      <mask>
    CamemBERT    <s>NOTUSED  <pad>  </s>NOTUSED  <unk>  <unk>NOTUSED     piece 1      <mask>

Pieces 0 to 2 are <unk>, <s> and </s>.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from enrobe.errors import ModelError, show

SENTENCEPIECE = "sentencepiece.bpe.model"

Pieces = list[tuple[str, float]]

_UNIGRAM = 1
_KINDS = {"normal": 1, "unknown": 2, "control": 3}
_FIRST = ("<unk>", "<s>", "</s>")
_SPACE = "▁"


@dataclass(frozen=True, kw_only=True)
class SentencePieces:
    """What a model file holds."""

    pieces: Pieces
    # (piece, logarithm of its probability)
    charsmap: bytes
    # how text is normalised, as tokenizers' Precompiled reads it; empty: not at all


def read_sentencepiece(path: Path, family: str) -> tokenizers.Tokenizer:
    """The tokenizer of a family's model file: the ids that its checkpoints were trained with.

    Raises:
        ModelError: the file is damaged, or holds what neither XLM-R's nor CamemBERT's does.
    """
    try:
        read = parse(path.read_bytes())
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from None
    except (IndexError, ValueError, struct.error) as error:
        raise ModelError(f"{path.name}: damaged ({error})") from None
    return _camembert(read) if family == "camembert" else _xlm_roberta(read)


# --- the file -----------------------------------------------------------------------------------


def parse(data: bytes) -> SentencePieces:
    """The bytes of a model file to its pieces.

    Raises:
        ModelError: not a Unigram model, or one whose text is treated in another way.
        IndexError, ValueError, struct.error: damaged.
    """
    pieces: Pieces = []
    kinds: list[int] = []
    charsmap = b""
    model = _UNIGRAM
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            piece, kind = _piece(value)
            pieces.append(piece)
            kinds.append(kind)
        elif field == 2 and isinstance(value, bytes):
            trainer = dict(_fields(value))
            model = _number(trainer.get(3, _UNIGRAM))
        elif field == 3 and isinstance(value, bytes):
            charsmap = _normalizer(value)
    if model != _UNIGRAM:
        raise ModelError(f"model_type {model}; allowed: {_UNIGRAM} (Unigram)")
    if tuple(name for name, _ in pieces[:3]) != _FIRST:
        first = " ".join(name for name, _ in pieces[:3])
        raise ModelError(f"begins with the pieces {show(first)}; allowed: {' '.join(_FIRST)}")
    for (name, _), kind in zip(pieces, kinds, strict=True):
        # What its author defined, bytes, and what is unused: no RoBERTa-family model has them.
        if kind not in _KINDS.values():
            allowed = ", ".join(_KINDS)
            raise ModelError(f"piece {show(name)} is of kind {kind}; allowed: {allowed}")
    return SentencePieces(pieces=pieces, charsmap=charsmap)


def _piece(data: bytes) -> tuple[tuple[str, float], int]:
    name, score, kind = "", 0.0, _KINDS["normal"]
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            name = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3:
            kind = _number(value)
    return (name, score), kind


def _normalizer(data: bytes) -> bytes:
    """The character map; the three switches must stand as sentencepiece sets them."""
    found = dict(_fields(data))
    names = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}
    for field, name in names.items():
        if not found.get(field, 1):
            raise ModelError(f"{name} is false, which is not implemented; allowed: true")
    charsmap = found.get(2, b"")
    return charsmap if isinstance(charsmap, bytes) else b""


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number is due")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message: (number, value). A number in 4 or 8 bytes comes as these bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > end:
            raise ValueError(f"ends within a field, at byte {end}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number without an end at byte {at}")


# --- the ids ------------------------------------------------------------------------------------


def _xlm_roberta(read: SentencePieces) -> tokenizers.Tokenizer:
    around = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return _build([*around, *read.pieces[3:], ("<mask>", 0.0)], read.charsmap, unused=())


def _camembert(read: SentencePieces) -> tokenizers.Tokenizer:
    # The pieces' own <unk> gets a score that no text would choose.
    unused = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
    around = [(unused[0], 0.0), ("<pad>", 0.0), (unused[1], 0.0), ("<unk>", 0.0)]
    pieces = [*around, (unused[2], -100.0), *read.pieces[1:], ("<mask>", 0.0)]
    return _build(pieces, read.charsmap, unused)


def _build(pieces: Pieces, charsmap: bytes, unused: tuple[str, ...]) -> tokenizers.Tokenizer:
    """As transformers builds the two families' tokenizers, whitespace included."""
    ids = {name: index for index, (name, _) in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=ids["<unk>"], byte_fallback=False))
    if charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    # Spaces at the ends and in a row vanish, as sentencepiece's remove_extra_whitespaces has it.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
        ]
    )
    backend.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    special = ("<s>", "<pad>", "</s>", "<unk>", *unused, "<mask>")
    backend.add_special_tokens(
        [AddedToken(name, lstrip=name == "<mask>", normalized=False) for name in special]
    )
    return backend
