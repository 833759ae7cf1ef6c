"""Built-in models: packed by the script, found by name, the same as transformers when converted."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

import enrobe
from enrobe import checkpoint, hub
from enrobe.convert import convert
from enrobe.data.vocabulary import train_bpe
from enrobe.engines.base import Request
from enrobe.engines.onnx import OnnxEngine
from enrobe.errors import CallError, ModelError
from enrobe.tasks.info import info
from enrobe.text.ragged import Ragged
from tests.support import random_rows, reference, reference_outputs, scaled_error

ROOT = Path(__file__).parents[1]
TEXTS = ["the hen sat on the mat", "the other hen is not there, then", "on the mat the hen sat"]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("pack_builtin", ROOT / "scripts/pack_builtin.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pack: Callable[..., dict[str, Any]] = script().pack


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a pretraining run leaves: a random RoBERTa with a vocabulary of its own."""
    folder = tmp_path_factory.mktemp("pretrained")
    words = train_bpe(TEXTS * 2, 275)
    reference(folder, "roberta", "mlm", seed=2, vocab_size=275, type_vocab_size=1, max_positions=40)
    (folder / "tokenizer.json").write_text(words.to_str(), "utf-8")
    settings = {"tokenizer_class": "RobertaTokenizer", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "card.md").write_text("# a card\n")
    return folder


