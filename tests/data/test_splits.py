import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enrobe.data.examples import Example, Examples, TaskConfig
from enrobe.data.labels import GoldAnswer
from enrobe.data.splits import load_task, split, text_key
from enrobe.errors import CallError
from tests.support import SHARED


def rows(count: int, label: Any = lambda n: str(n % 3), **more: Any) -> list[Example]:
    return [Example(number=n, text=f"text {n}", label=label(n), **more) for n in range(count)]


def texts(part: Examples) -> set[str]:
    return {text_key(row) for row in part}


def test_the_split_does_not_depend_on_the_order() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    found = rows(500)
    train, dev = split(Examples(tuple(found)), "classify")
    random.Random(seed).shuffle(found)
    again = split(Examples(tuple(found)), "classify")
    assert texts(again[1]) == texts(dev) and texts(again[0]) == texts(train)
    assert texts(split(Examples(tuple(found)), "classify", seed=2)[1]) != texts(dev)


def test_a_few_more_rows_move_only_a_few() -> None:
    dev = texts(split(Examples(tuple(rows(1000))), "classify")[1])
    more = texts(split(Examples(tuple(rows(1010))), "classify")[1])
    assert len(dev - more) <= 10


def test_each_label_keeps_its_share() -> None:
    label = lambda n: "rare" if n % 50 == 0 else "common"  # noqa: E731
    train, dev = split(Examples(tuple(rows(1000, label))), "classify", share=0.2)
    assert Counter(row.label for row in dev) == {"common": 196, "rare": 4}
    assert len(train) == 800
    many = rows(300, lambda n: f"class {n // 3}")
    train, dev = split(Examples(tuple(many)), "classify", share=0.1)
    # Three rows a class and a tenth of them: every class stays in train, and the tenth comes out.
    assert {row.label for row in train} == {f"class {n}" for n in range(100)}
    assert 25 <= len(dev) <= 35


def test_the_same_text_is_never_on_both_sides() -> None:
    found = rows(200)
    found += [replace(row, number=1000, text=f" TEXT  {row.number}\n") for row in found[:100]]
    found += [replace(row, number=2000, label="1") for row in found[:50]]
    train, dev = split(Examples(tuple(found)), "classify", share=0.3)
    assert len(train) + len(dev) == 350
    assert not texts(train) & texts(dev)


def test_a_pair_is_the_same_where_both_parts_are() -> None:
    found = [Example(number=n, text="a", pair=f"b{n % 40}", label="x") for n in range(80)]
    train, dev = split(Examples(tuple(found)), "classify")
    assert len(dev) > 0 and not texts(train) & texts(dev)


