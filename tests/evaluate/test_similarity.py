"""Scored pairs and translations: against transformers, numpy and scipy, and by what must hold."""

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import enrobe
from enrobe.errors import CallError, TextError
from enrobe.evaluate.files import evaluate_file
from enrobe.evaluate.metrics import pearson, spearman
from enrobe.evaluate.similarity import evaluate_bitext, evaluate_sts, paired_similarity
from enrobe.tasks.pooling import similarity
from tests.support import SHARED
from tests.tasks.toys import WORDS, sentence_files, word_folder

ROOT = Path(__file__).parents[2]
PAIRS = Path(__file__).parent / "pairs.tsv"
MINILM = Path(os.environ.get("ENROBE_WEIGHTS", ROOT / ".cache/weights")) / "minilm"


def random_pairs(seed: int, count: int) -> list[tuple[str, str]]:
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, size=n % 9)) for n in range(2 * count)]
    return list(zip(texts[:count], texts[count:], strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    word_folder(out, "roberta", seed=5)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> enrobe.Model:
    return enrobe.load(folder)


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_pairs_one_by_one_are_the_diagonal_of_all_with_all(name: Any) -> None:
    vectors = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    pairs = np.array([[0, 1], [2, 2], [8, 3], [1, 0]])
    expected = np.diag(similarity(vectors[pairs[:, 0]], vectors[pairs[:, 1]], name))
    assert paired_similarity(vectors, pairs, name) == pytest.approx(expected, abs=1e-6)


def test_sts_is_the_correlation_of_the_similarity(model: enrobe.Model) -> None:
    pairs = random_pairs(2, 30)
    pairs[3] = pairs[4]
    scores = np.random.default_rng(3).integers(0, 6, 30)
    options: Any = {"pool": ("cls", "max"), "layers": (-1, 0)}
    report = evaluate_sts(model, pairs, scores, embedding=options, rounds=50)
    a, b = (model.embed([pair[side] for pair in pairs], **options) for side in (0, 1))
    alike = np.diag(similarity(a, b, "cosine"))
    assert report.spearman.value == pytest.approx(spearman(alike, scores).value, abs=1e-6)
    assert report.pearson.value == pytest.approx(pearson(alike, scores).value, abs=1e-6)
    assert (report.rows, report.skipped, report.error) == (30, 0, None)
    assert report.spearman.low <= report.spearman.value <= report.spearman.high
    assert report.to_dict()["spearman"]["rounds"] == 50


def test_the_similarity_is_the_one_that_the_folder_names(tmp_path: Path) -> None:
    word_folder(tmp_path, "bert", seed=5)
    named = {"similarity_fn_name": "euclidean"}
    sentence_files(tmp_path, {"pooling_mode_cls_token": True}, settings=named)
    model = enrobe.load(tmp_path)
    pairs = random_pairs(4, 12)
    report = evaluate_sts(model, pairs, range(12), rounds=5)
    assert report.similarity == "euclidean"
    a, b = (model.embed([pair[side] for pair in pairs]) for side in (0, 1))
    expected = spearman(-np.linalg.norm(a - b, axis=1), range(12))
    assert report.spearman.value == pytest.approx(expected.value, abs=1e-6)
    assert evaluate_bitext(model, pairs, rounds=5).similarity == "euclidean"


def test_bitext_by_all_with_all(model: enrobe.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(a, f"{b} w{n + 5}") for n, (a, b) in enumerate(random_pairs(6, 20))]
    pairs = [(f"{a} w{n + 6}", b) for n, (a, b) in enumerate(pairs)]
    a, b = (model.embed([pair[side] for pair in pairs]) for side in (0, 1))
    alike = similarity(a, b, "cosine")
    report = evaluate_bitext(model, pairs, rounds=5)
    for matrix, side in ((alike, "forward"), (alike.T, "backward")):
        places = (matrix > np.diag(matrix)[:, None]).sum(axis=1) + 1
        first, reciprocal = (
            getattr(report, f"{name}_{side}").value for name in ("accuracy", "reciprocal_rank")
        )
        assert first == pytest.approx((places == 1).mean())
        assert reciprocal == pytest.approx((1 / places).mean())
    monkeypatch.setattr("enrobe.evaluate.similarity._SCORES", 3 * 20)
    assert evaluate_bitext(model, pairs, rounds=5).to_dict() == report.to_dict()


def test_texts_that_stand_in_several_pairs(model: enrobe.Model) -> None:
    # Each text is its own translation, and so found; the third row says the same once more.
    pairs = [("w5 w6", "w5 w6"), ("w7", "w7"), ("w5 w6", "w5 w6"), ("w9", "w9")]
    report = evaluate_bitext(model, pairs, rounds=5)
    assert report.accuracy_forward.value == report.accuracy_backward.value == 1
    # Two right targets: the nearer one counts.
    report = evaluate_bitext(model, [("w5", "w5"), ("w5", "w8 w9"), ("w7", "w7")], rounds=5)
    assert report.accuracy_forward.value == 1
    assert report.accuracy_backward.value == pytest.approx(2 / 3, abs=0.34)


def test_a_text_that_cannot_be_read(model: enrobe.Model) -> None:
    pairs = [("w5", "w6"), ("w7", "\ud800"), ("w8", "w9"), ("w8 w8", "w10")]
    with pytest.raises(TextError, match="surrogate"):
        evaluate_sts(model, pairs, [1, 2, 3, 4])
    report = evaluate_sts(model, pairs, [1, 2, 3, 4], errors="collect", rounds=5)
    assert (report.rows, report.skipped) == (3, 1)
    assert report.error is not None and "surrogate" in report.error
    assert evaluate_bitext(model, pairs, errors="collect", rounds=5).rows == 3
    with pytest.raises(CallError, match="no pair can be read"):
        evaluate_sts(model, [("\ud800", "a")], [1], errors="collect")


def test_a_file_with_bad_rows(model: enrobe.Model, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b,y\nw5,w6,1\nw5,w7,high\nw5\nw8,w9,3\nw9 w9,w8,2\n")
    report = evaluate_file(model, path, task="sts", text=["a", "b"], label="y")
    assert (report.rows, report.skipped) == (3, 2)
    assert report.error == "row 3: 1 fields under a header of 3"
    bitext = evaluate_file(model, path, task="bitext", text=["a", "b"])
    assert (bitext.rows, bitext.skipped) == (4, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "stss", "text": ["a", "b"]}, "did you mean 'sts'"),
        ({"task": "sts", "text": ["a"], "label": "score"}, "two text columns, not 1"),
        ({"task": "sts", "text": ["a", "a"], "label": "score"}, "two text columns"),
        ({"task": "sts", "text": ["a", "b"]}, "fix: --label C"),
        ({"task": "sts", "text": ["a", "b"], "label": "a"}, "no row has a number"),
        ({"task": "bitext", "text": ["a", "b"], "label": "score"}, "leave out --label"),
        ({"task": "bitext", "text": ["a", "x"]}, "no column 'x'"),
    ],
)
def test_mistakes(model: enrobe.Model, options: Any, message: str) -> None:
    with pytest.raises(CallError) as caught:
        evaluate_file(model, PAIRS, **options)
    assert message in str(caught.value)


