"""What a sentence-transformers folder says, in each spelling, and what it must not say."""

import contextlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe.errors import ModelError
from enrobe.sentence_folder import (
    Dense,
    SentenceSettings,
    read_sentence_settings,
    write_sentence_settings,
)
from tests.tasks.toys import sentence_files, write

MEAN = {"pooling_mode_mean_tokens": True}


def test_a_folder_without_modules_has_the_defaults(tmp_path: Path) -> None:
    found = read_sentence_settings(tmp_path)
    assert (found.pool, found.steps, found.max_tokens) == (("mean",), (), None)
    assert (found.prompts, found.default_prompt, found.similarity) == ({}, "", "cosine")


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (MEAN, ("mean",)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        (
            {
                "pooling_mode_mean_sqrt_len_tokens": True,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": True,
                "pooling_mode_cls_token": True,
                "pooling_mode_lasttoken": False,
            },
            ("cls", "max", "mean", "mean_sqrt_len"),
        ),
        ({}, ("mean",)),
        ({"pooling_mode": "cls"}, ("cls",)),
        ({"pooling_mode": ["mean_sqrt_len_tokens", "cls"]}, ("mean_sqrt_len", "cls")),
        # The newer key counts where both stand.
        ({"pooling_mode": "max", **MEAN}, ("max",)),
    ],
)
def test_poolings(pooling: dict[str, Any], expected: tuple[str, ...], tmp_path: Path) -> None:
    sentence_files(tmp_path, pooling)
    assert read_sentence_settings(tmp_path).pool == expected


def test_today_s_spelling(tmp_path: Path) -> None:
    sentence_files(tmp_path, {"pooling_mode": "cls", "include_prompt": False}, ("Normalize",))
    modules = json.loads((tmp_path / "modules.json").read_text())
    where = ("base.modules.transformer", "sentence_transformer.modules.pooling")
    for module, middle in zip(modules, (*where, "base.modules.normalize"), strict=True):
        kind = module["type"].rsplit(".", 1)[-1]
        module["type"] = f"sentence_transformers.{middle}.{kind}"
    write(tmp_path / "modules.json", modules)
    write(tmp_path / "2_Normalize/config.json", {"module_input_name": "sentence_embedding"})
    (tmp_path / "sentence_bert_config.json").unlink()
    task = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    write(tmp_path / "sentence_roberta_config.json", task)
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 128})
    names = {"query": "query: ", "document": None}
    write(
        tmp_path / "config_sentence_transformers.json",
        {"prompts": names, "default_prompt_name": None, "truncate_dim": 9},
    )
    found = read_sentence_settings(tmp_path)
    assert (found.pool, found.include_prompt, found.steps) == (("cls",), False, ("normalize",))
    assert (found.max_tokens, found.truncate_dim, found.default_prompt) == (128, 9, "")
    assert found.prompts == {"query": "query: ", "document": ""}


@pytest.mark.parametrize("value", [int(1e30), None, "512", 0])
def test_a_tokenizer_without_a_limit(value: object, tmp_path: Path) -> None:
    sentence_files(tmp_path, MEAN)
    write(tmp_path / "tokenizer_config.json", {"model_max_length": value})
    assert read_sentence_settings(tmp_path).max_tokens is None