def test_groups_stay_together_and_carry_their_duplicates() -> None:
    found = [replace(row, group=str(row.number // 3)) for row in rows(300)]
    # A text of two groups joins them.
    found.append(replace(found[0], number=999, group="99"))
    train, dev = split(Examples(tuple(found)), "classify", share=0.2)
    assert not {row.group for row in train} & {row.group for row in dev}
    assert not texts(train) & texts(dev)
    assert 50 <= len(dev) <= 70


def test_rows_without_a_label_stay_in_train() -> None:
    found = rows(100, lambda n: None if n % 2 else "x")
    train, dev = split(Examples(tuple(found)), "classify", share=0.2)
    assert all(row.label == "x" for row in dev) and len(dev) == 10
    assert len(train) == 90


def test_answers_are_parted_by_their_contexts() -> None:
    found = [
        Example(
            number=n,
            text=f"q{n}",
            pair=f"context {n // 5}",
            label=(GoldAnswer(0, "c"),) if n % 2 else (),
        )
        for n in range(500)
    ]
    train, dev = split(Examples(tuple(found)), "answer")
    assert not {row.pair for row in train} & {row.pair for row in dev}
    assert 40 <= len(dev) <= 60


@pytest.mark.parametrize("kind", ["regress", "tag", "multilabel"])
def test_other_kinds(kind: Any) -> None:
    chance = random.Random(5)
    labels = {
        "regress": lambda n: float(n % 100),
        "tag": lambda n: ("O", "B-rare" if n % 20 == 0 else "B-x", "O"),
        "multilabel": lambda n: ("a", "rare") if n % 20 == 0 else ("a",) if n % 2 else (),
    }
    found = rows(400, labels[kind])
    chance.shuffle(found)
    _, dev = split(Examples(tuple(found)), kind)
    assert len(dev) == 40
    if kind == "regress":
        numbers = [row.label for row in dev if isinstance(row.label, float)]
        assert abs(sum(numbers) / 40 - 49.5) < 6
    else:
        assert sum("rare" in str(row.label) for row in dev) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_split(count: int) -> None:
    found = rows(count) * 3
    with pytest.raises(CallError, match="cannot be split; fix: give a dev file"):
        split(Examples(tuple(found)), "classify")


@settings(max_examples=100, deadline=None)
@given(
    found=st.lists(
        st.tuples(
            st.text("ab ", max_size=3), st.sampled_from(["x", "y", None]), st.none() | st.just("g")
        ),
        max_size=30,
    ),
    share=st.floats(0.01, 0.99),
)
def test_any_rows_are_parted_or_refused(found: list[Any], share: float) -> None:
    examples = [
        Example(number=n, text=text, label=label, group=group)
        for n, (text, label, group) in enumerate(found)
    ]
    try:
        train, dev = split(Examples(tuple(examples)), "classify", share=share)
    except CallError:
        return
    assert sorted(row.number for row in (*train, *dev)) == list(range(len(examples)))
    labelled = {text_key(row) for row in train if row.label is not None}
    assert len(dev) > 0 and len(labelled) > 0
    assert not labelled & texts(dev)


# --- load_task ------------------------------------------------------------------------------------


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in found))
    return path


def test_files_to_data(tmp_path: Path) -> None:
    train = [{"text": f"t{n}", "label": "pn"[n % 2]} for n in range(40)]
    path = write(tmp_path / "train.jsonl", [*train, {"text": 5, "label": "p"}, {"text": "none"}])
    dev = [{"text": "T1 ", "label": "n"}, {"text": "d", "label": "other"}, {"text": "e"}]
    config = TaskConfig(kind="classify", train=(path,), dev=(write(tmp_path / "dev.jsonl", dev),))
    data = load_task(config)
    assert data.task.text == ("text",) and data.train.labels == data.dev.labels == ("n", "p")
    assert data.test is None and len(data.train) == 41 and len(data.dev) == 3
    said = "\n".join(data.said)
    assert "read as text 'text', label 'label'" in said
    assert "train: 1 of 42 rows cannot be read and are left out; the first: row 41" in said
    assert "train: 1 of 41 rows have no label" in said
    assert "dev: 1 labels are not among those of train: 'other'" in said
    assert "dev: 1 of 3 rows have a text that train has, too" in said
    bare = (write(tmp_path / "test.jsonl", [{"text": "x"}]),)
    tested = load_task(replace(config, test=bare))
    assert tested.test is not None and tested.test.labels == ("n", "p")
    assert "test: 1 of 1 rows have no label" in tested.said
    parted = load_task(replace(config, dev=()))
    assert len(parted.dev) == 4 and len(parted.train) == 37
    assert any("no dev file: 4 of 41 rows were split off" in line for line in parted.said)
    assert not any("train has, too" in line for line in parted.said)


def test_what_cannot_be_trained(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [{"text": f"t{n}", "label": "x"} for n in range(9)])
    with pytest.raises(CallError, match="one label only, 'x'; a classifier needs two"):
        load_task(TaskConfig(kind="classify", train=(one,)))
    none = write(tmp_path / "none.jsonl", [{"text": f"t{n}", "label": None} for n in range(9)])
    with pytest.raises(CallError, match="no row has a label in label"):
        load_task(TaskConfig(kind="classify", train=(none,), label=("label",)))


def test_nli_by_premise() -> None:
    path = SHARED / "data/mnli_dev/all.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the real data is not on this machine ({path.name})")
    data = load_task(TaskConfig(kind="classify", train=(path,), group="premise"))
    assert not {row.text for row in data.train} & {row.text for row in data.dev}
    assert 970 <= len(data.dev) <= 990
    shares = Counter(row.label for row in data.dev)
    whole = shares + Counter(row.label for row in data.train)
    assert all(abs(shares[name] / whole[name] - 0.1) < 0.015 for name in whole)
