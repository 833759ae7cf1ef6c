"""Recipes: what is right is read, what is wrong is one line that names its place."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from enrobe.errors import CallError, EnrobeError
from enrobe.train import recipe as module
from enrobe.train.recipe import PretrainRecipe, ShapeTable, as_values, make, read_recipe
from tests.train.toys import recipe_values

SMALLEST = """
output = "runs/a"
model = "models/start"
[corpus.sources.wiki]
files = ["a.txt", "/data/b-*.txt", "~/c.txt"]
[train]
steps = 10
batch_rows = 4
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, "utf-8")
    return path


def read(folder: Path, text: str, *changes: str) -> PretrainRecipe:
    return read_recipe(written(folder, text), PretrainRecipe, changes)


def message(values: dict[str, Any]) -> str:
    with pytest.raises(CallError) as caught:
        make(PretrainRecipe, values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(**changes: Any) -> dict[str, Any]:
    return recipe_values(Path("/files"), Path("/out"), **changes)


# --- what is right --------------------------------------------------------------------------------


def test_the_smallest_recipe_and_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    recipe = read(tmp_path, SMALLEST)
    assert recipe.output == tmp_path / "runs/a"
    assert recipe.corpus.sources["wiki"].files == (
        tmp_path / "a.txt",
        Path("/data/b-*.txt"),
        Path("/home/me/c.txt"),
    )
    assert recipe.corpus.sources["wiki"].weight == 1.0
    assert recipe.corpus.heldout == {} and recipe.corpus.folder is None
    assert recipe.seed == 1 and recipe.masking.rate == 0.15
    # RoBERTa's (Liu et al. 2019, table 9).
    train = recipe.train
    assert (train.betas, train.eps, train.weight_decay) == ((0.9, 0.98), 1e-6, 0.01)
    assert (train.schedule, train.warmup, train.clip) == ("linear", 0.06, 1.0)


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
output = "out"
seed = 7
[model]
num_layers = 2
hidden_size = 24
num_heads = 3
intermediate_size = 40
max_positions = 66
hidden_dropout = 0
attention_dropout = 0.2
[corpus]
vocabulary = 9000
folder = "shards"
length = 64
packing = "documents"
workers = 2
[corpus.sources]
a = {files = ["a.txt"], weight = 4}
"b.c-d_é" = {files = ["b.txt"], weight = 0.2}
[corpus.heldout.near]
files = ["v.txt"]
rows = 9
[masking]
unit = "span"
rate = 0.3
final_rate = 0.1
schedule = "cosine"
mask_share = 1
random_share = 0
[train]
steps = 1_000
batch_rows = 8
micro_tokens = 4096
precision = "bfloat16"
device = "cpu"
compile = false
evaluate_every = 100
save_every = 50
log_every = 5
keep = 3
optimizer = "muon"
lr = 2e-3
schedule = "wsd"
warmup = 100
decay = 0.3
betas = [0.8, 0.9]
eps = 1e-8
weight_decay = 0
clip = 2
"""
    recipe = read(tmp_path, text)
    assert isinstance(recipe.model, ShapeTable)
    assert recipe.model.config(9000).max_tokens == 64
    assert (recipe.model.hidden_dropout, recipe.model.attention_dropout) == (0, 0.2)
    assert recipe.corpus.folder == tmp_path / "shards"
    assert recipe.corpus.heldout["near"].rows == 9
    assert recipe.corpus.sources["b.c-d_é"].weight == 0.2
    assert (recipe.masking.unit, recipe.masking.schedule) == ("span", "cosine")
    train = recipe.train
    assert train.warmup == 100 and type(train.warmup) is int and train.decay == 0.3
    assert (train.clip, train.betas, train.compile) == (2, (0.8, 0.9), False)
    # As JSON has it, it is the same recipe.
    assert make(PretrainRecipe, as_values(recipe)) == recipe
    assert json.loads(json.dumps(as_values(recipe))) == as_values(recipe)


def test_changes_replace_what_the_file_says(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        SMALLEST,
        *("train.steps=20", "train.lr = 1e-3", "output=elsewhere/b", "seed=5"),
        *("train.betas=[0.5, 0.6]", 'corpus.sources.wiki.files=["z.txt"]'),
        *("masking.unit=word", "corpus.sources.more.files=['m.txt']", "model=other/name"),
    )
    assert (recipe.train.steps, recipe.train.lr, recipe.seed) == (20, 1e-3, 5)
    assert recipe.output == tmp_path / "elsewhere/b" and recipe.model == "other/name"
    assert recipe.train.betas == (0.5, 0.6) and recipe.masking.unit == "word"
    assert {n: s.files for n, s in recipe.corpus.sources.items()} == {
        "wiki": (tmp_path / "z.txt",),
        "more": (tmp_path / "m.txt",),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("train.steps", "--set 'train.steps'; allowed: key=value"),
        ("=3", "--set '=3'; allowed: key=value"),
        ("", "--set ''"),
        ("train.step=3", "unknown key train.step; did you mean 'steps'?"),
        ("train.steps=many", "train.steps is 'many'; allowed: integer"),
        ("train.steps=", "train.steps is ''"),
        ("train.steps.x=1", "steps is no table"),
        ("model.num_layers=1", "model is no table"),
        (".=1", "unknown key"),
        ("train.steps=" + "9" * 5000, "train.steps is '9999"),
        ("train.steps=" + "[" * 5000, "train.steps is '[[["),
        ("train.lr=nan", "lr is nan; allowed: above 0"),
        ("output=\udc80", ""),
    ],
)
def test_a_change_that_is_wrong(change: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        read(tmp_path, SMALLEST, change)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_beside_the_recipe_is_a_folder_and_any_other_name_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read(tmp_path, SMALLEST).model == "models/start"
    (tmp_path / "models/start").mkdir(parents=True)
    assert read(tmp_path, SMALLEST).model == str(tmp_path / "models/start")
    monkeypatch.chdir(tmp_path)
    assert read(Path(), SMALLEST).model == "models/start"


def test_where_one_stands_does_not_change_what_a_recipe_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SMALLEST.replace('model = "models/start"', "model = {}").replace("{}", "{%s}") % (
        "num_layers = 1, hidden_size = 2, num_heads = 1, intermediate_size = 2"
    )
    text = text.replace("[corpus.sources", '[corpus]\ntokenizer = "t"\n[corpus.sources')
    there = as_values(read(tmp_path, text))
    monkeypatch.chdir(tmp_path)
    assert as_values(read(Path(), text)) == there
    os.mkdir("deeper")
    monkeypatch.chdir("deeper")
    assert as_values(read_recipe(Path("../recipe.toml"), PretrainRecipe)) == there


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outptu": "x"}, "unknown key outptu; did you mean 'output'?"),
        ({"train__lrate": 1}, "unknown key train.lrate; allowed: batch_rows, betas, clip,"),
        ({"train__warm_up": 1}, "unknown key train.warm_up; did you mean 'warmup'?"),
        ({"zzz": 1}, "unknown key zzz; allowed: corpus, masking, model, output, seed, train"),
        ({"corpus__lenght": 1}, "unknown key corpus.lenght; did you mean 'length'?"),
        (
            {"corpus__sources__a__wieght": 1},
            "unknown key corpus.sources.a.wieght; did you mean 'weight'?",
        ),
        (
            {"corpus__heldout__near__row": 1},
            "unknown key corpus.heldout.near.row; did you mean 'rows'?",
        ),
        ({"model__layers": 1}, "unknown key model.layers; did you mean 'num_layers'?"),
        ({"masking__raet": 1}, "unknown key masking.raet; did you mean 'rate'?"),
        ({"train__steps": None}, "train.steps is missing"),
        ({"output": None}, "output is missing"),
        ({"model": None}, "model is missing"),
        ({"corpus__sources__a__files": None}, "corpus.sources.a.files is missing"),
        ({"model__hidden_size": None}, "model.hidden_size is missing"),
        ({"train__steps": "100"}, "train.steps is '100'; allowed: integer"),
        ({"train__steps": 100.0}, "train.steps is 100.0; allowed: integer"),
        ({"train__steps": True}, "train.steps is True; allowed: integer"),
        ({"train__steps": []}, "train.steps is []; allowed: integer"),
        ({"train__lr": "1e-3"}, "train.lr is '1e-3'; allowed: number"),
        ({"train__betas": [0.9]}, "train.betas"),
        ({"train__betas": [0.9, "x"]}, "train.betas[1] is 'x'; allowed: number"),
        ({"train__optimizer": "adam"}, "train.optimizer is 'adam'; allowed: 'adamw' or 'muon'"),
        ({"train__clip": "none"}, "train.clip is 'none'; allowed: number"),
        ({"train__warmup": "x"}, "train.warmup is 'x'; allowed: "),
        ({"train": 3}, "train is 3; allowed: "),
        ({"corpus__sources__a": "a.txt"}, "corpus.sources.a is 'a.txt'; allowed: "),
        ({"corpus__sources__a__files": "a.txt"}, "corpus.sources.a.files is 'a.txt'; allowed: "),
        ({"corpus__sources__a__files": [1]}, "corpus.sources.a.files[0] is 1; allowed: "),
        ({"model__num_layers": "2"}, "model.num_layers is '2'; allowed: integer"),
        ({"model": 5}, "model is 5; allowed: "),
        ({"model": ["x"]}, "model is ['x']; allowed: "),
        # What values mean together.
        ({"train__lr": 0.0}, "train: lr is 0.0; allowed: above 0"),
        ({"masking__rate": 2.0}, "masking: rate is 2.0"),
        ({"model__num_heads": 5}, "model: "),
        ({"corpus__sources": {}}, "[corpus.sources] is empty; fix: add [corpus.sources.NAME]"),
        ({"corpus__languages": "texts"}, "[corpus] has sources and languages; fix: leave out one"),
        ({"corpus__alpha": 1.5}, "alpha is 1.5; allowed: 0 to 1"),
        ({"corpus__sources__a__files": []}, "files: 0; allowed: 1 or more"),
        ({"corpus__sources__a__weight": 0}, "weight is 0"),
        ({"corpus__sources__a__weight": float("nan")}, "weight is nan"),
        ({"corpus__heldout__near__rows": 0}, "rows: 0; allowed: 1 or more"),
        ({"corpus__workers": 0}, "workers: 0; allowed: 1 or more"),
        ({"corpus__length": 33}, "corpus.length is 33; model.max_positions 34 leaves 32"),
        ({"corpus__vocabulary": 9000}, "[corpus] has vocabulary and tokenizer; a new model needs"),
        ({"corpus__tokenizer": None}, "[corpus] has neither; a new model needs one of"),
        ({"model": "x/y"}, "model is 'x/y' and corpus.tokenizer is given; a model brings its own"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        *(
            ({"corpus__sources": {name: {"files": ["x"]}}}, f"the name {name!r} of a set of files")
            for name in ("", "..", "a/b", ".a", "a b", "tokenizer", "heldout-x")
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(changes: dict[str, Any], words: str) -> None:
    assert words in message(values(**changes))


def test_of_several_mistakes_the_unknown_key_comes_first() -> None:
    # It explains why another one is missing.
    found = message(values(train__stpes=9, train__steps=None, seed="x"))
    assert found == "unknown key train.stpes; did you mean 'steps'?"
    found = message(values(model__num_layer=2, model__num_layers=None))
    assert found == "unknown key model.num_layer; did you mean 'num_layers'?"


@pytest.mark.parametrize(
    "text",
    [
        "output = ",
        "a = 1\na = 2",
        "\0",
        "x = " + "9" * 5000,
        "x = " + "[" * 5000,
        "a." * 3000 + "b = 1",
    ],
)
def test_what_is_no_toml_is_said(text: str, tmp_path: Path) -> None:
    with pytest.raises(CallError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "recipe.toml") in str(caught.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"none\.toml: No such file"):
        read_recipe(tmp_path / "none.toml", PretrainRecipe)
    with pytest.raises(CallError, match="Is a directory"):
        read_recipe(tmp_path, PretrainRecipe)
    (tmp_path / "recipe.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CallError, match="not TOML"):
        read_recipe(tmp_path / "recipe.toml", PretrainRecipe)


@pytest.mark.parametrize(
    "text",
    [
        SMALLEST.replace("steps = 10", "steps = 1979-05-27"),
        SMALLEST.replace("steps = 10", "steps = 07:32:00"),
        SMALLEST + "lr = 1979-05-27T07:32:00Z",
        SMALLEST.replace('"a.txt"', "1979-05-27, {x = 07:32:00}"),
        SMALLEST.replace('"runs/a"', r'"a\u0000b"'),
        SMALLEST.replace("[corpus.sources.wiki]", "[[corpus.sources.wiki]]"),
        "seed = 1979-05-27\n" + SMALLEST,
    ],
)
def test_dates_and_other_oddities_are_mistakes_too(text: str, tmp_path: Path) -> None:
    tomllib.loads(text)
    with pytest.raises(CallError) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "recipe.toml") in str(caught.value) and "\n" not in str(caught.value)


def test_a_home_that_nobody_has_is_a_plain_name(tmp_path: Path) -> None:
    recipe = read(tmp_path, SMALLEST.replace("runs/a", "~nobody-of-this-name/x"))
    assert recipe.output == tmp_path / "~nobody-of-this-name/x"


def test_without_pydantic_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(EnrobeError, match="needs pydantic"):
        read(tmp_path, SMALLEST)


# --- anything at all ------------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *("output", "model", "corpus", "train", "masking", "seed", "sources", "heldout", "files"),
        *("steps", "lr", "betas", "clip", "weight", "rows", "num_layers", "ShapeTable", "str", ""),
    ]
) | st.text(st.characters(codec="utf-8"), max_size=3)
LEAVES = (
    st.none().map(lambda _: {})
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.times()
    | st.datetimes()
    | st.text(st.characters(codec="utf-8"), max_size=4)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(NAMES, ANYTHING, max_size=6))
@example({})
@example({"model": {"ShapeTable": {"num_layers": 1}}})
@example({"model": {"str": 1}, "corpus": {"sources": {"files": {"files": [[]]}}}})
def test_any_table_is_a_recipe_or_a_mistake_on_one_line(table: dict[str, Any]) -> None:
    tried(table)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(
        [
            ("train",),
            ("train", "steps"),
            ("train", "betas"),
            ("train", "warmup"),
            ("train", "new"),
            ("model",),
            ("model", "num_layers"),
            ("model", "hidden_dropout"),
            ("corpus", "sources"),
            ("corpus", "sources", "a"),
            ("corpus", "sources", "a", "files"),
            ("corpus", "sources", "a", "weight"),
            ("corpus", "heldout", "near", "rows"),
            ("corpus", "folder"),
            ("masking", "rate"),
            ("masking", "static"),
            ("seed",),
        ]
    ),
    ANYTHING,
)
def test_any_value_in_any_place_is_right_or_a_mistake_on_one_line(
    place: tuple[str, ...], value: Any
) -> None:
    tried(values(**{"__".join(place): value}))


def tried(table: dict[str, Any]) -> None:
    wrong = ""
    try:
        recipe = module._anchor(make(PretrainRecipe, table), Path("base"))
        json.dumps(as_values(recipe))
    except CallError as error:
        wrong = str(error)
    assert "\n" not in wrong and len(wrong) < 500