def dense(folder: Path, **changes: object) -> None:
    folder.mkdir(exist_ok=True)
    named = "torch.nn.modules.linear.Identity"
    settings = {"in_features": 3, "out_features": 2, "bias": True, "activation_function": named}
    write(folder / "config.json", {**settings, **changes})
    tensors = {"linear.weight": np.ones((2, 3), np.float32), "linear.bias": np.ones(2, np.float32)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_a_dense_layer(tmp_path: Path) -> None:
    sentence_files(tmp_path, MEAN, ("Dense",))
    dense(tmp_path / "2_Dense")
    (step,) = read_sentence_settings(tmp_path).steps
    assert isinstance(step, Dense) and step.activation == "Identity"
    assert step.weight.shape == (2, 3) and step.bias is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "torch.nn.modules.activation.GELU"}, "allowed: Identity, ReLU"),
        ({"activation_function": "os.system.Tanh"}, "activation_function 'os.system.Tanh'"),
        ({"use_residual": True}, "use_residual is true"),
        ({"module_input_name": "token_embeddings"}, "allowed: sentence_embedding"),
        ({"out_features": 4}, r"linear.weight is of shape \(2, 3\); config.json asks for \(4, 3\)"),
        ({"bias": False}, r"linear.bias is of shape \(2,\); config.json says bias False"),
    ],
)
def test_dense_layers_that_are_refused(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    sentence_files(tmp_path, MEAN, ("Dense",))
    dense(tmp_path / "2_Dense", **changes)
    with pytest.raises(ModelError, match=said):
        read_sentence_settings(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    sentence_files(tmp_path, MEAN, ("Dense",))
    dense(tmp_path / "2_Dense")
    (tmp_path / "2_Dense/model.safetensors").unlink()
    (tmp_path / "2_Dense/pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=r"2_Dense: no model\.safetensors; pickled weights"):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("modules.json", {}, "modules.json: allowed: a list of objects"),
        ("modules.json", [], "modules none; allowed: Transformer, Pooling, then"),
        ("1_Pooling/config.json", [], "1_Pooling/config.json: holds list"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, "pooling_mode is 'attention'"),
        ("1_Pooling/config.json", {"pooling_mode": []}, "pooling_mode is"),
        ("1_Pooling/config.json", {"pooling_mode_lasttoken": True}, "pooling_mode_lasttoken"),
        ("1_Pooling/config.json", {"include_prompt": "no"}, "include_prompt is 'no'"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length is -1"),
        ("sentence_bert_config.json", {"do_lower_case": 1}, "do_lower_case is 1"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "feature-extraction"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts is"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts is"),
        ("config_sentence_transformers.json", {"default_prompt_name": "a"}, "there are no prompts"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "maxsim"}, "allowed: cosine"),
        ("config_sentence_transformers.json", {"truncate_dim": 1.5}, "truncate_dim is 1.5"),
    ],
)
def test_values_that_are_refused(name: str, value: object, said: str, tmp_path: Path) -> None:
    sentence_files(tmp_path, MEAN)
    write(tmp_path / name, value)
    with pytest.raises(ModelError, match=said) as caught:
        read_sentence_settings(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (0, {"type": "sentence_transformers.models.WordEmbeddings"}, "allowed: Transformer"),
        (0, {"type": "custom_st.Transformer"}, "module 'custom_st.Transformer'"),
        (0, {"path": "0_Transformer"}, "stands in 0_Transformer"),
        (1, {"type": "sentence_transformers.models.Normalize"}, "modules Transformer, Normalize"),
        (1, {"path": "../1_Pooling"}, "allowed: a name in the folder"),
        (1, {"path": ".."}, "allowed: a name in the folder"),
        (1, {"path": "/etc"}, "allowed: a name in the folder"),
        (1, {"path": 5}, "path 5"),
    ],
)
def test_modules_that_are_refused(
    number: int, change: dict[str, object], said: str, tmp_path: Path
) -> None:
    sentence_files(tmp_path, MEAN)
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[number].update(change)
    write(tmp_path / "modules.json", modules)
    with pytest.raises(ModelError, match=said):
        read_sentence_settings(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
KEYS = st.sampled_from(
    [
        "pooling_mode",
        "pooling_mode_cls_token",
        "include_prompt",
        "max_seq_length",
        "do_lower_case",
        "prompts",
        "default_prompt_name",
        "similarity_fn_name",
        "truncate_dim",
        "transformer_task",
        "bias",
        "in_features",
        "out_features",
        "activation_function",
        "path",
        "type",
    ]
)
FILES = st.sampled_from(
    [
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "2_Dense/model.safetensors",
    ]
)


@given(
    name=FILES,
    value=st.dictionaries(KEYS, JSON).map(json.dumps).map(str.encode)
    | st.lists(st.dictionaries(KEYS, JSON), max_size=3).map(json.dumps).map(str.encode)
    | st.binary(max_size=64),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_a_file_holds_it_is_read_or_refused(
    name: str, value: bytes, tmp_path: Path
) -> None:
    sentence_files(tmp_path, MEAN, ("Dense",))
    dense(tmp_path / "2_Dense")
    (tmp_path / name).write_bytes(value)
    # Any other error is a failure.
    with contextlib.suppress(ModelError):
        read_sentence_settings(tmp_path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    steps = (
        Dense(weight=weight, bias=None, activation="Identity"),
        "normalize",
        Dense(weight=weight[:, :2], bias=weight[:, 0], activation="Tanh"),
    )
    given = SentenceSettings(
        pool=("cls", "mean"),
        include_prompt=False,
        steps=steps,  # type: ignore[arg-type]
        max_tokens=17,
        prompts={"query": "query: ", "none": ""},
        default_prompt="query: ",
        similarity="dot",
        truncate_dim=1,
    )
    write_sentence_settings(tmp_path, given, width=3)
    found = read_sentence_settings(tmp_path)
    for name in vars(given):
        if name != "steps":
            assert getattr(found, name) == getattr(given, name), name
    first, middle, last = found.steps
    assert isinstance(first, Dense) and middle == "normalize" and isinstance(last, Dense)
    assert np.array_equal(first.weight, weight) and first.bias is None
    assert first.activation == "Identity" and last.activation == "Tanh"
    assert last.bias is not None and np.array_equal(last.bias, weight[:, 0])


def test_the_defaults_are_written_and_read_again(tmp_path: Path) -> None:
    write_sentence_settings(tmp_path, SentenceSettings(), width=3)
    assert vars(read_sentence_settings(tmp_path)) == vars(SentenceSettings())