# --- real weights -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> enrobe.Model:
    if not MINILM.is_dir():
        pytest.skip("needs real weights; fix: python scripts/fetch_weights.py .cache/weights")
    return enrobe.load(MINILM)


def test_minilm_against_transformers(minilm: enrobe.Model) -> None:
    stats = pytest.importorskip("scipy.stats")
    with PAIRS.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    reference = transformers.AutoModel.from_pretrained(MINILM).eval()
    sides = []
    for name in ("a", "b"):
        texts = [row[name] for row in rows]
        block = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = reference(**block).last_hidden_state
        mask = block["attention_mask"][:, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        sides.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    alike = (sides[0] * sides[1]).sum(axis=1)
    scores = [float(row["score"]) for row in rows]
    report = evaluate_file(minilm, PAIRS, task="sts", text=["a", "b"], label="score")
    assert report.rows == len(rows) >= 60
    assert report.to_dict()["spearman"]["value"] == pytest.approx(
        stats.spearmanr(alike, scores).statistic, abs=1e-3
    )
    assert report.to_dict()["pearson"]["value"] == pytest.approx(
        stats.pearsonr(alike, scores).statistic, abs=1e-5
    )
    assert report.to_dict()["spearman"]["value"] > 0.9


def test_minilm_finds_translations_better_than_chance(minilm: enrobe.Model) -> None:
    path = SHARED / "data/tatoeba/test.jsonl.gz"
    if not path.is_file():
        pytest.skip("needs the Tatoeba pairs in shared/data; ENROBE_DATA names another place")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    pairs = [(r["source"], r["eng"]) for r in records if r["lang"] == "nld"][:100]
    report = evaluate_bitext(minilm, pairs, rounds=100)
    # By chance 0.01. It is a model of English, but the languages share words.
    assert report.accuracy_forward.low > 0.05
    assert report.reciprocal_rank_backward.value > report.accuracy_backward.value


# Sentences of seven scripts; the prompt is what the model was trained with.
HELLO = [
    "query: How much protein a day?",
    "query: 一天需要多少蛋白质？",
    "query: Сколько белка в день?",
]
HELLO += [
    "query: プロテインは一日にどれくらい？",
    "query: كم من البروتين في اليوم؟",
    "query: ",
    "query: ¿Qué?",
]


def test_e5_finds_translations_and_equals_transformers() -> None:
    folder = MINILM.parent / "e5-small"
    path = SHARED / "data/tatoeba/test.jsonl.gz"
    if not folder.is_dir() or not path.is_file():
        pytest.skip("needs real weights (scripts/fetch_weights.py) and the Tatoeba pairs")
    model = enrobe.load(folder)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    for language in ("deu", "cmn"):
        pairs = [(r["source"], r["eng"]) for r in records if r["lang"] == language][:200]
        report = evaluate_bitext(model, pairs, rounds=100, embedding={"prompt": "query"})
        assert report.accuracy_forward.value > 0.9 and report.accuracy_backward.value > 0.9
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    block = tokenizer(HELLO, padding=True, return_tensors="pt")
    block.pop("token_type_ids", None)
    with torch.inference_mode():
        hidden = reference(**block).last_hidden_state
    mask = block["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
    np.testing.assert_allclose(model.embed(HELLO, prompt=""), expected, atol=1e-5)
