import errno
import gzip
import io
import json
import lzma
import os
import random
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.data import corpus as corpus_module
from enrobe.data.corpus import Corpus, SourceInfo, build, fingerprint
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, EnrobeError
from enrobe.text.tokenizer import Tokenizer
from enrobe.text.tokens import Tokens
from tests.support import SHARED, random_documents, toy_tokenizer, write_txt

XLM_ROBERTA = SHARED / "tokenizers/xlm-roberta/tokenizer.json.xz"


def texts(corpus: Corpus, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(corpus.document(i).astype(np.int64)) for i in range(corpus.documents)]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder and what it holds; folders have a slash."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"/"
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return toy_tokenizer()


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it has written; only a power cut would."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


# --- documents come back --------------------------------------------------------------------------


@pytest.mark.parametrize("pack", ["", ".gz", ".xz"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_documents_come_back_exactly(kind: str, pack: str, toy: Tokenizer, tmp_path: Path) -> None:
    documents = random_documents(1, 30)
    if kind == "txt":
        data = "\n\n".join(documents).encode()
    else:
        data = "\n".join(json.dumps({"text": text, "n": 1}) for text in documents).encode()
    path = tmp_path / f"a.{kind}{pack}"
    packers: dict[str, Callable[[bytes], bytes]]
    packers = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}
    path.write_bytes(packers[pack](data))
    corpus = build(tmp_path / "corpus", [path], toy)
    assert texts(corpus, toy) == documents
    for i, text in enumerate(documents):
        (tokens,) = toy.contents([text], special=False)
        assert isinstance(tokens, Tokens)
        assert corpus.document(i).tolist() == tokens.ids.tolist()
    assert corpus.tokens == sum(len(corpus.document(i)) for i in range(corpus.documents))
    assert not np.isin(corpus.shards[0].tokens, toy.special_ids).any()


LINES = st.text(
    st.characters(codec="utf-8", exclude_characters="\n\r\ufeff"), min_size=1, max_size=20
).filter(lambda line: bool(line.strip()))
DOCUMENTS = st.lists(st.lists(LINES, min_size=1, max_size=4).map("\n".join), max_size=6)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(files=st.lists(DOCUMENTS, min_size=1, max_size=3), chunk=st.integers(1, 30))
def test_any_documents_come_back_exactly(
    files: list[list[str]],
    chunk: int,
    toy: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corpus_module, "_CHUNK", chunk)
    shutil.rmtree(tmp_path / "corpus", ignore_errors=True)
    sources = [write_txt(tmp_path / f"{i}.txt", file) for i, file in enumerate(files)]
    corpus = build(tmp_path / "corpus", sources, toy)
    assert texts(corpus, toy) == [text for file in files for text in file]
    assert [info.documents for info in corpus.sources] == [len(file) for file in files]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n\n \n\t\n", []),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\ntwo\n\nthree", ["one\ntwo", "three"]),
        (b"one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        (b"\n\n\none\n\n\n \n\ntwo\n\n", ["one", "two"]),
        (b"\xef\xbb\xbfone", ["one"]),
        (b" one \n two \n\n", [" one \n two "]),
        (b"a\x00b\n\x0c c", ["a\x00b\n\x0c c"]),
    ],
)
def test_blank_lines_and_line_ends(
    data: bytes, expected: list[str], toy: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    corpus = build(tmp_path / "corpus", [tmp_path / "a.txt"], toy)
    assert texts(corpus, toy) == expected
    assert corpus.sources[0].bytes == len(data)


def test_empty_records_are_no_documents(toy: Tokenizer, tmp_path: Path) -> None:
    records = ["", "a\n\nb\n", " \n ", "\n", "\nc"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in records))
    corpus = build(tmp_path / "corpus", [tmp_path / "a.jsonl"], toy)
    assert texts(corpus, toy) == ["a\n\nb\n", "\nc"]


# --- cut for the tokenizer, and whole again ----------------------------------------------------


def word_pieces(folder: Path, count: int = 40) -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "x", ".", "p"]
    words += [str(number) for number in range(count)]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    return Tokenizer.from_folder(folder, "bert")


