"""LoRA: the formula, PEFT's files, the merged model, exact resume."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from torch import nn

import enrobe
from enrobe import checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError
from enrobe.nn.heads import Model
from enrobe.text.ragged import Ragged
from enrobe.train import finetune
from enrobe.train.lora import LoraLinear, LoraTable, adapt, write_adapter
from enrobe.train.recipe import make
from tests.support import random_rows, scaled_error
from tests.train.finetune_toys import (
    equal,
    killed_at,
    labelled,
    model_folder,
    recipe,
    slots_file,
    task,
    tensors,
    two_tasks,
)
from tests.train.toys import join, start

ALL = ("query", "key", "value", "output", "up", "down")


def lora(base: Path, output: Path, tasks: dict[str, Any], **table: Any) -> Any:
    job = recipe(base, output, tasks, epochs=2, lr=0.02)
    from dataclasses import replace

    return replace(job, lora=LoraTable(**{"rank": 3, "alpha": 5, **table}))


def test_a_layer_is_the_formula_and_merges() -> None:
    torch.manual_seed(9)
    plain = nn.Linear(7, 5)
    made = LoraLinear.around(plain, LoraTable(rank=3, alpha=6))
    x = torch.randn(11, 7)
    # B is zero: it starts as the layer that it is around.
    assert torch.equal(made(x), plain(x)) and made.weight is plain.weight
    with torch.no_grad():
        made.lora_b.normal_()
    a, b = made.lora_a.double(), made.lora_b.double()
    expected = x.double() @ (plain.weight.double() + 6 / 3 * b @ a).T + plain.bias.double()
    torch.testing.assert_close(made(x).double(), expected, rtol=1e-5, atol=1e-5)
    merged = torch.nn.functional.linear(x, made.merged, made.bias)
    torch.testing.assert_close(merged, made(x), rtol=1e-5, atol=1e-5)


def test_dropout_is_of_what_goes_into_the_product_alone() -> None:
    torch.manual_seed(9)
    made = LoraLinear.around(nn.Linear(400, 5), LoraTable(rank=3, dropout=0.5))
    x = torch.ones(1, 400)
    before = made(x)
    torch.nn.init.ones_(made.lora_a)
    torch.nn.init.ones_(made.lora_b)
    added = (made(x) - before)[0] / (16 / 3)
    # Three times the sum of 400 entries that are 0 or 2.
    assert 3 * 400 * 0.8 < float(added[0].detach()) < 3 * 400 * 1.2
    assert float(added[0].detach()) != pytest.approx(1200)
    made.eval()
    assert float(((made(x) - before)[0] / (16 / 3))[0].detach()) == pytest.approx(1200, rel=1e-4)


def test_only_thin_matrices_and_heads_move_and_the_result_is_merged(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    tasks = {"mine": task("classify", labelled(tmp_path, "classify"))}
    result = finetune.run(
        lora(base, tmp_path / "run", tasks, targets=("query", "up")), resume=False
    )
    before, after = tensors(base), tensors(result.model)
    moved = {n for n in before.keys() & after.keys() if not np.array_equal(before[n], after[n])}
    assert moved == {f"layers.{n}.{part}.weight" for n in (0, 1) for part in ("query", "up")}
    stored = safetensors.numpy.load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    for n in (0, 1):
        for part, theirs in (("query", "attention.self.query"), ("up", "intermediate.dense")):
            stem = f"base_model.model.roberta.encoder.layer.{n}.{theirs}"
            a, b = stored[f"{stem}.lora_A.weight"], stored[f"{stem}.lora_B.weight"]
            name = f"layers.{n}.{part}.weight"
            np.testing.assert_allclose(after[name], before[name] + 5 / 3 * b @ a, atol=1e-6)
    for part in ("dense", "out_proj"):
        head = stored[f"base_model.model.classifier.{part}.weight"]
        ours = after[f"heads.mine.{'out' if part == 'out_proj' else part}.weight"]
        assert np.array_equal(head, ours)
    assert len(stored) == 8 + 4
    settings = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert (settings["peft_type"], settings["task_type"]) == ("LORA", "SEQ_CLS")
    assert (settings["r"], settings["lora_alpha"]) == (3, 5)
    assert settings["modules_to_save"] == ["classifier"]
    assert settings["base_model_name_or_path"] == str(base)
    assert sorted(path.name for path in result.model.iterdir()) == [
        "README.md",
        "config.json",
        "enrobe.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    theirs_model = transformers.AutoModelForSequenceClassification.from_pretrained(result.model)
    (row,) = random_rows(3, (9,), 283)
    with torch.inference_mode():
        expected = theirs_model.eval()(torch.from_numpy(row)[None]).logits[0].numpy()
    request = enrobe.engines.base.Request(heads=("mine",))  # type: ignore[attr-defined]
    ours = enrobe.load(result.model).engine.run(Ragged.from_rows([row]), request).heads["mine"][0]
    assert scaled_error(ours, expected) < 1e-5


@pytest.mark.parametrize("family", list(DIALECTS))
@pytest.mark.parametrize("kind", [None, "classify", "tag", "answer"])
def test_names_are_those_of_the_familys_modules(family: str, kind: Any, tmp_path: Path) -> None:
    """Every stored name is a module of transformers' model, and the pattern picks those alone."""
    classes = {
        None: transformers.AutoModel,
        "classify": transformers.AutoModelForSequenceClassification,
        "tag": transformers.AutoModelForTokenClassification,
        "answer": transformers.AutoModelForQuestionAnswering,
    }
    types = {"type_vocab_size": 0} if family == "distilbert" else {}
    config = EncoderConfig(
        family=family,
        vocab_size=20,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        intermediate_size=12,
        max_positions=12,
        **{"position_offset": 2 if DIALECTS[family].offset_from_pad else 0, **types},
    )
    labels = {"answer": (), "classify": ("a", "b", "c"), "tag": ("O", "B-x", "I-x")}
    heads = {"mine": HeadConfig(kind=kind, labels=labels[kind])} if kind else {}
    torch.manual_seed(1)
    model = Model(config, heads)
    table = LoraTable(rank=2, targets=ALL)
    adapt(model, table)
    write_adapter(tmp_path / "adapter", model, table, heads=heads, base="x")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    stored = safetensors.numpy.load_file(tmp_path / "adapter/adapter_model.safetensors")
    dialect = DIALECTS[family]
    sizes = {
        dialect.config_keys[k]: getattr(config, k)
        for k in dialect.config_keys
        if k in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size")
    }
    theirs = classes[kind].from_config(
        transformers.AutoConfig.for_model(family, num_labels=2 if kind == "answer" else 3, **sizes)
    )
    modules = dict(theirs.named_modules())
    picked = {n for n in modules if re.fullmatch(settings["target_modules"], n)}
    thin = {n.removeprefix("base_model.model.") for n in stored if "lora_" in n}
    assert thin == {f"{n}.lora_{part}.weight" for n in picked for part in "AB"}
    assert len(picked) == 2 * len(ALL)
    for name in picked:
        linear = modules[name]
        assert isinstance(linear, nn.Linear)
        assert stored[f"base_model.model.{name}.lora_A.weight"].shape == (2, linear.in_features)
        assert stored[f"base_model.model.{name}.lora_B.weight"].shape == (linear.out_features, 2)
    saved = {n.removeprefix("base_model.model.") for n in stored if "lora_" not in n}
    parameters = dict(theirs.named_parameters())
    assert saved <= parameters.keys()
    whole = settings["modules_to_save"] or []
    base = dialect.prefix
    assert saved == {
        n for n in parameters for m in whole if kind and n.removeprefix(base).startswith(f"{m}.")
    }


