"""Search in a file of vectors finds what comparing all rows in memory finds, with its text."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy

import enrobe
from enrobe.errors import CallError
from enrobe.tasks import vector_blocks
from enrobe.tasks.bulk import embed_files
from enrobe.tasks.search_file import search
from tests.support import reference
from tests.tasks.test_bulk import WORDS, lines

KINDS = [
    ("npy", "float32"),
    ("npy", "float16"),
    ("jsonl", "int8"),
    ("safetensors", "float32"),
    ("safetensors", "int8"),
    ("parquet", "float16"),
    ("parquet", "int8"),
]
QUERIES = ["the cat sat", "w3 w4 w5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "tiny"
    reference(out, "bert", None, seed=4)
    (out / "vocab.txt").write_text("\n".join(WORDS))
    return out


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_blocks, "_BLOCK", 16)


def expected(
    model: enrobe.Model, texts: list[str], top_k: int, **options: Any
) -> list[list[tuple[int, float]]]:
    scores = model.similarity(model.embed(QUERIES, **options), model.embed(texts, **options))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [[(int(n), float(row[n])) for n in o] for o, row in zip(order, scores, strict=True)]


@pytest.mark.parametrize(("kind", "precision"), KINDS)
def test_the_best_rows_are_found(kind: str, precision: Any, folder: Path, tmp_path: Path) -> None:
    path, output = lines(tmp_path / "in.txt", 75), tmp_path / f"out.{kind}"
    embed_files(path, output, model=folder, precision=precision, pool="max")
    texts = path.read_text().splitlines()
    found = search(output, QUERIES, top_k=7)
    wanted = expected(enrobe.load(folder), texts, 7, pool="max")
    for answer, query, hits in zip(found, QUERIES, wanted, strict=True):
        assert answer.query == query
        assert [hit.text for hit in answer.hits] == [texts[hit.row] for hit in answer.hits]
        assert all(hit.source == "in.txt" and hit.number == hit.row + 1 for hit in answer.hits)
        close = 1e-5 if precision == "float32" else 2e-2
        for hit, (_, score) in zip(answer.hits, hits, strict=True):
            assert abs(hit.score - score) < close
        if precision == "float32":
            assert [(hit.row) for hit in answer.hits] == [row for row, _ in hits]


def test_equal_rows_come_in_their_order(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the cat sat\n" * 40)
    embed_files(tmp_path / "in.txt", tmp_path / "out.npy", model=folder)
    (found,) = search(tmp_path / "out.npy", "the cat sat", top_k=20)
    assert [hit.row for hit in found.hits] == [*range(20)]
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert len(search(tmp_path / "out.npy", "x", top_k=1000)[0].hits) == 40
    assert json.dumps(found.to_dict())


def test_the_folder_says_how_to_compare(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "dot"
    shutil.copytree(folder, model)
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    kinds = ["models.Transformer", "models.Pooling"]
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": ["", "1_Pooling"][n],
            "type": f"sentence_transformers.{k}",
        }
        for n, k in enumerate(kinds)
    ]
    (model / "modules.json").write_text(json.dumps(modules))
    settings = {"similarity_fn_name": "dot", "prompts": {"q": "the cat "}}
    (model / "config_sentence_transformers.json").write_text(json.dumps(settings))
    path, output = lines(tmp_path / "in.txt", 30), tmp_path / "out.jsonl"
    embed_files(path, output, model=model)
    wanted = expected(enrobe.load(model), path.read_text().splitlines(), 3)
    for answer, hits in zip(search(output, QUERIES, top_k=3), wanted, strict=True):
        assert [hit.row for hit in answer.hits] == [row for row, _ in hits]
        assert answer.hits[0].score == pytest.approx(hits[0][1], rel=1e-5)
    # A prompt of its own for the queries.
    (plain,) = search(output, "the cat w9")
    (prompted,) = search(output, "w9", prompt="q")
    assert [h.row for h in prompted.hits] == [h.row for h in plain.hits]
    assert prompted.hits[0].score == pytest.approx(plain.hits[0].score, rel=1e-4)


@pytest.mark.parametrize("kind", ["npy", "jsonl", "safetensors", "parquet"])
def test_rows_with_an_error_are_not_found(kind: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    rows = [json.dumps({"text": f"w{n}"}) for n in range(20)]
    rows[0] = rows[17] = rows[18] = rows[19] = "{"
    path.write_text("\n".join(rows))
    for precision in ("float32", "int8"):
        if (kind, precision) == ("npy", "int8"):
            continue
        output = tmp_path / f"{precision}.{kind}"
        embed_files(path, output, model=folder, precision=precision)  # type: ignore[arg-type]
        (found,) = search(output, "w3", top_k=50)
        assert sorted(hit.row for hit in found.hits) == [*range(1, 17)]
        assert (found.hits[0].row, found.hits[0].text) == (3, "w3")


def test_texts_of_several_files(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for n, name in enumerate(("a.txt", "b.txt", "c.txt")):
        (data / name).write_text("".join(f"w{10 * n + m}\n" for m in range(n, 10)))
    (data / "bb.txt").write_text("")
    output = tmp_path / "vectors/out.npy"
    output.parent.mkdir()
    embed_files(data, output, model=folder)
    for query, source, number in [("w3", "a.txt", 4), ("w15", "b.txt", 5), ("w29", "c.txt", 8)]:
        (found,) = search(output, query, top_k=1)
        hit = found.hits[0]
        assert (hit.text, hit.source, hit.number) == (query, f"../data/{source}", number)
    # Moved together, they are still found, with the model, too.
    shutil.copytree(folder, tmp_path / "moved/model")
    for name in ("data", "vectors"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
    moved = tmp_path / "moved/vectors/out.npy"
    (found,) = search(moved, "w15", top_k=1, model=tmp_path / "moved/model")
    assert found.hits[0].text == "w15"
    # A file that changed has other texts; the others' are known.
    (data / "b.txt").write_text("w99\n" * 9)
    (found,) = search(output, "w15", top_k=1)
    assert found.hits[0].text is None and found.hits[0].source == "../data/b.txt"
    (found,) = search(output, "w29", top_k=1)
    assert found.hits[0].text == "w29"
    shutil.rmtree(data)
    assert search(output, "w29", top_k=1)[0].hits[0].text is None
    (found,) = search(output, "w29", top_k=1, texts=tmp_path / "moved/data")
    assert found.hits[0].text == "w29"


def test_files_of_others(folder: Path, tmp_path: Path) -> None:
    texts = [f"w{n}" for n in range(30)]
    vectors = enrobe.load(folder).embed(texts)
    np.save(tmp_path / "a.npy", vectors.astype(np.float64))
    safetensors.numpy.save_file({"vectors": vectors}, tmp_path / "a.safetensors")
    table = pyarrow.table(
        {"id": range(30), "vector": pyarrow.array([*vectors], pyarrow.list_(pyarrow.float32(), 56))}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    records = [json.dumps({"vector": row.tolist()}) + "\n" for row in vectors]
    (tmp_path / "a.jsonl").write_text("".join(records))
    (tmp_path / "t.csv").write_text("n,body\n" + "".join(f"{n},{t}\n" for n, t in enumerate(texts)))
    for kind in ("npy", "safetensors", "parquet", "jsonl"):
        path = tmp_path / f"a.{kind}"
        with pytest.raises(CallError, match=r"no a\.\w+\.json beside it.*--model"):
            search(path, "w7")
        (found,) = search(path, "w7", top_k=1, model=folder)
        assert (found.hits[0].row, found.hits[0].text) == (7, None)
        (found,) = search(
            path, "w7", top_k=1, model=folder, texts=tmp_path / "t.csv", column="body"
        )
        assert (found.hits[0].text, found.hits[0].number) == ("w7", 8 - 0)


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    path, output = lines(tmp_path / "in.txt", 5), tmp_path / "out.npy"
    embed_files(path, output, model=folder)
    other = tmp_path / "other"
    reference(other, "bert", None, seed=4, num_layers=2)
    (other / "vocab.txt").write_text("\n".join(WORDS))
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.zeros((3, 5), np.float32))
    mistakes: list[tuple[Path, Any, dict[str, Any], str]] = [
        (output, [], {}, "no query"),
        (output, "x", {"top_k": 0}, "top_k is 0"),
        (tmp_path / "none.npy", "x", {}, "no such file"),
        (path, "x", {}, "format"),
        (output, "x", {"model": other}, "another model"),
        (narrow, "x", {"model": folder}, "vectors of 5 numbers, and the model gives 56"),
        (output, "x", {"texts": tmp_path / "none.txt"}, "no such file"),
        (output, "x", {"prompt": "unknown"}, "prompt"),
    ]
    for file, query, options, message in mistakes:
        with pytest.raises(CallError, match=message):
            search(file, query, **options)
    for text in ("{}", '{"model": {}, "options": {}, "sources": []}', '{"model": 3}'):
        (tmp_path / "out.npy.json").write_text(text)
        with pytest.raises(CallError, match="damaged"):
            search(output, "x", model=folder)