def prefix_space() -> Tokenizer:
    state = json.loads(toy_tokenizer().to_json())
    for part in ("pre_tokenizer", "post_processor"):
        state[part]["add_prefix_space"] = True
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    return Tokenizer(backend, DIALECTS["roberta"])


@pytest.mark.parametrize(
    "kind", ["toy", "bert", "prefix", pytest.param("xlm-roberta", marks=pytest.mark.slow)]
)
def test_a_document_cut_anywhere_has_the_tokens_of_the_whole(
    kind: str, toy: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "xlm-roberta":
        if not XLM_ROBERTA.is_file():
            pytest.skip("XLM-R's vocabulary file is not on this machine")
        (tmp_path / "tokenizer.json").write_bytes(lzma.decompress(XLM_ROBERTA.read_bytes()))
        tokenizer = Tokenizer.from_folder(tmp_path, "xlm-roberta")
    else:
        tokenizer = {"toy": toy, "bert": word_pieces(tmp_path / "w"), "prefix": prefix_space()}[
            kind
        ]
    chance = random.Random(3)
    signs = ["a", "the", " ", "  ", "\n", "\n\n", "\n", "\t", "7", ".", "é", "'s", "<mask>", "\x1c"]
    documents = ["x" + "".join(chance.choices(signs, k=150)) for _ in range(40)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    monkeypatch.setattr(corpus_module, "_CHUNK", 5)
    corpus = build(tmp_path / "corpus", [path], tokenizer)
    wholes = tokenizer.contents(documents, special=False)
    for i, whole in enumerate(wholes):
        assert isinstance(whole, Tokens)
        assert corpus.document(i).tolist() == whole.ids.tolist(), documents[i]


def test_memory_does_not_grow_with_one_huge_document(toy: Tokenizer, tmp_path: Path) -> None:
    peaks = []
    for lines in (1_000, 8_000):
        path = tmp_path / f"{lines}.txt"
        path.write_text("the cat on the mat\n" * lines)
        tracemalloc.start()
        corpus = build(tmp_path / f"corpus{lines}", [path], toy)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert corpus.documents == 1
        assert corpus.document(0)[-1] == corpus.shards[0].tokens[-1]
    assert peaks[1] < 1.2 * peaks[0], peaks


def test_wide_vocabularies_take_four_bytes(toy: Tokenizer, tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", ["the 65530 cat", "65599"])
    narrow = build(tmp_path / "narrow", [path], toy)
    assert narrow.shards[0].tokens.dtype == np.uint16
    wide = build(tmp_path / "wide", [path], word_pieces(tmp_path / "w", 65_600))
    assert wide.shards[0].tokens.dtype == np.uint32
    assert wide.document(0).tolist() == [5, 65_541, 6]
    assert wide.document(1).tolist() == [65_610]


def test_a_document_is_a_view_that_cannot_be_written(toy: Tokenizer, tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", ["one", "two"])
    corpus = build(tmp_path / "corpus", [path], toy)
    document = corpus.document(1)
    assert np.shares_memory(document, corpus.shards[0].tokens)
    with pytest.raises(ValueError, match="read-only"):
        document[0] = 1
    for index in (-1, 2):
        with pytest.raises(IndexError):
            corpus.document(index)


def test_documents_that_cannot_be_read_are_counted(
    toy: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "_CHUNK", 4)
    # The second one goes wrong after a part of it was written.
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo two\ntwo two\n\xff\nmore\n\nthree\n\n\xfe")
    (tmp_path / "b.jsonl").write_text(
        '{"text": "one"}\n{"text": "long\\nlong\\n\\ud800"}\n{"other": "x"}\n{\n{"text": "two"}'
    )
    sources = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    seen: list[SourceInfo] = []
    corpus = build(tmp_path / "corpus", sources, toy, done=seen.append)
    assert texts(corpus, toy) == ["one", "three", "one", "two"]
    assert [info.unreadable for info in corpus.sources] == [2, 3]
    assert "not UTF-8" in str(corpus.sources[0].reason)
    assert "surrogate" in str(corpus.sources[1].reason)
    assert seen == list(corpus.sources)


# --- workers, kills, resumption ----------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("many")
    files = [random_documents(seed, 120) for seed in range(7)]
    return [write_txt(folder / f"{i}.txt", documents) for i, documents in enumerate(files)]


@pytest.fixture(scope="module")
def undisturbed(many: list[Path], toy: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "corpus"
    build(folder, many, toy)
    return folder


def test_killed_in_the_middle_and_resumed_it_is_the_same_byte_for_byte(
    many: list[Path], undisturbed: Path, toy: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(toy.to_json())
    folder = tmp_path / "corpus"
    code = f"""
import os, signal
from pathlib import Path
from enrobe.data.corpus import build
from enrobe.text.tokenizer import Tokenizer
tokenizer = Tokenizer.from_folder(Path({str(tmp_path)!r}), "roberta")
sources = [Path(name) for name in {[str(path) for path in many]!r}]
kill = lambda info: os.kill(os.getpid(), signal.SIGKILL)
build(Path({str(folder)!r}), sources, tokenizer, workers=2, done=kill)
"""
    # The pipe closes when the workers end, too: they must not outlive the build that they are of.
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "manifest.json").exists()
    with pytest.raises(CallError, match=r"no manifest\.json"):
        Corpus(folder, toy)
    complete = sorted(folder.glob("[0-9]*"))
    print(len(complete), "shards and", len([*folder.glob(".*")]), "parts were left")
    assert 0 < len(complete) < len(many)
    before = [path.stat().st_ino for path in complete]
    build(folder, many, toy)
    assert tree(folder) == tree(undisturbed)
    assert [path.stat().st_ino for path in complete] == before, "a complete shard was made again"


def test_two_workers_make_what_one_makes(
    many: list[Path], undisturbed: Path, toy: Tokenizer, tmp_path: Path
) -> None:
    build(tmp_path / "corpus", many, toy, workers=2)
    assert tree(tmp_path / "corpus") == tree(undisturbed)


def test_an_error_in_a_worker_is_the_callers_and_what_is_complete_stays(
    many: list[Path], undisturbed: Path, toy: Tokenizer, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.txt.xz"
    bad.write_bytes(lzma.compress(os.urandom(5_000))[:-50])
    with pytest.raises(CallError, match=r"bad\.txt\.xz: damaged") as caught:
        build(tmp_path / "corpus", [many[0], bad], toy, workers=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus/00001").exists()
    build(tmp_path / "corpus", many, toy)
    assert tree(tmp_path / "corpus") == tree(undisturbed)


def test_before_the_end_a_changed_source_or_tokenizer_is_simply_redone(
    toy: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    a, b = (write_txt(tmp_path / name, ["the cat"]) for name in ("a.txt", "b.txt"))
    build(folder, [a, b], toy)
    (folder / "manifest.json").unlink()
    write_txt(b, ["another"])
    assert texts(build(folder, [a, b], toy), toy) == ["the cat", "another"]
    (folder / "manifest.json").unlink()
    other = toy_tokenizer(270)
    # Fewer sources, too: the shard that nobody names goes.
    assert texts(build(folder, [b], other), other) == ["another"]
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "manifest.json"]


# --- what is wrong is said on one line ---------------------------------------------------------


@pytest.fixture
def finished(toy: Tokenizer, tmp_path: Path) -> Path:
    sources = [write_txt(tmp_path / f"{i}.txt", [f"the cat {i}", "sat"]) for i in range(3)]
    build(tmp_path / "corpus", sources, toy)
    return tmp_path / "corpus"


def refused(folder: Path, tokenizer: Tokenizer, *words: str) -> None:
    with pytest.raises(EnrobeError) as caught:
        Corpus(folder, tokenizer)
    assert "\n" not in str(caught.value)
    for word in (str(folder), *words):
        assert word in str(caught.value), caught.value


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_opening_says_what_is_wrong(finished: Path, toy: Tokenizer, tmp_path: Path) -> None:
    manifest = finished / "manifest.json"
    good = manifest.read_text()
    refused(tmp_path / "nothing", toy, "no manifest.json")
    refused(finished, toy_tokenizer(270), "another tokenizer", "fix")
    for name in ("tokens.bin", "ends.bin"):
        path = finished / "00001" / name
        data = path.read_bytes()
        path.write_bytes(data[:-2])
        refused(finished, toy, f"00001/{name}", "bytes", "fix")
        path.unlink()
        refused(finished, toy, f"00001/{name}", "missing", "1.txt", "fix")
        path.write_bytes(data)
    (finished / "00001/ends.bin").write_bytes(bytes(16))
    refused(finished, toy, "damaged")
    for text in ("", "[]", "{", good[:-40]):
        manifest.write_text(text)
        refused(finished, toy)
    first = json.loads(good)["sources"][0]
    changes: list[dict[str, Any]] = [
        {"format": 2},
        {"format": None},
        {"dtype": "int8"},
        {"sources": None},
        {"sources": [{}]},
        {"sources": [5]},
        {"sources": [{**first, "more": 1}]},
        {"sources": [{**first, "tokens": "x"}]},
        {"sources": [{**first, "files": None}]},
    ]
    for change in changes:
        manifest.write_text(good)
        edit(manifest, **change)
        refused(finished, toy, "manifest.json" if "format" in change else "")


def test_deleting_the_manifest_makes_only_what_is_missing(
    finished: Path, toy: Tokenizer, tmp_path: Path
) -> None:
    sources = [tmp_path / f"{i}.txt" for i in range(3)]
    before, kept = tree(finished), (finished / "00002").stat().st_ino
    shutil.rmtree(finished / "00000")
    (finished / "00001/tokens.bin").write_bytes(b"")
    refused(finished, toy, "missing", "fix: delete manifest.json there and build again")
    (finished / "manifest.json").unlink()
    build(finished, sources, toy)
    assert tree(finished) == before
    assert (finished / "00002").stat().st_ino == kept


def test_a_finished_corpus_never_changes(finished: Path, toy: Tokenizer, tmp_path: Path) -> None:
    sources = [tmp_path / f"{i}.txt" for i in range(3)]
    before = tree(finished)
    assert build(finished, sources, toy).documents == 6
    for wrong in (sources[:2], sources[::-1], [*sources, sources[0]]):
        with pytest.raises(CallError, match="built from other files"):
            build(finished, wrong, toy)
    with pytest.raises(CallError, match="another tokenizer"):
        build(finished, sources, toy_tokenizer(270))
    # As long as before, so that the size alone does not tell.
    write_txt(sources[1], ["the dog 1", "sat"])
    with pytest.raises(CallError, match=r"1\.txt: changed since .*; fix: ") as caught:
        build(finished, sources, toy)
    assert "\n" not in str(caught.value)
    assert tree(finished) == before


def test_a_full_disk_is_one_line_and_nothing_half_written_is_seen(
    many: list[Path],
    undisturbed: Path,
    toy: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 20_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    real = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        if path.parent.name.startswith(".00002"):
            return io.BufferedWriter(Full(path, "wb"))
        return real(path, mode, **options)

    folder = tmp_path / "corpus"
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CallError, match="No space left on device") as caught:
        build(folder, many, toy)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["00000", "00001"]
    monkeypatch.undo()
    build(folder, many, toy)
    assert tree(folder) == tree(undisturbed)


def test_a_manifest_that_cannot_be_written(
    toy: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = write_txt(tmp_path / "a.txt", ["one"])
    build(tmp_path / "corpus", [path], toy)
    (tmp_path / "corpus/manifest.json").unlink()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CallError, match="No space left on device"):
        build(tmp_path / "corpus", [path], toy)
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["00000"]


def test_calls_that_cannot_work(toy: Tokenizer, tmp_path: Path) -> None:
    path = write_txt(tmp_path / "a.txt", ["one"])
    (tmp_path / "a.doc").write_text("x")
    for sources, folder, message in (
        ([], "corpus", "at least one file"),
        ([tmp_path / "none.txt"], "corpus", "no such file"),
        ([tmp_path], "corpus", "no such file"),
        ([tmp_path / "a.doc"], "corpus", "allowed: txt"),
        ([path], ".", "holds 'a.doc'"),
        ([path], "a.txt", "cannot be written"),
    ):
        with pytest.raises(CallError, match=message):
            build(tmp_path / folder, sources, toy)
    assert path.read_text() == "one"


def test_the_fingerprint_is_of_the_ids(toy: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(toy.to_json())
    assert fingerprint(Tokenizer.from_folder(tmp_path, "roberta")) == fingerprint(toy)
    assert fingerprint(toy_tokenizer(270)) != fingerprint(toy)
