import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enrobe import checkpoint
from enrobe.atomic import new_folder
from enrobe.config import HEAD_KINDS, SEQUENCE_KINDS, EncoderConfig, HeadConfig
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, EnrobeError, ModelError
from enrobe.settings import read_config, write_config
from tests.support import (
    FAMILIES,
    HEADS,
    random_rows,
    reference,
    reference_outputs,
    scaled_error,
)

SIZES: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 3,
    "intermediate_size": 20,
}


def small(folder: Path, family: str = "bert", head: str | None = "mlm", **more: Any) -> Path:
    reference(folder, family, head, seed=3, **{**SIZES, "max_positions": 24, **more})
    return folder


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, rename: dict[str, str]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({rename.get(k, k): v for k, v in tensors.items()}, path)


# --- both ways ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", [None, *HEADS])
def test_saved_here_loads_in_transformers_and_back(
    family: str, head: str | None, tmp_path: Path
) -> None:
    model = reference(tmp_path / "theirs", family, head, seed=5)
    read = checkpoint.read(tmp_path / "theirs")
    assert not read.unexpected
    checkpoint.write(tmp_path / "ours", config=read.config, heads=read.heads, tensors=read.tensors)
    again = checkpoint.read(tmp_path / "ours")
    assert (again.config, again.heads) == (read.config, read.heads)
    assert not again.ignored_keys
    assert again.tensors.keys() == read.tensors.keys()
    for name, tensor in read.tensors.items():
        assert (again.tensors[name] == tensor).all(), name
    loaded, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    if head in (*SEQUENCE_KINDS, "tag"):
        assert loaded.config.problem_type == model.config.problem_type
        assert loaded.config.id2label == model.config.id2label
    rows = random_rows(6, (9, 4), 97)
    ours, theirs = reference_outputs(loaded.eval(), rows), reference_outputs(model, rows)
    for a, b in zip(ours.hidden + ours.logits, theirs.hidden + theirs.logits, strict=True):
        assert scaled_error(a, b) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_decoder_of_its_own(family: str, tmp_path: Path) -> None:
    model = reference(tmp_path / "a", family, "mlm", seed=7, tie_word_embeddings=False)
    read = checkpoint.read(tmp_path / "a")
    assert not read.heads["mlm"].tied
    checkpoint.write(tmp_path / "b", config=read.config, heads=read.heads, tensors=read.tensors)
    loaded = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "b").eval()
    rows = random_rows(8, (6,), 97)
    ours, theirs = reference_outputs(loaded, rows), reference_outputs(model, rows)
    assert scaled_error(ours.logits[0], theirs.logits[0]) <= 1e-5


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_configurations_come_back(family: str, kind: str) -> None:
    settings_ = write_config(
        EncoderConfig(
            family=family,
            vocab_size=50,
            hidden_size=12,
            num_layers=2,
            num_heads=3,
            intermediate_size=20,
            max_positions=30,
            position_offset=4 if family == "roberta" else 0,
            type_vocab_size=0 if family == "distilbert" else 3,
            pad_id=3,
            layer_norm_eps=1e-12 if family == "distilbert" else 1e-6,
            hidden_dropout=0.2,
            attention_dropout=0.3,
            initializer_range=0.04,
        ),
        HeadConfig(kind=kind, labels=("x", "y") if kind not in ("mlm", "answer") else ()),  # type: ignore[arg-type]
    )
    reading = read_config(settings_)
    assert write_config(reading.encoder, reading.head) == settings_
    assert not reading.ignored_keys


# --- spellings ----------------------------------------------------------------------------------


def test_legacy_norms_and_missing_prefix(tmp_path: Path) -> None:
    small(tmp_path)
    expected = checkpoint.read(tmp_path).tensors
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    legacy = {
        name: name.removeprefix("bert.")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
        for name in names
    }
    edit_tensors(tmp_path, legacy)
    found = checkpoint.read(tmp_path).tensors
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in expected)


def test_a_prefix_on_an_encoder_without_head(tmp_path: Path) -> None:
    small(tmp_path, "roberta", None)
    names = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    edit_tensors(tmp_path, {name: f"roberta.{name}" for name in names})
    assert "pooler.weight" in checkpoint.read(tmp_path).tensors


def test_an_unknown_class_is_read_by_its_tensors(tmp_path: Path) -> None:
    small(tmp_path)
    edit(tmp_path, architectures=["SomebodysOwn"], species_count=6)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | {"cls.species.bias": np.zeros(6, np.float32)}
    safetensors.numpy.save_file(tensors, path)
    read = checkpoint.read(tmp_path)
    assert list(read.heads) == ["mlm"]
    assert read.unexpected == ("cls.species.bias",)
    assert read.ignored_keys == ("species_count",)


