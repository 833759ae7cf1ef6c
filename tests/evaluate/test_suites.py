"""Suites from files in their official shape, with quotes that nobody closed; official averages."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from sklearn import metrics as sk

from enrobe.cli import main
from enrobe.data.records import Records
from enrobe.errors import CallError
from enrobe.evaluate.suites import evaluate_suite
from enrobe.tasks.model import Model
from tests.tasks.heads import several

SENTENCES = ["the cat sat", 'the "cat sat', "on the mat", "new york is", 'who" w1 w2', "w3 w4"]
SENTENCES += ["where is the cat", "w5", "w6 w7", "the mat (new)", "w8 w9 w10", "is it w11 ?"]


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), "utf-8")


def pairs() -> list[tuple[str, str]]:
    return list(zip(SENTENCES, SENTENCES[3:] + SENTENCES[:3], strict=True))


def glue(folder: Path) -> None:
    """Six of the nine tasks, as download_glue_data.py leaves them."""
    write(
        folder / "CoLA/dev.tsv",
        [f"gj04\t{n % 2}\t{'*' if n % 2 == 0 else ''}\t{s}" for n, s in enumerate(SENTENCES)],
    )
    write(
        folder / "SST-2/dev.tsv",
        ["sentence\tlabel", *(f"{s} \t{n % 2}" for n, s in enumerate(SENTENCES))],
    )
    # Its header begins with a byte-order mark.
    write(
        folder / "MRPC/dev.tsv",
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        + [f"{n % 3 and 1}\t{n}\t{n + 9}\t{a}\t{b}" for n, (a, b) in enumerate(pairs())],
    )
    names = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    write(
        folder / "STS-B/dev.tsv",
        ["\t".join(names.split())]
        + [
            f"{n}\tmain\tMSR\t2012\t{n:04}\tnone\tnone\t{a}\t{b}\t{n % 5:.3f}"
            for n, (a, b) in enumerate(pairs())
        ],
    )
    write(
        folder / "QQP/dev.tsv",
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"]
        + [f"{n}\t{n}\t{n}\t{a}\t{b}\t{n % 2}" for n, (a, b) in enumerate(pairs())]
        # A row that was torn in two, as QQP has some.
        + ["99\t1\t2\thalf of a question"],
    )
    names = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
    names += "sentence1_parse sentence2_parse sentence1 sentence2 label1 gold_label"
    labels = ["neutral", "entailment", "contradiction", "-"]
    for part, shift in (("matched", 0), ("mismatched", 1)):
        write(
            folder / f"MNLI/dev_{part}.tsv",
            ["\t".join(names.split())]
            + [
                f"{n}\t1\t1e\tslate\t( a\tb )\t(ROOT\tb\t{a}\t{b}\t{labels[0]}"
                f"\t{labels[(n + shift) % 4]}"
                for n, (a, b) in enumerate(pairs())
            ],
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Heads with their labels in an order, and a case, of their own."""
    folder = tmp_path_factory.mktemp("model")
    heads = {name: "classify" for name in ("cola", "sst2", "MRPC", "qqp", "mnli")}
    return several(folder, {**heads, "sts-b": "regress"})


def with_labels(model: Model, **labels: tuple[str, ...]) -> Model:
    """The model, whose heads have other labels first."""
    heads = dict(model.engine.heads)
    for name, own in labels.items():
        more = (f"more {n}" for n in range(len(heads[name].labels) - len(own)))
        heads[name] = replace(heads[name], labels=(*own, *more))
    model.engine.heads = heads
    return model


