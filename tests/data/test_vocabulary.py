import gzip
import json
import lzma
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.data.vocabulary import LARGEST, SMALLEST, train_bpe, train_vocabulary
from enrobe.errors import CallError
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import SHARED

VALID = SHARED / "data/text-simplewiki/valid.txt.xz"
SEED = 5


def invented_lines(seed: int, words: int) -> list[str]:
    """Lines of invented words, each of which stands there twice: enough pairs for any size."""
    print("seed", seed)
    chance = random.Random(seed)
    parts = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "ä", "ei")]
    known = ["".join(chance.choices(parts, k=chance.randint(2, 5))) for _ in range(words)] * 2
    chance.shuffle(known)
    return [" ".join(known[i : i + 12]) for i in range(0, len(known), 12)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("text")
    lines = invented_lines(SEED, 9_000)
    half = len(lines) // 2
    (folder / "a.txt").write_text("\n".join(lines[:half]), "utf-8")
    records = [json.dumps({"text": line}) for line in lines[half:]]
    records += ['{"text": "half a pair \\ud800"}', '{"text": 5}', "{"]
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(records).encode()))
    (folder / "c.txt.xz").write_bytes(lzma.compress(b"not \xff UTF-8\n\n\n"))
    return [folder / "a.txt", folder / "b.jsonl.gz", folder / "c.txt.xz"]


@pytest.fixture(scope="module")
def folder(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary") / "new"
    train_vocabulary(folder, sources, size=SMALLEST, model_max_length=77)
    return folder


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder, "roberta")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> transformers.PreTrainedTokenizerBase:
    config = {"model_type": "roberta", "vocab_size": SMALLEST}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer: transformers.PreTrainedTokenizerBase
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    (folder / "config.json").unlink()
    return tokenizer


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    (tokens,) = tokenizer.encode([text])
    assert isinstance(tokens, Tokens)
    return [int(i) for i in tokens.ids]


def test_two_files_and_robertas_special_ids(folder: Path, ours: Tokenizer) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert [*folder.parent.iterdir()] == [folder]
    assert ours.vocab_size == SMALLEST
    assert (ours.first_id, ours.pad_id, ours.last_id, ours.unk_id) == (0, 1, 2, 3)
    assert ours.mask_id == SMALLEST - 1
    assert ours.special_ids.tolist() == [0, 1, 2, 3, SMALLEST - 1]
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(SMALLEST))


def test_transformers_reads_the_same_tokenizer(
    sources: list[Path], ours: Tokenizer, theirs: transformers.PreTrainedTokenizerBase
) -> None:
    assert type(theirs).__name__ == "RobertaTokenizer"
    assert theirs.model_max_length == 77
    assert len(theirs) == SMALLEST
    lines = sources[0].read_text("utf-8").split("\n")[:300]
    texts = ["", " ", "a <mask> b", "a<mask>.", "</s><s>", "two\n\nlines \n", "日本 é😀", *lines]
    for text in texts:
        assert ids(ours, text) == theirs(text)["input_ids"], text
    (pair,) = ours.encode(["one"], ["two"])
    assert isinstance(pair, Tokens)
    assert pair.ids.tolist() == theirs("one", "two")["input_ids"]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text_has_the_references_ids_and_comes_back(
    ours: Tokenizer, theirs: transformers.PreTrainedTokenizerBase, text: str
) -> None:
    assert ids(ours, text) == theirs(text)["input_ids"]
    (content,) = ours.contents([text], special=False)
    assert isinstance(content, Tokens)
    assert ours.decode(content.ids) == text


def test_the_mask_takes_the_space_before_it_and_offsets_leave_spaces_out(ours: Tokenizer) -> None:
    assert ids(ours, "of <mask>.") == ids(ours, "of<mask>.")
    (tokens,) = ours.contents(["ba da"])
    assert isinstance(tokens, Tokens)
    assert [("ba da"[a:b]) for a, b in tokens.spans] == ["ba", "da"]


def test_real_text_takes_fewer_tokens_than_half_its_letters(tmp_path: Path) -> None:
    if not VALID.is_file():
        pytest.skip("the real text is not on this machine")
    tokenizer = train_vocabulary(tmp_path / "new", [VALID], size=SMALLEST)
    text = lzma.decompress(VALID.read_bytes()).decode()[:50_000]
    (content,) = tokenizer.contents([text])
    assert isinstance(content, Tokens)
    assert len(content) < len(text) / 3
    assert tokenizer.decode(content.ids) == text


def test_the_same_files_give_the_same_bytes(
    folder: Path, sources: list[Path], tmp_path: Path
) -> None:
    code = f"""
from pathlib import Path
from enrobe.data.vocabulary import train_vocabulary
sources = [Path(name) for name in {[str(path) for path in sources]!r}]
train_vocabulary(Path({str(tmp_path / "new")!r}), sources, size={SMALLEST}, model_max_length=77)
"""
    # Other threads and other hashes than here.
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
    )
    for path in folder.iterdir():
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()


def test_memory_does_not_grow_with_the_text() -> None:
    line = " ".join(invented_lines(SEED, 40))

    def many() -> Iterator[str]:
        for number in range(10_000):
            yield f"{line} {number % 50}"

    tracemalloc.start()
    train_bpe(many(), 300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000 < 10_000 * len(line)


@pytest.mark.parametrize("size", [0, 261, SMALLEST - 1, LARGEST + 1])
def test_a_size_out_of_range(size: int, sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(CallError, match=f"allowed: {SMALLEST} to {LARGEST}"):
        train_vocabulary(tmp_path / "new", sources, size=size)


def test_errors_are_one_line_and_leave_nothing(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short for that\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    (tmp_path / "empty.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for name, target, message in (
        ("short.txt", "new", "more text"),
        ("empty.txt", "new", "more text"),
        ("short.txt", "full", "not empty"),
        ("none.txt", "new", "No such file"),
    ):
        with pytest.raises(CallError, match=message) as caught:
            train_vocabulary(tmp_path / target, [tmp_path / name], size=SMALLEST)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=8))
def test_any_texts_train_or_are_too_few(texts: list[str]) -> None:
    # 256 bytes and 5 special tokens need no merge.
    assert train_bpe(texts, 261).get_vocab_size() == 261
    assert train_bpe([*texts, "qqq qqq"], 262).get_vocab_size() == 262
    with pytest.raises(CallError):
        train_bpe(texts, 5_000)