def test_buffers_are_not_unexpected(tmp_path: Path) -> None:
    small(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["bert.embeddings.position_ids"] = np.arange(24).reshape(1, 24)
    safetensors.numpy.save_file(tensors, path)
    assert checkpoint.read(tmp_path).unexpected == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    small(tmp_path)
    read = {name: np.array(t) for name, t in checkpoint.read(tmp_path).tensors.items()}
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    narrow = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    safetensors.torch.save_file(narrow, tmp_path / "model.safetensors")
    for name, tensor in checkpoint.read(tmp_path).tensors.items():
        assert tensor.dtype == np.float32
        expected = torch.from_numpy(read[name]).to(dtype).float().numpy()
        assert (tensor == expected).all()


def test_shards(tmp_path: Path) -> None:
    small(tmp_path)
    expected = checkpoint.read(tmp_path).tensors
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    found = checkpoint.read(tmp_path / "sharded").tensors
    assert all((found[name] == expected[name]).all() for name in expected)


# --- refused ------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        checkpoint.read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    small(tmp_path)
    edit_tensors(tmp_path, {"bert.encoder.layer.1.output.dense.bias": "elsewhere"})
    assert "layers.1.down.bias" in refusal(tmp_path)
    small(tmp_path / "b")
    edit(tmp_path / "b", vocab_size=42)
    assert "embeddings.word_embeddings.weight has shape (41, 12)" in refusal(tmp_path / "b")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "modernbert"}, "allowed: roberta"),
        ({"model_type": "robertta"}, "did you mean 'roberta'"),
        ({"model_type": ["bert"]}, "allowed: roberta"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"hidden_act": "gelu_new"}, "allowed: 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"num_hidden_layers": 10**9}, "num_layers"),
        ({"num_hidden_layers": "2"}, "num_layers is '2'"),
        ({"num_hidden_layers": True}, "num_layers"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout"),
        ({"max_position_embeddings": 2}, "max_positions"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"0": "a"}}, "missing"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"7": "a"}}, "id2label"),
        ({"architectures": ["BertForTokenClassification"], "id2label": {"a": "a"}}, "id2label"),
        ({"architectures": ["BertForTokenClassification"], "id2label": [1]}, "id2label"),
    ],
)
def test_configurations_that_are_refused(
    changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    small(tmp_path)
    edit(tmp_path, **changes)
    assert said in refusal(tmp_path)


def test_nothing_in_a_folder_names_code(tmp_path: Path) -> None:
    small(tmp_path)
    edit(tmp_path, auto_map={"AutoModel": "evil.Model"}, custom_pipelines={"x": {"impl": "os"}})
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    assert checkpoint.read(tmp_path).ignored_keys == ("auto_map", "custom_pipelines")


def test_no_folder_no_config_no_weights(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "config.json" in refusal(tmp_path)
    small(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert "enrobe convert" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert "no weights" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"a": NaN', "[" * 100_000, "\x00\x01"])
def test_damaged_configurations(content: str, tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "config.json").write_text(content)
    refusal(tmp_path)


def test_an_oversized_configuration_is_not_read(tmp_path: Path) -> None:
    small(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**33)
    assert "larger than" in refusal(tmp_path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = small(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refusal(tmp_path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 3000), value=st.integers(0, 255))
def test_a_damaged_byte_never_crashes(
    place: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = _damaged(tmp_path_factory)
    path = folder / "model.safetensors"
    whole = (folder / "whole").read_bytes()
    path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    # Any other error, or a crash, fails; a byte inside a tensor goes unseen.
    with suppress(EnrobeError):
        checkpoint.read(folder)


_FOLDER: list[Path] = []


def _damaged(factory: pytest.TempPathFactory) -> Path:
    if not _FOLDER:
        folder = small(factory.mktemp("damaged"))
        (folder / "whole").write_bytes((folder / "model.safetensors").read_bytes())
        _FOLDER.append(folder)
    return _FOLDER[0]


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_cannot_point_outside(shard: str, tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    index = {"weight_map": {"x": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "shard" in refusal(tmp_path)


# --- writing ------------------------------------------------------------------------------------


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    read = checkpoint.read(small(tmp_path / "a"))
    with pytest.raises(CallError, match="not empty"):
        checkpoint.write(tmp_path / "a", config=read.config, heads=read.heads, tensors=read.tensors)
    (tmp_path / "file").write_text("")
    with pytest.raises(CallError):
        checkpoint.write(
            tmp_path / "file", config=read.config, heads=read.heads, tensors=read.tensors
        )


def test_all_of_a_folder_or_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "out") as work:
            (work / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CallError), new_folder(tmp_path / "a" / "b"):
        pass


def test_dialects_tables_do_not_collide() -> None:
    for dialect in DIALECTS.values():
        theirs = [name for _, name in (*dialect.encoder, *dialect.layer)]
        ours = [name for name, _ in (*dialect.encoder, *dialect.layer)]
        assert len(set(theirs)) == len(theirs)
        assert len(set(ours)) == len(ours)