def test_glue(model: Model, tmp_path: Path) -> None:
    glue(tmp_path)
    binary = ("0", "1", "2")
    model = with_labels(
        model,
        cola=binary,
        sst2=("LABEL_0", "LABEL_1", "LABEL_2"),
        MRPC=("1", "0", "2"),
        qqp=binary,
        mnli=("CONTRADICTION", "NEUTRAL", "ENTAILMENT"),
    )
    report = evaluate_suite(model, "glue", tmp_path)
    assert list(report.tasks) == ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI"]
    assert list(report.missing) == ["QNLI", "RTE", "WNLI"]
    assert "no classify head is called 'rte'" in report.missing["RTE"]
    values = {
        (part.task, part.part): {name: score.value for name, score in part.scores.items()}
        for part in report.parts
    }
    said = {
        name: [
            str(one.label)
            for one in (
                model.predict(SENTENCES, head=name)
                if name in ("cola", "sst2")
                else model.predict(pairs=pairs(), head=name)
            )
        ]
        for name in ("cola", "sst2", "MRPC", "qqp", "mnli")
    }
    gold = [str(n % 2) for n in range(12)]
    assert values["CoLA", "dev"] == {
        "matthews": pytest.approx(sk.matthews_corrcoef(gold, said["cola"]))
    }
    sst2 = [label.removeprefix("LABEL_") for label in said["sst2"]]
    assert values["SST-2", "dev"] == {"accuracy": pytest.approx(sk.accuracy_score(gold, sst2))}
    assert values["QQP", "dev"] == {
        "f1": pytest.approx(sk.f1_score(gold, said["qqp"], labels=["1"], average="macro")),
        "accuracy": pytest.approx(sk.accuracy_score(gold, said["qqp"])),
    }
    mrpc = [str(n % 3 and 1) for n in range(12)]
    mrpc_f1 = sk.f1_score(mrpc, said["MRPC"], labels=["1"], average="macro")
    assert values["MRPC", "dev"]["f1"] == pytest.approx(mrpc_f1)
    numbers = [one.value for one in model.predict(pairs=pairs(), head="sts-b")]
    correlations = [
        stats.pearsonr(numbers, [n % 5 for n in range(12)]).statistic,
        stats.spearmanr(numbers, [n % 5 for n in range(12)]).statistic,
    ]
    assert [*values["STS-B", "dev"].values()] == pytest.approx(correlations, abs=1e-6)
    nli = ["NEUTRAL", "ENTAILMENT", "CONTRADICTION", None]
    for part, shift in (("dev_matched", 0), ("dev_mismatched", 1)):
        kept = [n for n in range(12) if nli[(n + shift) % 4]]
        right = [nli[(n + shift) % 4] == said["mnli"][n] for n in kept]
        assert values["MNLI", part]["accuracy"] == pytest.approx(sum(right) / 9)
    # Two metrics, and two files, are averaged before the tasks are.
    assert report.tasks["STS-B"] == pytest.approx(sum(correlations) / 2)
    assert report.tasks["MNLI"] == pytest.approx(
        sum(values["MNLI", part]["accuracy"] for part in ("dev_matched", "dev_mismatched")) / 2
    )
    assert report.mean == pytest.approx(sum(report.tasks.values()) / 6)
    # The torn row, and three without a gold label in each of MNLI's files.
    assert report.skipped == 1 + 6 and report.error is not None
    assert "4 fields under a header of 6" in report.error


def test_a_head_whose_labels_are_others(model: Model, tmp_path: Path) -> None:
    write(tmp_path / "SST-2/dev.tsv", ["sentence\tlabel", "the cat\t1", "the mat\t0"])
    strange = with_labels(model, sst2=("good", "bad", "other"))
    with pytest.raises(CallError, match=r"SST-2: dev\.tsv has the label '1', and the head 'good'"):
        evaluate_suite(strange, "glue", tmp_path)


def superglue(folder: Path) -> None:
    def lines(name: str, rows: list[dict[str, Any]]) -> None:
        write(folder / name / "val.jsonl", [json.dumps(row) for row in rows])

    lines(
        "BoolQ",
        [
            {"question": a, "passage": b, "idx": n, "label": n % 2 == 0}
            for n, (a, b) in enumerate(pairs())
        ],
    )
    labels = ["entailment", "contradiction", "neutral"]
    lines(
        "CB",
        [
            {"premise": a, "hypothesis": b, "label": labels[n % 2], "idx": n}
            for n, (a, b) in enumerate(pairs())
        ],
    )
    lines(
        "WiC",
        [
            {"word": "cat", "sentence1": "the cat sat", "sentence2": "a cat is w1", "idx": n}
            | {"start1": 4, "end1": 7, "start2": 2, "end2": 5, "label": n % 2 == 0}
            for n in range(4)
        ],
    )
    answers = [
        {"text": text, "idx": n, "label": label}
        for n, (text, label) in enumerate([("w1", 1), ("w2 w3", 0), ("the mat", 1)])
    ]
    questions = [{"question": f"who is w{n} ?", "answers": answers, "idx": n} for n in range(3)]
    lines("MultiRC", [{"idx": 5, "version": 1.1, "passage": {"text": "x", "questions": questions}}])
    lines("COPA", [{"premise": "x", "choice1": "a", "choice2": "b", "label": 0}])
    target = {"span1_index": 1, "span1_text": "new york", "span2_index": 4, "span2_text": "it"}
    lines("WSC", [{"text": "The new york is it .", "target": target, "idx": 0, "label": True}])