@pytest.fixture
def models(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with enrobe-tiny, and a working directory with nothing."""
    folder = tmp_path / "package" / "models"
    folder.parent.mkdir()
    pack(source, "enrobe-tiny", source / "card.md", folder)
    monkeypatch.setattr(hub, "MODELS", folder)
    monkeypatch.delenv(hub.ENVIRONMENT, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


# --- names --------------------------------------------------------------------------------------


def test_the_name_and_no_name(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.resolve("enrobe-tiny") == models / "enrobe-tiny"
    assert hub.resolve(None) == models / "enrobe-tiny"
    monkeypatch.setenv(hub.ENVIRONMENT, "")
    assert hub.resolve(None) == models / "enrobe-tiny"
    monkeypatch.setenv(hub.ENVIRONMENT, "enrobe-tiny")
    assert hub.resolve(None) == models / "enrobe-tiny"
    monkeypatch.setenv(hub.ENVIRONMENT, str(models))
    assert hub.resolve(None) == models


def test_the_larger_one_is_the_default(models: Path) -> None:
    shutil.copytree(models / "enrobe-tiny", models / "enrobe-small")
    assert hub.built_in() == ["enrobe-small", "enrobe-tiny"]
    assert hub.resolve(None) == models / "enrobe-small"
    assert hub.resolve("enrobe-tiny") == models / "enrobe-tiny"


@pytest.mark.parametrize("name", ["enrobe-small", "enrobe-tin", "enrobe_tiny", "enrobe"])
def test_what_is_not_built_in(name: str, models: Path) -> None:
    with pytest.raises(CallError, match="not built in; built in: enrobe-tiny") as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)
    assert ("did you mean 'enrobe-tiny'" in str(caught.value)) == (name != "enrobe-small")


def test_a_folder_of_the_same_name_is_never_taken_in_silence(models: Path) -> None:
    here = Path("enrobe-tiny")
    here.mkdir()
    with pytest.raises(CallError, match=r"built in.*write \./enrobe-tiny"):
        hub.resolve("enrobe-tiny")
    assert hub.resolve("./enrobe-tiny").samefile(here)
    assert hub.resolve(here).samefile(here)
    assert hub.resolve(None) == models / "enrobe-tiny"
    # Where nothing of that name is built in, there is one meaning.
    Path("enrobe-small").mkdir()
    assert hub.resolve("enrobe-small").samefile("enrobe-small")


def test_from_the_models_own_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    assert hub.resolve("enrobe-tiny") == models / "enrobe-tiny"


def test_a_file_of_the_same_name_is_no_model(models: Path) -> None:
    Path("enrobe-tiny").write_text("")
    assert hub.resolve("enrobe-tiny") == models / "enrobe-tiny"


def test_nothing_is_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MODELS", tmp_path)
    monkeypatch.delenv(hub.ENVIRONMENT, raising=False)
    with pytest.raises(CallError, match=hub.ENVIRONMENT):
        hub.resolve(None)
    with pytest.raises(CallError, match="built in: none"):
        hub.resolve("enrobe-tiny")


# --- what it does -------------------------------------------------------------------------------


def logits(folder: Path, rows: Any) -> Any:
    engine = OnnxEngine(checkpoint.read(folder))
    batch = Ragged.from_rows(rows)
    return engine.run(batch, Request(heads=("mlm",)), np.arange(len(batch.ids))).heads["mlm"]


def assert_transformers_agrees(name: str, output: Path) -> None:
    """`convert` writes what transformers loads, with the logits that the built-in model has."""
    done = convert(name, output)
    assert (list(done.heads), done.left_out, done.ignored_keys) == (["mlm"], (), ())
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(
        output, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    lengths = (9, 2, done.config.max_tokens)
    rows = random_rows(8, lengths, done.config.vocab_size)
    theirs = np.concatenate(reference_outputs(model.eval(), rows).logits)
    assert scaled_error(logits(hub.resolve(name), rows), theirs) <= 1e-5
    words = transformers.AutoTokenizer.from_pretrained(output)
    texts = [*TEXTS, "Ünd <mask> 2\n"]
    ours = enrobe.load(name).tokenizer.encode(texts)
    assert [words(text).input_ids for text in texts] == [tokens.ids.tolist() for tokens in ours]


def test_converted_it_is_what_transformers_computes(models: Path, tmp_path: Path) -> None:
    assert_transformers_agrees("enrobe-tiny", tmp_path / "plain")
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_load_fills_with_no_name(models: Path) -> None:
    (fill,) = enrobe.load().fill("the <mask> sat", top_k=3)
    assert len(fill.masks[0].candidates) == 3


def test_info(models: Path, source: Path) -> None:
    facts = info(None)
    weights = models / "enrobe-tiny" / "model.int8.safetensors"
    assert facts["folder"] == str(models / "enrobe-tiny")
    expected = {"stored": "int8 rows", "computed": "float32", "bytes": weights.stat().st_size}
    assert facts["weights"] == expected
    plain = info(source)
    assert plain["weights"]["stored"] == "floating point"
    assert plain["parameters"] == facts["parameters"]
    # What the file takes is what `memory` foretells, and a header.
    assert 0 < facts["weights"]["bytes"] - facts["memory"]["int8"] < 20_000


# --- packing ------------------------------------------------------------------------------------


def test_packing_says_what_became_of_the_weights(source: Path, tmp_path: Path) -> None:
    said = pack(source, "enrobe-tiny", source / "card.md", tmp_path)
    folder = tmp_path / "enrobe-tiny"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.int8.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in folder.iterdir())
    assert said["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 0.001 < said["worst_relative_error"] < 0.02
    # Once more: a new card, or the one that is there.
    pack(source, "enrobe-tiny", None, tmp_path)
    assert (folder / "README.md").read_text() == "# a card\n"
    assert [path.name for path in tmp_path.iterdir()] == ["enrobe-tiny"]


@pytest.mark.parametrize("damage", ["card", "tokenizer", "head", "weights"])
def test_what_is_not_packed_leaves_the_old_one(damage: str, source: Path, tmp_path: Path) -> None:
    pack(source, "enrobe-tiny", source / "card.md", tmp_path / "models")
    before = {p: p.read_bytes() for p in (tmp_path / "models").rglob("*") if p.is_file()}
    bad = tmp_path / "bad"
    shutil.copytree(source, bad)
    card = bad / "nothing.md" if damage == "card" else None
    if damage == "tokenizer":
        (bad / "tokenizer_config.json").unlink()
    elif damage == "head":
        reference(bad, "roberta", "classify", vocab_size=275)
    elif damage == "weights":
        read = checkpoint.read(source)
        tensors = {name: np.array(tensor) for name, tensor in read.tensors.items()}
        tensors["layers.1.up.weight"][3, 1] = np.nan
        shutil.rmtree(bad)
        checkpoint.write(
            bad, config=read.config, heads=read.heads, tensors=tensors, tokenizer_folder=source
        )
    with pytest.raises((CallError, ModelError)):
        pack(bad, "enrobe-tiny", card, tmp_path / "models")
    after = {p: p.read_bytes() for p in (tmp_path / "models").rglob("*") if p.is_file()}
    assert after == before


def test_the_script_is_one_line_on_a_mistake(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts/pack_builtin.py", tmp_path, "enrobe-tiny"]
    answer = subprocess.run([*command, "--card", tmp_path / "no"], capture_output=True, text=True)
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("pack_builtin: ")


# --- what the package really has ----------------------------------------------------------------


@pytest.mark.parametrize("name", hub.built_in())
def test_a_packed_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = hub.MODELS / name
    assert "licen" in (folder / "README.md").read_text("utf-8").lower()
    assert info(name)["weights"]["stored"] == "int8 rows"
    assert_transformers_agrees(name, tmp_path / "plain")
