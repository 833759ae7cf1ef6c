import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from enrobe.data.examples import BadRow, Example, TaskConfig, each_example, read_examples
from enrobe.data.labels import CharSpan, GoldAnswer
from enrobe.errors import CallError
from enrobe.train.recipe import as_values, make, read_recipe
from tests.support import SHARED


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def read(path: Path, kind: Any, text: Any = "text", label: Any = "label", **options: Any) -> Any:
    labels = options.pop("known", ())
    task = TaskConfig(kind=kind, train=path, text=text, label=label, **options)
    return read_examples(task, task.train, labels=labels)


# --- the configuration ----------------------------------------------------------------------------


def test_one_string_may_stand_for_a_tuple() -> None:
    task = TaskConfig(kind="classify", train="a.csv", text="body", label="stars", dev=["b.csv"])  # type: ignore[arg-type]
    assert task.train == (Path("a.csv"),) and task.dev == (Path("b.csv"),)
    assert task.text == ("body",) and task.label == ("stars",)
    assert replace(task, weight=2.0).train == task.train


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "clasify"}, "did you mean 'classify'"),
        ({"kind": "tag", "text": ("a", "b")}, "text names 2 columns; a tag task has 1"),
        ({"kind": "classify", "text": ("a", "b", "c")}, "text names 3 columns"),
        ({"kind": "classify", "label": ("a", "b")}, "allowed for kind multilabel"),
        ({"kind": "answer", "text": ("a",)}, "question and context"),
        ({"kind": "regress", "labels": ("a",)}, "a regress task has none"),
        ({"kind": "classify", "labels": ("a", "a")}, "stands there twice"),
        ({"kind": "classify", "separator": ""}, "separator"),
        ({"kind": "classify", "dev_share": 1.0}, "dev_share is 1.0"),
        ({"kind": "classify", "weight": 0}, "weight is 0"),
    ],
)
def test_what_is_not_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError, match=message):
        TaskConfig(train=Path("a.csv"), **values)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    tasks: dict[str, TaskConfig]


def test_a_recipe_has_tasks(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        '[tasks.nli]\nkind = "classify"\ntrain = ["a.jsonl", "/b.jsonl"]\ndev = "c.jsonl"\n'
        'text = ["premise", "hypothesis"]\nlabel = "label"\nweight = 2\n'
        '[tasks.slots]\nkind = "tag"\ntrain = "a.conll"\n'
    )
    tasks = read_recipe(path, Recipe).tasks
    assert tasks["nli"].train == (tmp_path / "a.jsonl", Path("/b.jsonl"))
    assert tasks["nli"].dev == (tmp_path / "c.jsonl",)
    assert tasks["nli"].text == ("premise", "hypothesis")
    assert tasks["nli"].label == ("label",)
    assert tasks["nli"].weight == 2.0
    assert tasks["slots"].text == tasks["slots"].dev == ()
    # What a run writes down is read again as the same.
    assert make(Recipe, as_values(Recipe(tasks=tasks))) == Recipe(tasks=tasks)
    for line, message in (
        ('lable = "x"', "unknown key tasks.t.lable; did you mean 'label'"),
        ("text = 5", "tasks.t.text is 5"),
        ("train = [1]", r"tasks.t.train\[0\] is 1"),
        ('kind = "tags"', "tasks.t.kind is 'tags'; allowed: 'classify', 'multilabel'"),
    ):
        start = {"kind": 'kind = "tag"\n', "train": 'train = "a"\n'}
        rest = "".join(text for name, text in start.items() if not line.startswith(name))
        path.write_text(f"[tasks.t]\n{rest}{line}\n")
        with pytest.raises(CallError, match=message):
            read_recipe(path, Recipe)


# --- the kinds ------------------------------------------------------------------------------------


def test_classify(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        [
            {"text": "one", "label": 1, "id": 7},
            {"text": "two", "label": "0"},
            {"text": ["three", "words"], "label": 1.0},
            {"text": "four"},
            {"text": "five", "label": None},
        ],
    )
    found = read(path, "classify")
    assert [row.label for row in found] == ["1", "0", "1", None, None]
    assert found.labels == ("0", "1")
    assert found[0] == Example(number=1, text="one", label="1", id="7")
    assert found[2].words == ("three", "words") and found[2].text == "three words"
    assert len(found) == 5 and not found.bad and not found.said


