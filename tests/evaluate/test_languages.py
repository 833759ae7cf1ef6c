"""Scores by language: whose file is whose, gaps, and the command."""

import json
import random
from pathlib import Path

import pytest

from enrobe.cli import evaluate
from enrobe.errors import CallError, MissingExtraError
from enrobe.evaluate.files import HeadReport, evaluate_file, evaluate_head
from enrobe.evaluate.languages import evaluate_languages, language_names
from enrobe.evaluate.languages_folder import as_markdown, ranked
from enrobe.tasks.model import Model, load
from tests.tasks.heads import TAGS, bert_folder
from tests.test_cli import records, run, terminal


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    bert_folder(folder, "classify")
    return folder


@pytest.fixture(scope="module")
def tag(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tag")
    bert_folder(folder, "tag")
    return load(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three languages as PAWS-X has them, and how many rows each has."""
    folder = tmp_path_factory.mktemp("pairs")
    print("seed 5")
    chance = random.Random(5)
    for name, count in (("de", 30), ("en", 20), ("zh", 10)):
        rows = [
            {
                "idx": n,
                "sentence1": " ".join(chance.choices(["the", "cat", "w7", "日"], k=4)),
                "sentence2": " ".join(chance.choices(["the", "mat", "w9", "本"], k=4)),
                "label": f"LABEL_{min(chance.randrange(8), 4)}",
            }
            for n in range(count)
        ]
        path = folder / f"{name}.dev.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["pawsx/de.dev.jsonl.gz", "pawsx/en.dev.jsonl.gz"], ["de", "en"]),
        (["wikiann/de.test.conll.gz", "wikiann/sw.dev.conll"], ["de", "sw"]),
        (
            ["/d/ud_english_ewt/test.conll", "/d/ud_german_pud/test.conll"],
            ["english", "german"],
        ),
        (["a/ud_spanish_pud/x.conll", "b/ud_spanish_gsd/x.conll"], ["a", "b"]),
        (["xnli-ar-test.tsv", "xnli-bg-test.tsv"], ["ar", "bg"]),
        (["ar.jsonl", "de.jsonl", "ar.csv"], None),
    ],
)
def test_files_are_called_after_what_tells_them_apart(
    paths: list[str], names: list[str] | None
) -> None:
    if names is not None:
        assert language_names([Path(path) for path in paths]) == names
        return
    with pytest.raises(CallError, match="fix: name them after their languages"):
        language_names([Path(path) for path in paths])


def test_each_language_scores_as_it_does_alone(classify: Path, files: list[Path]) -> None:
    model = load(classify)
    report = evaluate_languages(model, files, text=("sentence1", "sentence2"), label=("label",))
    assert (report.source, [*report.languages]) == ("en", ["de", "en", "zh"])
    for path, found in zip(files, report.languages.values(), strict=True):
        alone = evaluate_head(model, path, text=("sentence1", "sentence2"), label=("label",))
        assert found == alone
    values = {name: report.usual(name).value for name in report.languages}
    assert report.measures[0] == "accuracy"
    assert report.others == pytest.approx((values["de"] + values["zh"]) / 2)
    assert report.gap() == pytest.approx(values["en"] - (values["de"] + values["zh"]) / 2)
    assert report.gap("zh") == pytest.approx(values["en"] - values["zh"])
    assert ranked(report)[0] == "en"
    text = as_markdown(report, "m")
    assert "| language | rows | accuracy | 95% interval | gap | macro f1 | matthews |" in text
    assert "transfer gap" in text
    other = evaluate_languages(
        model, files, source="zh", text=("sentence1", "sentence2"), label=("label",)
    )
    assert other.gap("en") == pytest.approx(values["zh"] - values["en"])


def test_the_commonest_label_is_a_floor(classify: Path, files: list[Path], tag: Model) -> None:
    labels = [json.loads(line)["label"] for line in files[0].read_text().splitlines()]
    head = evaluate_head(
        load(classify), files[0], text=("sentence1", "sentence2"), label=("label",)
    )
    assert head.majority == max(map(labels.count, labels)) / len(labels)
    path = files[0].parent / "tags.conll"
    path.write_text("the O\ncat B-per\n\nsat O\non O\nmat B-loc\n")
    assert evaluate_head(tag, path).majority == 3 / 5
    path.unlink()


def test_tags_of_folders_of_treebanks(tag: Model, tmp_path: Path) -> None:
    paths = []
    for name in ("ud_english_ewt", "ud_german_pud"):
        (tmp_path / name).mkdir()
        paths.append(tmp_path / name / "test.conll")
        paths[-1].write_text("".join(f"the {tag}\ncat {tag}\n\n" for tag in TAGS))
    report = evaluate_languages(tag, paths)
    assert (report.source, [*report.languages]) == ("english", ["english", "german"])
    assert report.gap("german") == 0
    found = report.languages["german"]
    assert isinstance(found, HeadReport) and set(found.scores) == {"f1", "accuracy"}


def test_one_file_has_a_column_of_languages(classify: Path, tmp_path: Path) -> None:
    model = load(classify)
    rows = [("de", f"w{n} the", f"w{n + 40} cat") for n in range(6)]
    rows += [("fr", f"w{n} on", f"w{n + 30} is") for n in range(4)]
    path = tmp_path / "tatoeba.jsonl"
    path.write_text(
        "".join(json.dumps({"lang": a, "source": b, "eng": c}) + "\n" for a, b, c in rows)
    )
    report = evaluate_languages(model, [path], task="bitext", text=("source", "eng"))
    assert (report.source, report.gap()) == (None, None)
    assert {name: found.rows for name, found in report.languages.items()} == {"de": 6, "fr": 4}
    assert report.measures[0] == "accuracy_forward"
    alone = tmp_path / "fr.jsonl"
    alone.write_text("".join(line + "\n" for line in path.read_text().splitlines()[6:]))
    assert report.languages["fr"] == evaluate_file(
        model, alone, task="bitext", text=("source", "eng")
    )
    path.write_text('{"source": "a", "eng": "b"}\n')
    with pytest.raises(CallError, match="row 1 has no language; allowed: a column language or"):
        evaluate_languages(model, [path], task="bitext", text=("source", "eng"))


def test_mistakes_are_named(classify: Path, files: list[Path]) -> None:
    model = load(classify)
    with pytest.raises(CallError, match="source is 'ne'; allowed: de, en, zh"):
        evaluate_languages(model, files, source="ne")
    with pytest.raises(CallError, match="de: "):
        evaluate_languages(model, files, text=("sentence1", "sentence3"), label=("label",))
    for options in ((), ("--source", "en")):
        few = files[:1] if options else files
        answer = run("evaluate", str(classify), *map(str, few), *options)
        assert answer.returncode == 2 and answer.stderr.count(b"\n") == 1
        assert b"fix: --by-language" in answer.stderr


def test_what_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib.*enrobe\[train\]"):
        evaluate("no model", Path("no file"), by_language=True, output=output)
    output.write_text("")
    with pytest.raises(CallError, match=str(output)):
        evaluate("no model", Path("no file"), by_language=True, output=output)


def test_the_command_writes_table_picture_and_json(
    classify: Path, files: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the train extra is not installed")
    base = ("evaluate", str(classify), *map(str, files), "--by-language")
    base += ("--text", "sentence1,sentence2", "--label", "label")
    answer = run(*base, "--output", str(tmp_path / "out"))
    assert answer.returncode == 0, answer.stderr
    (record,) = records(answer)
    written = json.loads((tmp_path / "out/languages.json").read_text())
    assert written == {"model": str(classify), **record}
    assert (tmp_path / "out/languages.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out/languages.md").read_text().count("\n| ") == 4
    shown = terminal(classify, *base)
    assert "transfer gap" in shown and "commonest label" in shown and "{" not in shown