def test_a_killed_run_ends_bitwise_as_one_that_was_not(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    tasks = two_tasks(slots_file(tmp_path))
    whole, killed = (lora(base, tmp_path / n, tasks, dropout=0.1) for n in ("whole", "killed"))
    expected = finetune.run(whole, resume=False)
    assert join(start(killed_at, killed, False, 3)) == [9]
    result = finetune.run(killed, resume=True)
    assert result.scores == expected.scores and equal(result.model, expected.model)
    files = [tmp_path / n / "adapter/adapter_model.safetensors" for n in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    # Several heads: the adapter is one of the encoder.
    assert all(".lora_" in name for name in safetensors.numpy.load_file(files[0]))
    assert set(checkpoint.read(result.model).heads) == {"intent", "slots"}
    # Another base is another run, though it has the same name.
    other = tmp_path / "other"
    checkpoint.write(
        other,
        config=checkpoint.read(base).config,
        heads={},
        tensors={n: a * 1.5 for n, a in tensors(base).items()},
        tokenizer_folder=base,
    )
    (other / "model.safetensors").replace(base / "model.safetensors")
    with pytest.raises(CallError, match=r"base is \["):
        finetune.run(killed, resume=True)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"lora": {"rank": 0}}, "lora: rank is 0; allowed: 1 or more"),
        ({"lora": {"targets": ["querry"]}}, "targets has 'querry'"),
        ({"lora": {"alpha": 0}}, "alpha is 0"),
        ({"lora": {}, "train": {"freeze": 1}}, "leaves the encoder as it is, and train.freeze"),
    ],
)
def test_a_value_that_is_not_allowed(table: Any, words: str, tmp_path: Path) -> None:
    from enrobe.train.finetune_recipe import FinetuneRecipe

    values = {"output": "r", "tasks": {"x": task("classify", tmp_path / "a.csv")}, **table}
    with pytest.raises(CallError) as caught:
        make(FinetuneRecipe, values)
    assert words in str(caught.value)