def test_ints_in_one_file_and_strings_in_another(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1.0\nb,0.0\n")
    jsonl(tmp_path / "b.jsonl", [{"text": "c", "label": 1}, {"text": "d", "label": "0"}])
    task = TaskConfig(
        kind="classify",
        train=(tmp_path / "a.csv", tmp_path / "b.jsonl"),
        text=("text",),
        label=("label",),
    )
    found = read_examples(task, task.train)
    assert [row.label for row in found] == ["1", "0", "1", "0"]
    assert [row.file for row in found] == [0, 0, 1, 1]
    assert found.labels == ("0", "1")
    assert "labels of one number are one: 0.0 is 0, 1.0 is 1" in found.said
    dev = read_examples(task, task.train[:1], labels=found.labels)
    assert [row.label for row in dev] == ["1", "0"] and not dev.unseen


def test_multilabel(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\none,"b, a"\ntwo,\nthree,b\n')
    found = read(tmp_path / "a.csv", "multilabel")
    assert [row.label for row in found] == [("a", "b"), (), ("b",)]
    assert found.labels == ("a", "b")
    (tmp_path / "b.csv").write_text("text,toxic,rude\none,1,0\ntwo,0,0\nthree,-1,-1\nfour,1,x\n")
    columns = ("toxic", "rude")
    found = read(tmp_path / "b.csv", "multilabel", label=columns, missing="-1")
    assert [row.label for row in found] == [("toxic",), (), None]
    assert found.labels == columns
    assert found.bad == (BadRow(0, 4, "row 4: column 'rude' is 'x'; allowed: 0 or 1"),)


def test_regress(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t5.000\nc\td\t\ne\tf\tx\n")
    found = read(tmp_path / "a.tsv", "regress", ("sentence1", "sentence2"), "score")
    assert [(row.text, row.pair, row.label) for row in found] == [("a", "b", 5.0), ("c", "d", None)]
    assert found.labels == ()
    assert found.bad == (BadRow(0, 3, "row 3: label 'x'; allowed: a number"),)


def test_tags(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("EU B-ORG\nrejects O\n\nPeter B-PER\n")
    found = read(tmp_path / "a.conll", "tag", "tokens", "tags")
    assert found[0].words == ("EU", "rejects") and found[0].text == "EU rejects"
    assert found[0].label == ("B-ORG", "O")
    assert found.labels == ("O", "B-ORG", "B-PER")
    rows = [
        {"text": "in New York", "label": [{"start": 3, "end": 11, "label": "LOC"}]},
        {"text": "nowhere", "label": []},
        {"text": "no label"},
        {"text": "short", "label": [[0, 99, "LOC"]]},
    ]
    found = read(jsonl(tmp_path / "b.jsonl", rows), "tag")
    assert [row.label for row in found] == [(CharSpan(3, 11, "LOC"),), (), None]
    assert all(row.words is None for row in found)
    assert found.labels == ("O", "B-LOC", "I-LOC")
    assert len(found.bad) == 1
    (tmp_path / "c.csv").write_text("text,label\na b c,O B-x O\na b,O\n")
    found = read(tmp_path / "c.csv", "tag")
    assert found[0].words == ("a", "b", "c") and found[0].label == ("O", "B-x", "O")
    assert "2 words and 1 tags" in found.bad[0].error


def test_answers(tmp_path: Path) -> None:
    context = "The Normans came to France. In France they stayed."
    rows = [
        {"question": "q1", "context": context, "answers": [{"text": "came", "answer_start": 12}]},
        {"question": "q2", "context": context, "answers": []},
        {"question": "q3", "context": context, "answers": [{"text": "Normans", "answer_start": 5}]},
        {"question": "q4", "context": context, "answers": [{"text": "France", "answer_start": 5}]},
        {"question": "q5", "context": context, "answers": [{"text": "Paris", "answer_start": 5}]},
        {"question": "q6", "context": context, "answers": None},
        {"question": "q7", "context": context, "is_impossible": True, "answers": [], "id": "x"},
    ]
    found = read(jsonl(tmp_path / "a.jsonl", rows), "answer", ("question", "context"), ())
    assert [(row.text, row.label) for row in found] == [
        ("q1", (GoldAnswer(12, "came"),)),
        ("q2", ()),
        ("q3", (GoldAnswer(4, "Normans"),)),
        ("q6", None),
        ("q7", ()),
    ]
    assert found[0].pair == context and found[4].id == "x"
    assert [row.number for row in found.bad] == [4, 5]
    assert "1 answers stood elsewhere in their context" in found.said[0]


# --- labels that are known beforehand -------------------------------------------------------------


def test_labels_that_are_given(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "pos"}, {"text": "b", "label": "ngative"}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    found = read(path, "classify", labels=("positive", "pos", "negative"))
    assert found.labels == ("positive", "pos", "negative")
    assert [row.text for row in found] == ["a"]
    assert "label 'ngative'; allowed: positive, pos, negative; did you mean 'negative'?" in str(
        found.bad[0].error
    )
    with pytest.raises(CallError, match="no row can be read; the first: row 1: label 'pos'"):
        read(path, "classify", labels=("x", "y"))
    found = read(path, "classify", known=("neg", "pos"))
    assert [row.label for row in found] == ["pos", "ngative"]
    assert found.labels == ("neg", "pos") and found.unseen == {"ngative": 1}
    rows = [{"text": "a", "label": n % 2} for n in range(4)]
    found = read(jsonl(tmp_path / "b.jsonl", rows), "classify", labels=("neg", "pos"))
    assert [row.label for row in found] == ["neg", "pos"] * 2
    assert found.said == ("numbers stand for places of labels: 0 is neg, 1 is pos",)


def test_words_for_no_label(tmp_path: Path) -> None:
    rows = [{"text": "a", "gold_label": "-"}, {"text": "b", "gold_label": "neutral"}]
    found = read(jsonl(tmp_path / "a.jsonl", rows), "classify", label="gold_label")
    assert [row.label for row in found] == [None, "neutral"]
    rows = [{"text": "a", "label": -1}, {"text": "b", "label": "?"}, {"text": "c", "label": 1}]
    found = read(jsonl(tmp_path / "b.jsonl", rows), "classify", missing=("-1", "?"))
    assert [row.label for row in found] == [None, None, "1"]


# --- what is wrong with a file --------------------------------------------------------------------


def test_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sentence,lable\na,1\n")
    jsonl(tmp_path / "b.jsonl", [{"sentence": "a", "lable": 1}, {"other": 2}])
    for name in ("a.csv", "b.jsonl"):
        with pytest.raises(CallError, match=r"no column 'text'; it has: sentence, lable"):
            read(tmp_path / name, "classify")
        with pytest.raises(CallError, match="did you mean 'lable'"):
            read(tmp_path / name, "classify", "sentence")
        task = TaskConfig(
            kind="classify", train=(tmp_path / name,), text=("sentence",), label=("label",)
        )
        unlabelled = read_examples(task, task.train, labelled=False)
        assert [row.label for row in unlabelled] == [None]
    (tmp_path / "c.csv").write_text(
        "A first row that stands where the names of columns should,1\nb,2\n"
    )
    with pytest.raises(CallError, match="if the first line is no header: --columns text,label"):
        read(tmp_path / "c.csv", "classify")


def test_bad_rows_are_counted_with_their_numbers(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": f"t{n}", "label": n % 2} for n in range(10_000)]
    rows[17] = {"text": 5, "label": 1}
    rows[4000] = {"text": "half \ud83d", "label": 1}
    rows[9000] = {"label": 1}
    found = read(jsonl(tmp_path / "a.jsonl", rows), "classify")
    assert len(found) == 9997
    assert [row.number for row in found.bad] == [18, 4001, 9001]
    messages = [row.error for row in found.bad]
    assert "column 'text' is 5; allowed: a text or a list of words" in messages[0]
    assert "half of a surrogate pair (character 5)" in messages[1]
    assert "no column 'text'; it has: label" in messages[2]


def test_no_row_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx\n")
    with pytest.raises(CallError, match="no row can be read; the first: row 1: 1 fields"):
        read(tmp_path / "a.csv", "classify")
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(CallError, match="no rows"):
        read(tmp_path / "a.csv", "classify")


def test_groups_and_names(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x", "premise": 3, "uid": "u1"}]
    found = read(jsonl(tmp_path / "a.jsonl", rows), "classify", group="premise", id="uid")
    assert (found[0].group, found[0].id) == ("3", "u1")


def test_a_text_of_a_million_characters_is_a_text(tmp_path: Path) -> None:
    rows = [{"text": "x " * 500_000, "label": 1}, {"text": "b", "label": 0}]
    assert len(read(jsonl(tmp_path / "a.jsonl", rows), "classify")[0].text) == 1_000_000


REAL: list[tuple[str, Any, Any, Any, int, int]] = [
    ("mr/train.jsonl.gz", "classify", "sentence", "label", 8530, 2),
    ("snips/train.jsonl.gz", "tag", "tokens", "slots", 13_084, 72),
    ("snips/train.jsonl.gz", "classify", "tokens", "label", 13_084, 7),
    ("wnut17/train.conll.gz", "tag", "tokens", "tags", 3394, 13),
    ("pawsx/de.dev.jsonl.gz", "classify", ("sentence1", "sentence2"), "label", 2000, 2),
    ("squad2_dev_half/all.jsonl.gz", "answer", ("question", "context"), (), 6078, 0),
    ("tydiqa_goldp/en.train.jsonl.gz", "answer", ("question", "context"), (), 3696, 0),
]


@pytest.mark.parametrize(("name", "kind", "text", "label", "count", "labels"), REAL)
def test_real_files(name: str, kind: Any, text: Any, label: Any, count: int, labels: int) -> None:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the real data is not on this machine ({path.name})")
    found = read(path, kind, text, label)
    assert (len(found), len(found.labels), found.bad, found.said) == (count, labels, (), ())
    assert all(row.label is not None for row in found)
    if kind == "answer":
        golds = [(row.pair, gold) for row in found for gold in row.label]
        assert all(c[g.start : g.start + len(g.text)] == g.text for c, g in golds)


def test_published_test_files_have_no_labels() -> None:
    path = SHARED / "data/tydiqa_goldp/en.dev.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the real data is not on this machine ({path.name})")
    found = read(path, "answer", ("question", "context"), ())
    assert len(found) == 440 and all(row.label is None for row in found)


def test_rows_come_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "a,1\n" * 50)
    task = TaskConfig(kind="classify", train=tmp_path / "a.csv", text="text", label="label")  # type: ignore[arg-type]
    rows = each_example(task, task.train[0], file=3)
    assert next(rows) == Example(number=1, text="a", label="1", file=3)
    rows.close()  # type: ignore[attr-defined]
