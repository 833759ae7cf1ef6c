"""Several heads in one folder, and what a single head carries besides config.json."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe import checkpoint
from enrobe.checkpoint import Checkpoint
from enrobe.config import HEAD_KINDS, HeadConfig
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.engines.torch import TorchEngine
from enrobe.errors import CallError, ModelError
from enrobe.manifest import read_manifest, write_manifest
from enrobe.text.ragged import Ragged
from tests.support import (
    FAMILIES,
    HEADS,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)

SIZES: dict[str, Any] = {"vocab_size": 41, "hidden_size": 12, "num_layers": 2, "num_heads": 3}
LENGTHS = (7, 30, 3, 1)


def joined(folder: Path, family: str, kinds: tuple[str, ...]) -> tuple[Checkpoint, dict[str, Any]]:
    """Heads `my KIND` of several folders on one encoder, and the models of transformers."""
    tensors, heads, models = {}, {}, {}
    encoder: dict[str, Any] = {}
    for kind in kinds:
        models[kind] = reference(folder / kind, family, kind, seed=3, **SIZES)
        models[kind].base_model.load_state_dict(encoder, strict=False)
        models[kind].save_pretrained(folder / kind)
        encoder = {**models[kind].base_model.state_dict(), **encoder}
        read = checkpoint.read(folder / kind)
        heads[f"my {kind}"] = read.heads[kind]
        for name, value in read.tensors.items():
            ours = name.replace(f"heads.{kind}.", f"heads.my {kind}.")
            assert ours not in tensors or np.array_equal(tensors[ours], value)
            if not ours.startswith("pooler."):
                tensors[ours] = value
    checkpoint.write(folder / "several", config=read.config, heads=heads, tensors=tensors)
    return checkpoint.read(folder / "several"), models


@pytest.mark.parametrize("family", FAMILIES)
def test_several_heads_answer_in_one_pass_as_transformers_each(family: str, tmp_path: Path) -> None:
    read, models = joined(tmp_path, family, HEADS)
    assert list(read.heads) == [f"my {kind}" for kind in HEADS]
    assert not read.unexpected and not read.ignored_keys
    rows, types = random_rows(6, LENGTHS, 41), random_types(7, LENGTHS)
    batch = Ragged.from_rows(rows, types)
    at = np.array([0, 8, 9, 40])
    for engine in (OnnxEngine(read), TorchEngine(read)):
        names = tuple(read.heads)
        whole = engine.run(batch, Request(heads=names, layers=(1,)), at)
        mixed = engine.run(batch, Request(heads=("my tag", "my classify")), None)
        few = engine.run(batch, Request(heads=("my mlm", "my regress")), at)
        for kind, model in models.items():
            logits = reference_outputs(model, rows, types).logits
            expected = np.stack(logits) if logits[0].ndim == 1 else np.concatenate(logits)
            expected = expected[at] if kind == "mlm" else expected
            for found in (whole, mixed, few):
                if f"my {kind}" in found.heads:
                    assert scaled_error(found.heads[f"my {kind}"], expected) <= 1e-5, kind


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_the_encoder_of_several(family: str, tmp_path: Path) -> None:
    _, models = joined(tmp_path, family, ("classify", "tag"))
    loaded, report = transformers.AutoModel.from_pretrained(
        tmp_path / "several", output_loading_info=True
    )
    assert not {name for name in report["missing_keys"] if "pooler" not in name}
    rows = random_rows(6, LENGTHS, 41)
    ours = reference_outputs(loaded.eval(), rows).hidden
    theirs = reference_outputs(models["tag"], rows).hidden
    for a, b in zip(ours, theirs, strict=True):
        assert scaled_error(a, b) <= 1e-6


FULL: dict[str, HeadConfig] = {
    "topic": HeadConfig(
        kind="classify", labels=("x", "ÿ"), temperature=1.5, text=("a", "b"), metric="accuracy"
    ),
    "mood": HeadConfig(kind="multilabel", labels=("x", "y"), thresholds=(0.25, 1.0), dropout=0.2),
    "size": HeadConfig(kind="regress", labels=("value",), activation="relu", input_dropout=0.3),
    "slots": HeadConfig(kind="tag", labels=("O", "B-x"), limit=128),
    "qa": HeadConfig(kind="answer", no_answer=0.5, temperature=2),
    "words": HeadConfig(kind="mlm", tied=False),
}


def test_all_that_a_head_carries_comes_back() -> None:
    content = write_manifest(FULL)
    assert content is not None
    assert read_manifest(json.loads(json.dumps(content))) == FULL
    # One head of its kind's name and nothing more is a plain folder.
    for kind in HEAD_KINDS:
        head = next(head for head in FULL.values() if head.kind == kind)
        plain = HeadConfig(kind=kind, labels=head.labels)
        assert write_manifest({kind: plain}) is None
        assert write_manifest({"other": plain}) is not None
        assert write_manifest({kind: replace(plain, text=("t",))}) is not None
    assert write_manifest({}) is None


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
def test_a_single_head_stays_a_folder_of_transformers(
    family: str, kind: str, tmp_path: Path
) -> None:
    model = reference(tmp_path / "theirs", family, kind, seed=3, **SIZES)
    read = checkpoint.read(tmp_path / "theirs")
    extra: dict[str, Any] = {"text": ("body",), "metric": "f1", "limit": 64}
    extra |= {"multilabel": {"thresholds": (0.1,) * 5}, "answer": {"no_answer": 0.3}}.get(kind, {})
    if kind not in ("mlm", "regress"):
        extra["temperature"] = 1.25
    head = replace(read.heads[kind], **extra)
    tensors = {
        name.replace(f"heads.{kind}.", "heads.my own."): value
        for name, value in read.tensors.items()
    }
    checkpoint.write(tmp_path / "ours", config=read.config, heads={"my own": head}, tensors=tensors)
    again = checkpoint.read(tmp_path / "ours")
    assert again.heads == {"my own": head} and not again.unexpected
    assert all((again.tensors[name] == value).all() for name, value in tensors.items())
    loaded, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    rows = random_rows(6, LENGTHS, 41)
    ours, theirs = reference_outputs(loaded.eval(), rows), reference_outputs(model, rows)
    for a, b in zip(ours.logits, theirs.logits, strict=True):
        assert scaled_error(a, b) <= 1e-6


def test_int8_rows_keep_several_heads(tmp_path: Path) -> None:
    read, _ = joined(tmp_path, "roberta", ("classify", "tag"))
    checkpoint.write(
        tmp_path / "int8",
        config=read.config,
        heads=read.heads,
        tensors=read.tensors,
        int8_rows=True,
    )
    again = checkpoint.read(tmp_path / "int8")
    assert again.heads == read.heads and again.tensors.keys() == read.tensors.keys()
    for name, value in read.tensors.items():
        assert scaled_error(again.tensors[name], value) <= 0.01


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "a\nb", "\ud800", "x" * 101, 5])
def test_names_that_no_head_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a head is called"):
        write_manifest({name: HeadConfig(kind="answer")})
    read, _ = joined(tmp_path, "bert", ("classify",))
    with pytest.raises(ModelError, match="a head is called"):
        checkpoint.write(
            tmp_path / "bad",
            config=read.config,
            heads={name: read.heads["my classify"]},
            tensors=read.tensors,
        )
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "format 2; allowed: 1"),
        (lambda m: m.update(heads=[]), "heads is"),
        (lambda m: m["heads"].update({"a.b": {}}), "without dot"),
        (lambda m: m["heads"].update(x=5), "is 5; allowed: a table"),
        (lambda m: m["heads"]["topic"].pop("kind"), "kind is missing"),
        (lambda m: m["heads"]["topic"].update(kind="clasify"), "head kind 'clasify'"),
        (lambda m: m["heads"]["topic"].update(kind=["tag"]), "allowed: a string"),
        (lambda m: m["heads"]["topic"].update(lables=[]), "did you mean 'labels'"),
        (lambda m: m["heads"]["topic"].update(labels="xy"), "allowed: a list of strings"),
        (lambda m: m["heads"]["topic"].update(labels=["x", "x"]), "same label twice"),
        (lambda m: m["heads"]["topic"].update(temperature=0), "temperature is 0"),
        (lambda m: m["heads"]["topic"].update(temperature=float("nan")), "temperature is nan"),
        (lambda m: m["heads"]["topic"].update(temperature="1"), "temperature is '1'"),
        (lambda m: m["heads"]["topic"].update(dropout=True), "dropout is True"),
        (lambda m: m["heads"]["topic"].update(activation="gelu"), "allowed: tanh, relu"),
        (lambda m: m["heads"]["topic"].update(text=["a", "b", "c"]), "3 columns"),
        (lambda m: m["heads"]["topic"].update(no_answer=0.5), "no_answer is for answer"),
        (lambda m: m["heads"]["mood"].update(thresholds=[0.5]), "1 thresholds and 2 labels"),
        (lambda m: m["heads"]["mood"].update(thresholds=[0.5, 2]), "from 0 to 1"),
        (lambda m: m["heads"]["mood"].update(thresholds=[0.5, [1]]), "from 0 to 1"),
        (lambda m: m["heads"]["slots"].update(limit=2), "limit is 2"),
        (lambda m: m["heads"]["slots"].update(limit=1.5), "limit is 1.5"),
        (lambda m: m["heads"]["words"].update(tied=0), "tied is 0"),
        (lambda m: m["heads"]["size"].update(temperature=2), "regress head has none"),
    ],
)
def test_what_is_wrong_with_a_manifest(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content: Any = json.loads(json.dumps(write_manifest(FULL)))
    change(content)
    with pytest.raises(ModelError, match=message) as raised:
        read_manifest(content)
    assert str(raised.value).startswith("enrobe.json: ")


def test_a_manifest_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    read, _ = joined(tmp_path, "bert", ("classify", "tag"))
    folder = tmp_path / "several"
    whole = json.loads((folder / "enrobe.json").read_text())

    def with_heads(**heads: object) -> Path:
        (folder / "enrobe.json").write_text(json.dumps({**whole, "heads": heads}))
        return folder

    heads = whole["heads"]
    # A head without its description is left out, and told of.
    less = checkpoint.read(with_heads(**{"my tag": heads["my tag"]}))
    assert list(less.heads) == ["my tag"]
    assert all(name.startswith("heads.my classify.") for name in less.unexpected)
    assert less.unexpected
    with pytest.raises(ModelError, match=r"tensors are missing: heads\.more\.out\.weight"):
        checkpoint.read(with_heads(**heads, more=heads["my tag"]))
    other = {**heads["my tag"], "labels": ["O", "B-x"]}
    with pytest.raises(ModelError, match=r"heads\.my tag\.out\.bias has shape \(5,\)"):
        checkpoint.read(with_heads(**{**heads, "my tag": other}))
    # A single head that was trained anew elsewhere.
    single = tmp_path / "tag"
    with_heads(**{"my tag": other})
    (single / "enrobe.json").write_bytes((folder / "enrobe.json").read_bytes())
    with pytest.raises(ModelError, match=r"'my tag' has labels .*fix: delete enrobe\.json"):
        checkpoint.read(single)
    with_heads(qa={"kind": "answer"})
    (single / "enrobe.json").write_bytes((folder / "enrobe.json").read_bytes())
    with pytest.raises(ModelError, match="head 'qa' of kind answer; the weights: tag"):
        checkpoint.read(single)
    # Without its manifest the folder is an encoder.
    (folder / "enrobe.json").unlink()
    assert not checkpoint.read(folder).heads
    assert list(read.heads) == ["my classify", "my tag"]


def test_tensors_of_a_head_that_no_head_has(tmp_path: Path) -> None:
    joined(tmp_path, "bert", ("classify", "tag"))
    path = tmp_path / "several/model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    more = {"heads.my tag.extra": np.zeros(3, np.float32), "heads.": np.zeros(1, np.float32)}
    safetensors.numpy.save_file({**tensors, **more}, path)
    assert set(checkpoint.read(tmp_path / "several").unexpected) == {*more}


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    read, _ = joined(tmp_path, "bert", ("classify", "tag"))
    with pytest.raises(CallError, match="exists and is not empty"):
        checkpoint.write(
            tmp_path / "several", config=read.config, heads=read.heads, tensors=read.tensors
        )
    broken = {**read.tensors, "heads.my tag.out.weight": np.array([object()])}
    with pytest.raises((TypeError, ValueError)):
        checkpoint.write(
            tmp_path / "new",
            config=read.config,
            heads=read.heads,
            tensors=broken,  # type: ignore[arg-type]
        )
    assert not (tmp_path / "new").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# --- damage -------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    path=st.sampled_from(
        [
            ("format",),
            ("heads",),
            *(("heads", name) for name in FULL),
            *(("heads", name, key) for name in FULL for key in HeadConfig.__dataclass_fields__),
        ]
    ),
    value=JSON,
)
def test_any_value_anywhere_is_a_model_error(path: tuple[str, ...], value: object) -> None:
    content: Any = json.loads(json.dumps(write_manifest(FULL)))
    at = content
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    try:
        heads = read_manifest(content)
    except ModelError:
        return
    for head in heads.values():
        hash(head)
    # What was read can be written and read again.
    again = write_manifest(heads)
    assert again is None or read_manifest(json.loads(json.dumps(again))) == heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("several")
    joined(out, "bert", ("classify", "tag"))
    return out / "several"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_bytes_are_a_model_error(folder: Path, data: st.DataObject) -> None:
    path = folder / "enrobe.json"
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(0, 5))
    damaged = good[:place] + data.draw(st.binary(max_size=5)) + good[place + cut :]
    try:
        path.write_bytes(damaged)
        checkpoint.read(folder)
    except ModelError:
        pass
    finally:
        path.write_bytes(good)


def test_info_tells_what_a_head_carries(tmp_path: Path) -> None:
    from enrobe.tasks.info import info
    from tests.tasks.heads import several

    changes = {"text": ("body",), "temperature": 1.5, "metric": "macro_f1", "limit": 64}
    several(tmp_path, {"topic": "classify", "tags": "tag"}, topic=changes)
    heads = info(tmp_path / "several")["heads"]
    assert {key: heads["topic"][key] for key in changes} == {**changes, "text": ["body"]}
    assert heads["topic"]["kind"] == "classify" and heads["tags"].keys() == {"kind", "labels"}
