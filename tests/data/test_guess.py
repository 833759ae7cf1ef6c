import json
from pathlib import Path
from typing import Any

import pytest

from enrobe.data.examples import TaskConfig, read_examples
from enrobe.data.guess import complete, guess_task
from enrobe.errors import CallError
from tests.support import SHARED


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def found(path: Path, **given: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    task = guess_task(path, **given).task
    return task.kind, task.text, task.label


# The first lines of GLUE's official files.
GLUE: list[tuple[str, str, str, tuple[str, ...], str, object]] = [
    (
        "CoLA",
        "gj04\t1\t\tOur friends won't buy this analysis.\ngj04\t0\t*\tThey drank the pub.",
        "classify",
        ("sentence",),
        "label",
        "1",
    ),
    (
        "SST-2",
        'sentence\tlabel\nhide new secretions \t0\n"x" y\t1',
        "classify",
        ("sentence",),
        "label",
        "0",
    ),
    (
        "MRPC",
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t702876\t702977\tAmrozi "x\t"Amrozi',
        "classify",
        ("#1 String", "#2 String"),
        "Quality",
        "1",
    ),
    (
        "QQP",
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n133273\t213221\t213222\tHow?\tWhy?\t0",
        "classify",
        ("question1", "question2"),
        "is_duplicate",
        "0",
    ),
    (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tAn air plane.\t5.000\n"
        "1\tmain-captions\tMSRvid\t2012test\t0004\tnone\tnone\tA man.\tA flute.\t3.800",
        "regress",
        ("sentence1", "sentence2"),
        "score",
        5.0,
    ),
    (
        "MNLI",
        "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
        "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT a)\t(ROOT b)\ta\tb\tneutral\tneutral",
        "classify",
        ("sentence1", "sentence2"),
        "gold_label",
        "neutral",
    ),
    (
        "QNLI",
        "index\tquestion\tsentence\tlabel\n0\tWhen?\tOn 9 May.\tentailment",
        "classify",
        ("question", "sentence"),
        "label",
        "entailment",
    ),
    (
        "RTE",
        "index\tsentence1\tsentence2\tlabel\n0\tNo weapons.\tWeapons.\tnot_entailment",
        "classify",
        ("sentence1", "sentence2"),
        "label",
        "not_entailment",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "kind", "text", "label", "first"), GLUE, ids=lambda v: str(v)[:8]
)
def test_glue(
    name: str,
    content: str,
    kind: str,
    text: tuple[str, ...],
    label: str,
    first: object,
    tmp_path: Path,
) -> None:
    path = tmp_path / "train.tsv"
    path.write_text(content + "\n")
    guess = guess_task(path)
    assert (guess.task.kind, guess.task.text, guess.task.label) == (kind, text, (label,))
    rows = read_examples(guess.task, guess.task.train)
    assert rows[0].label == first and not rows.bad


def test_what_was_found_is_said(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", [{"sentence": "a", "label": 1}, {"sentence": "b", "label": 0}]
    )
    assert guess_task(path).said == (
        f"{path}: read as kind classify, text 'sentence', label 'label'",
    )
    assert guess_task(path, kind="classify", text=("sentence",), label=("label",)).said == ()
    task = TaskConfig(kind="classify", train=(path,), weight=3.0, dev_share=0.2)
    guess = complete(task)
    assert guess.task.weight == 3.0 and guess.task.dev_share == 0.2
    assert guess.task.text == ("sentence",) and guess.task.label == ("label",)


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], "classify"),
        ([{"text": "a", "label": n % 5} for n in range(20)], "classify"),
        ([{"text": "a", "label": True}, {"text": "b", "label": False}], "classify"),
        ([{"text": "a", "label": 0.5}, {"text": "b", "label": 2}], "regress"),
        ([{"text": "a", "label": ["x"]}, {"text": "b", "label": []}], "multilabel"),
        ([{"tokens": ["a", "b"], "label": ["O", "O"]}], "tag"),
        ([{"tokens": ["a", "b"], "label": [0, 3]}], "tag"),
        ([{"text": "a b", "label": "O B-x"}, {"text": "a", "label": "O"}], "tag"),
        ([{"text": "a b", "label": [{"start": 0, "end": 1, "label": "x"}]}], "tag"),
        ([{"text": "a b", "label": [[0, 1, "x"]]}, {"text": "c", "label": []}], "tag"),
    ],
)
def test_the_kind_by_what_the_label_holds(
    rows: list[dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    assert found(write(tmp_path / "a.jsonl", rows))[0] == kind


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (
            [{"body": "a", "title2": "b", "label": 1}],
            {},
            r"which column is the text\? it has: 'body' \(text\).*fix: --text body or "
            r'--text title2 \(in a recipe: text = "body"\)',
        ),
        (
            [{"text": "a", "slots": ["x"], "label": "y"}],
            {},
            r"which column is the label\?.*fix: --label slots or --label label",
        ),
        ([{"text": "a", "n": {"a": 1}, "m": {"b": 1}}], {"kind": "classify"}, "--label COLUMN"),
        (
            [{"text": "a", "label": n} for n in (1, 5)],
            {},
            "label 'label' holds whole numbers from 1 to 5; fix: --kind classify, or",
        ),
        (
            [{"text": "a", "label": f"free text {n}"} for n in range(30)],
            {},
            "holds 30 different texts; fix: --kind",
        ),
        ([{"text": "a", "label": 1}], {"label": ("labels",)}, "did you mean 'label'"),
        ([{"text": "a", "label": 1}], {"text": ("txt",)}, "did you mean 'text'"),
        (
            [{"premise": "a", "hypothesis": "b", "text": "c", "label": 1}],
            {},
            "--text premise,hypothesis",
        ),
    ],
)
def test_doubt(
    rows: list[dict[str, Any]], given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CallError, match=message) as caught:
        guess_task(write(tmp_path / "a.jsonl", rows), **given)
    assert "\n" not in str(caught.value)


