"""sentencepiece's own files, against transformers, which has protocol buffers to read them."""

import base64
import gzip
import json
import lzma
import random
import struct
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import CamembertConverter, XLMRobertaConverter
from transformers.utils import sentencepiece_model_pb2_new

from enrobe.errors import ModelError
from enrobe.text.sentencepiece import SENTENCEPIECE, Pieces
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import SHARED

XLM_ROBERTA = SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz"
FIRST: Pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
SMALL: Pieces = [("▁", -2.0), ("▁the", -1.5), ("▁chat", -3.0), ("s", -2.5), ("é", -4.0)]
SMALL += [(sign, -6.0 - i / 8) for i, sign in enumerate("abcdefhilmnopqrtuvxz.,!'<>/")]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def model_file(
    pieces: Pieces, charsmap: bytes = b"", *, trainer: bytes = b"", normalizer: bytes = b""
) -> bytes:
    """What sentencepiece's trainer writes, as far as it matters; kinds other than normal stand."""
    parts = []
    for number, (piece, score) in enumerate(pieces):
        data = message(1, piece.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score)
        if number < 3:
            data += varint(3 << 3) + varint(2 if number == 0 else 3)
        parts.append(message(1, data))
    parts.append(message(2, message(1, b"corpus.txt") + trainer))
    parts.append(message(3, message(1, b"nmt_nfkc") + message(2, charsmap) + normalizer))
    return b"".join(parts)


def reference(folder: Path, family: type[Any], converter: type[Any]) -> Any:
    """The tokenizer that transformers makes of a folder's file, where sentencepiece is there."""
    proto = sentencepiece_model_pb2_new.ModelProto()
    proto.ParseFromString((folder / SENTENCEPIECE).read_bytes())
    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    return family(
        vocab=converter.convert_from_spm(vocab=vocab)["vocab"],
        _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap or None,
    )