def test_superglue(tmp_path: Path) -> None:
    superglue(tmp_path / "data")
    heads = dict.fromkeys(("boolq", "cb", "wic", "multirc", "wsc"), "classify")
    model = several(tmp_path / "m", heads)
    model = with_labels(
        model,
        boolq=("false", "true", "x"),
        cb=("entailment", "contradiction", "neutral"),
        wic=("true", "false", "x"),
        multirc=("0", "1", "x"),
        wsc=("true", "false", "x"),
    )
    report = evaluate_suite(model, "superglue", tmp_path / "data")
    assert list(report.tasks) == ["BoolQ", "CB", "MultiRC", "WiC", "WSC"]
    assert "it chooses among candidates" in report.missing["COPA"]
    values = {
        part.task: {name: score.value for name, score in part.scores.items()}
        for part in report.parts
    }
    gold = ["entailment" if n % 2 == 0 else "contradiction" for n in range(12)]
    said = [str(one.label) for one in model.predict(pairs=pairs(), head="cb")]
    assert values["CB"] == {
        "accuracy": pytest.approx(sk.accuracy_score(gold, said)),
        "macro_f1": pytest.approx(sk.f1_score(gold, said, average="macro")),
    }
    asked = [("x", f"who is w{q} ? {a}") for q in range(3) for a in ("w1", "w2 w3", "the mat")]
    judged = [str(one.label) for one in model.predict(pairs=asked, head="multirc")]
    right = [a == b for a, b in zip(judged, ["1", "0", "1"] * 3, strict=True)]
    assert values["MultiRC"] == {
        "f1": pytest.approx(
            sk.f1_score(["1", "0", "1"] * 3, judged, labels=["1"], average="macro")
        ),
        "exact": pytest.approx(sum(all(right[n : n + 3]) for n in (0, 3, 6)) / 3),
    }


def test_columns_of_superglue_that_show_what_is_asked(tmp_path: Path) -> None:
    superglue(tmp_path)
    (wic, *_) = [record.values for record in Records(tmp_path / "WiC/val.jsonl")]
    assert (wic["marked1"], wic["marked2"]) == ("the *cat* sat", "a *cat* is w1")
    (wsc,) = [record.values for record in Records(tmp_path / "WSC/val.jsonl")]
    assert wsc["marked"] == "The *new york* is _it_ ."
    rows = [record.values for record in Records(tmp_path / "MultiRC/val.jsonl")]
    assert len(rows) == 9
    assert rows[4] == {
        "passage": "x",
        "question_answer": "who is w1 ? w2 w3",
        "question": "5-1",
        "label": 0,
    }
    # What is no such row stays as it is.
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"text": "x y", "target": {"span1_index": 7, "span1_text": "z"}, "label": 1}\n')
    assert "marked" not in next(iter(Records(odd))).values


def test_xnli_by_language(model: Model, tmp_path: Path) -> None:
    names = ["language", "gold_label", "sentence1_binary_parse", "sentence1", "sentence2", "pairID"]
    labels = ["neutral", "entailment", "contradiction"]
    rows = [
        f"{language}\t{labels[n % 3]}\t\t{a}\t{b}\t{n}"
        for language in ("ar", "de")
        for n, (a, b) in enumerate(pairs())
    ]
    write(tmp_path / "XNLI-1.0/xnli.test.tsv", ["\t".join(names), *rows])
    ours = with_labels(model, mnli=("contradiction", "neutral", "entailment"))
    report = evaluate_suite(ours, "xnli", tmp_path)
    said = [str(one.label) for one in ours.predict(pairs=pairs(), head="mnli")]
    expected = sk.accuracy_score([labels[n % 3] for n in range(12)], said)
    assert [(part.part, part.rows) for part in report.parts] == [("ar", 12), ("de", 12)]
    assert all(p.scores["accuracy"].value == pytest.approx(expected) for p in report.parts)
    assert report.mean == pytest.approx(expected)


def test_the_command_line(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    glue(tmp_path / "data")
    several(tmp_path / "m", {"sts-b": "regress"})
    folder = tmp_path / "m/several"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), "--suite", "glue", str(tmp_path / "data"), "--json"])
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert list(found["tasks"]) == ["STS-B"] and len(found["missing"]) == 8
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(folder), "--suite", "glue", str(tmp_path / "nowhere")])
    assert ended.value.code == 2 and "no such folder" in capsys.readouterr().err