def test_what_is_given_ends_the_doubt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"tokens": ["a"], "slots": ["O"], "label": "y"}] * 2)
    assert found(path, kind="tag") == ("tag", ("tokens",), ("slots",))
    assert found(path, kind="classify") == ("classify", ("tokens",), ("label",))
    assert found(path, label=("slots",)) == ("tag", ("tokens",), ("slots",))
    path = write(tmp_path / "b.jsonl", [{"text": "a", "stars": 1}, {"text": "a", "stars": 5}])
    assert found(path, kind="regress") == ("regress", ("text",), ("stars",))


def test_columns_by_elimination(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,review,sentiment\n1,good,pos\n2,bad,neg\n3,so so,pos\n")
    with pytest.raises(CallError, match="which column is the text"):
        guess_task(tmp_path / "a.csv")
    assert found(tmp_path / "a.csv", label=("sentiment",)) == (
        "classify",
        ("review",),
        ("sentiment",),
    )
    assert found(tmp_path / "a.csv", text=("review",)) == ("classify", ("review",), ("sentiment",))


def test_a_bad_row_changes_nothing(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"t {n}", "label": n % 2} for n in range(40)]
    rows += [{"text": 5, "label": 1}, {"text": "a", "label": "?"}, {"txt": "b"}]
    assert found(write(tmp_path / "a.jsonl", rows)) == ("classify", ("text",), ("label",))
    rows = [{"text": ["a", "b"], "label": ["O", "B-x"]}] * 20 + [{"text": ["a"], "label": []}]
    assert found(write(tmp_path / "b.jsonl", rows)) == ("tag", ("text",), ("label",))


def test_a_file_with_nothing_but_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert found(tmp_path / "a.txt") == ("classify", ("text",), ())
    assert "no label" in guess_task(tmp_path / "a.txt").said[0]


def test_conll_of_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "eng.conll"
    path.write_text("EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n")
    with pytest.raises(CallError, match=r"which column is the label.*column2.*column4"):
        guess_task(path)
    assert found(path, label=("column4",)) == ("tag", ("tokens",), ("column4",))
    path.write_text("EU O\n")
    assert found(path) == ("tag", ("tokens",), ("tags",))


def test_squad(tmp_path: Path) -> None:
    item = {"context": "c", "qas": [{"id": "1", "question": "q", "answers": []}]}
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": [item]}]}))
    assert found(tmp_path / "a.json") == ("answer", ("question", "context"), ("answers",))


def test_no_file_and_no_row(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="no file is named"):
        guess_task(())
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(CallError, match="no row can be read"):
        guess_task(tmp_path / "a.csv")


REAL = [
    ("mr/train.jsonl.gz", "classify", ("sentence",), ("label",)),
    ("banking77/train.jsonl.gz", "classify", ("text",), ("label",)),
    ("movie_reviews/train.jsonl.gz", "classify", ("text",), ("label",)),
    ("mnli_dev/all.jsonl.gz", "classify", ("premise", "hypothesis"), ("label",)),
    ("pawsx/de.dev.jsonl.gz", "classify", ("sentence1", "sentence2"), ("label",)),
    ("wnut17/train.conll.gz", "tag", ("tokens",), ("tags",)),
    ("ud_english_ewt/dev.conll", "tag", ("tokens",), ("tags",)),
    ("tydiqa_goldp/en.train.jsonl.gz", "answer", ("question", "context"), ("answers",)),
    ("squad2_dev_half/all.jsonl.gz", "answer", ("question", "context"), ("answers",)),
]


@pytest.mark.parametrize(("name", "kind", "text", "label"), REAL)
def test_real_files(name: str, kind: str, text: tuple[str, ...], label: tuple[str, ...]) -> None:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the real data is not on this machine ({path.name})")
    assert found(path) == (kind, text, label)