def lines_of_many_scripts(count: int, scripts: int) -> list[str]:
    """Lines of tatoeba and of the declaration of human rights, of every script in turn."""
    by_script: dict[str, list[str]] = {}
    with gzip.open(SHARED / "data/tatoeba/test.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [text for line in file for text in (json.loads(line)["source"],)]
    with gzip.open(SHARED / "data/text-udhr/all.jsonl.gz", "rt", encoding="utf-8") as file:
        texts += [text for line in file for text in json.loads(line)["text"].splitlines()]
    for text in texts:
        letter = next((sign for sign in text if unicodedata.category(sign)[0] == "L"), None)
        if letter is not None:
            by_script.setdefault(unicodedata.name(letter, "?").split()[0], []).append(text)
    assert len(by_script) >= scripts, Counter({name: len(some) for name, some in by_script.items()})
    pools = list(by_script.values())
    for pool in pools:
        random.Random(5).shuffle(pool)
    out: list[str] = []
    while len(out) < count:
        out += [pool.pop() for pool in pools if pool][: count - len(out)]
    return out


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A folder with XLM-R's sentencepiece file, made of its tokenizer.json, and that."""
    if not XLM_ROBERTA.is_file():
        pytest.skip("XLM-R's vocabulary file is not on this machine")
    state = json.loads(lzma.decompress(XLM_ROBERTA.read_bytes()))
    charsmap = base64.b64decode(state["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    pieces = [(name, score) for name, score in state["model"]["vocab"][4:-1]]
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / SENTENCEPIECE).write_bytes(model_file([*FIRST, *pieces], charsmap))
    return folder, state


def test_ids_equal_the_references_in_thirty_scripts(
    whole: tuple[Path, dict[str, object]],
) -> None:
    folder, state = whole
    ours = Tokenizer.from_folder(folder, "xlm-roberta", 250002)
    assert (ours.vocab_size, ours.mask_id, ours.kind) == (250002, 250001, "Unigram")
    lines = lines_of_many_scripts(5000, scripts=30)
    mine = ours.encode(lines)
    theirs = reference(folder, transformers.XLMRobertaTokenizer, XLMRobertaConverter)
    published = tokenizers.Tokenizer.from_str(json.dumps(state))
    # The published file keeps a space at the end, of which sentencepiece makes nothing.
    space = published.token_to_id("▁")
    plain = published.encode_batch([" ".join(line.split()) for line in lines])
    for line, row, wanted, other in zip(
        lines, mine, theirs(lines)["input_ids"], plain, strict=True
    ):
        assert isinstance(row, Tokens)
        assert row.ids.tolist() == wanted, line
        end = [ours.last_id]
        kept = other.ids[:-2] + end if other.ids[-2:] == [space, *end] else other.ids
        assert row.ids.tolist() == kept, line
    (pair,) = ours.encode(["Ein Satz."], ["她在家。"])
    assert isinstance(pair, Tokens)
    assert pair.ids.tolist() == theirs("Ein Satz.", "她在家。")["input_ids"]
    (masked,) = ours.encode(["Paris is the <mask> of France."])
    assert isinstance(masked, Tokens)
    assert masked.ids.tolist() == theirs("Paris is the <mask> of France.")["input_ids"]


@pytest.fixture(scope="session")
def camembert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("camembert")
    (folder / SENTENCEPIECE).write_bytes(model_file([*FIRST, *SMALL]))
    theirs = reference(folder, transformers.CamembertTokenizer, CamembertConverter)
    return Tokenizer.from_folder(folder, "camembert"), theirs


def test_camemberts_ids_stand_around_the_pieces(camembert: tuple[Tokenizer, Any]) -> None:
    ours, _ = camembert
    size = 4 + len(FIRST) + len(SMALL) + 1
    assert ours.vocab_size == size
    assert (ours.first_id, ours.pad_id, ours.last_id, ours.unk_id) == (5, 1, 6, 3)
    assert ours.mask_id == size - 1
    assert ours.pieces([0, 2, 4, 7]) == ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED", "▁")


SAID = ["the", " ", "chat", "é", "<mask>", "ß", "a", "\t", "</s>", "!"]


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.sampled_from(SAID)).map("".join))
def test_camemberts_ids_equal_the_references(camembert: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = camembert
    (row,) = ours.encode([text])
    assert isinstance(row, Tokens)
    assert row.ids.tolist() == theirs(text)["input_ids"]


def read(tmp_path: Path, data: bytes) -> Tokenizer:
    (tmp_path / SENTENCEPIECE).write_bytes(data)
    return Tokenizer.from_folder(tmp_path, "xlm-roberta")


def test_what_it_writes_it_reads_again(tmp_path: Path) -> None:
    first = read(tmp_path, model_file([*FIRST, *SMALL]))
    (tmp_path / "tokenizer.json").write_text(first.to_json(), "utf-8")
    again = Tokenizer.from_folder(tmp_path, "xlm-roberta")
    assert again.to_json() == first.to_json()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (model_file([*FIRST, *SMALL], trainer=varint(3 << 3) + varint(2)), "model_type 2; allowed"),
        (model_file(SMALL), "begins with the pieces '▁ ▁the ▁chat'; allowed: <unk> <s> </s>"),
        (
            model_file([*FIRST, *SMALL], normalizer=varint(3 << 3) + varint(0)),
            "add_dummy_prefix is false",
        ),
        (
            model_file([*FIRST, *SMALL]) + message(1, message(1, b"x") + varint(3 << 3) + b"\6"),
            "piece 'x' is of kind 6; allowed: normal, unknown, control",
        ),
        (model_file([*FIRST, *SMALL])[:-1], "damaged"),
        (b"\xff" * 40, "damaged"),
        (b"", "begins with the pieces ''"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(ModelError, match=f"{SENTENCEPIECE}: ") as caught:
        read(tmp_path, data)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_an_error_on_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(model_file([*FIRST, *SMALL]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    said = ""
    try:
        read(tmp_path_factory.mktemp("damaged"), cut)
    except ModelError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


def test_bert_may_have_xlm_rs_pieces(tmp_path: Path) -> None:
    # As multilingual-e5 and Multilingual-MiniLM do.
    (tmp_path / SENTENCEPIECE).write_bytes(model_file([*FIRST, *SMALL]))
    tokenizer = Tokenizer.from_folder(tmp_path, "bert")
    assert tokenizer.dialect.family == "xlm-roberta"
    (row,) = tokenizer.encode(["the <mask>"])
    assert isinstance(row, Tokens)
    assert row.ids.tolist() == [0, 5, tokenizer.mask_id, 2]
