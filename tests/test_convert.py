"""`enrobe convert`: what comes in is right to the last bit, or is refused on one line."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from enrobe import checkpoint, fairseq
from enrobe.convert import Converted, convert
from enrobe.dialects import DIALECTS
from enrobe.errors import CallError, ModelError
from enrobe.text.tokenizer import Tokenizer
from tests.support import SHARED, random_rows, reference, reference_outputs, scaled_error

LENGTHS = (9, 3, 31)
TEXTS = ("The other hen, then.", "Weiß das é? <mask> [MASK] 2 + 2", "", " the\tnine  HENS")

WORDPIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDPIECES += [*"abcdefghijklmnopqrstuvwxyz0123456789.,?+", "the", "other", "hen", "##n", "##s"]
CASED = [*WORDPIECES, "The", "HEN", "##S"]
MERGES = ["Ġ t", "h e", "Ġt he", "he n", "Ġ hen", "o t"]


def byte_pieces() -> list[str]:
    """A vocabulary like GPT-2's, but small: every byte, a few merges, the end of a text."""
    joined = [merge.replace(" ", "") for merge in MERGES]
    return [*sorted(ByteLevel.alphabet()), *joined, "<|endoftext|>"]


def write_gpt2(folder: Path, pieces: list[str], merges: list[str]) -> list[str]:
    """fairseq's three files; the symbols in dict.txt are GPT-2's ids, by frequency."""
    folder.mkdir(exist_ok=True)
    ids = {piece: index for index, piece in enumerate(pieces)}
    order = [str(i) for i in np.random.default_rng(5).permutation(len(pieces))]
    order += ["madeupword0000", "madeupword0001"]
    lines = [f"{symbol} {len(order) - place}\n" for place, symbol in enumerate(order)]
    (folder / "dict.txt").write_text("".join(lines), "utf-8")
    (folder / "encoder.json").write_text(json.dumps(ids), "utf-8")
    (folder / "vocab.bpe").write_text("\n".join(["#version: 0.2", *merges]) + "\n", "utf-8")
    return ["<s>", "<pad>", "</s>", "<unk>", *order, "<mask>"]


def pickled(folder: Path, family: str = "bert", head: str | None = "mlm", **sizes: Any) -> Any:
    """A transformers model saved the old way: pytorch_model.bin, config.json, vocab.txt."""
    sizes.setdefault("vocab_size", len(CASED))
    model = reference(folder, family, head, **sizes)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("\n".join(CASED) + "\n", "utf-8")
    return model


def loaded_by_transformers(folder: Path, cls: Any = transformers.AutoModelForMaskedLM) -> Any:
    model, facts = cls.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not facts["missing_keys"] and not facts["mismatched_keys"]
    return model.eval()


def assert_same_results(original: Any, converted: Any) -> None:
    rows = random_rows(3, LENGTHS, original.config.vocab_size)
    ours, theirs = reference_outputs(converted, rows), reference_outputs(original, rows)
    pairs = zip(ours.hidden + ours.logits, theirs.hidden + theirs.logits, strict=True)
    assert max(scaled_error(a, b) for a, b in pairs) <= 1e-6


def assert_same_ids(folder: Path, words: Tokenizer) -> None:
    """transformers reads the folder's tokenizer as `words` does."""
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        (alone,), (pair,) = words.encode([text]), words.encode([text], ["hen"])
        assert theirs(text).input_ids == alone.ids.tolist()  # type: ignore[union-attr]
        assert theirs(text, "hen").input_ids == pair.ids.tolist()  # type: ignore[union-attr]


def assert_refused(
    source: Path, output: Path, said: str, error: type[Exception] = ModelError
) -> None:
    """One line that says so, and nothing left behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(error, match=re.escape(said)) as caught:
        convert(source, output)
    scratch = os.path.join(tempfile.gettempdir(), "tmp")
    assert "\n" not in str(caught.value) and scratch not in str(caught.value)
    assert sorted(output.parent.iterdir()) == before


# --- transformers' pickles ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_bin_equals_the_original(family: str, tmp_path: Path) -> None:
    model = pickled(tmp_path / "old", family)
    done = convert(tmp_path / "old", tmp_path / "new")
    assert isinstance(done, Converted)
    assert (list(done.heads), done.left_out) == (["mlm"], ())
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))
    words = Tokenizer.from_folder(tmp_path / "old", family)
    assert_same_ids(tmp_path / "new", words)
    assert not list(tmp_path.glob(".*"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert theirs.model_max_length == 512
    assert (theirs.mask_token, theirs.cls_token) == ("[MASK]", "[CLS]")


@pytest.mark.parametrize("head", ["classify", "tag", "answer", None])
def test_bin_of_every_head(head: str | None, tmp_path: Path) -> None:
    classes = {
        "classify": transformers.AutoModelForSequenceClassification,
        "tag": transformers.AutoModelForTokenClassification,
        "answer": transformers.AutoModelForQuestionAnswering,
        None: transformers.AutoModel,
    }
    model = pickled(tmp_path / "old", "bert", head)
    done = convert(tmp_path / "old", tmp_path / "new")
    assert list(done.heads) == ([head] if head else [])
    assert_same_results(model, loaded_by_transformers(tmp_path / "new", classes[head]))


@pytest.mark.parametrize("vocabulary", [CASED, WORDPIECES])
def test_casing_reaches_transformers(vocabulary: list[str], tmp_path: Path) -> None:
    pickled(tmp_path / "old", vocab_size=len(vocabulary))
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
    convert(tmp_path / "old", tmp_path / "new")
    assert_same_ids(tmp_path / "new", Tokenizer.from_folder(tmp_path / "old", "bert"))
    said = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert said["do_lower_case"] is (vocabulary is WORDPIECES)


def test_older_norm_names(tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    state = {
        re.sub(
            r"(LayerNorm)\.weight$", r"\1.gamma", re.sub(r"(LayerNorm)\.bias$", r"\1.beta", n)
        ): t
        for n, t in model.state_dict().items()
    }
    assert sum(name.endswith("gamma") for name in state) == 8
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    assert convert(tmp_path / "old", tmp_path / "new").left_out == ()
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))


def test_wrapped_weights_and_what_is_left_out(tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    state["module.cls.species.weight"] = torch.zeros(6, 56)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old" / "pytorch_model.bin")
    done = convert(tmp_path / "old", tmp_path / "new")
    assert done.left_out == ("epoch", "cls.species.weight")
    assert done.report()[0].startswith(f"wrote {tmp_path / 'new'}: bert, 3 layers of 56")
    assert done.report()[1] == "left out: 'epoch', 'cls.species.weight'"
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))


def test_the_head_of_an_unknown_class(tmp_path: Path) -> None:
    """Two heads that only the tensors reveal: the task's is kept, the other one named."""
    model = pickled(tmp_path / "old", head="answer")
    mlm = reference(tmp_path / "mlm", "bert", "mlm", vocab_size=len(CASED), seed=8)
    state = dict(model.state_dict())
    state |= {name: tensor for name, tensor in mlm.state_dict().items() if name[:4] == "cls."}
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config["architectures"] = ["OwnClass"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    done = convert(tmp_path / "old", tmp_path / "new")
    assert list(done.heads) == ["answer"]
    assert {name.split(".")[1] for name in done.left_out} == {"mlm"}
    found = loaded_by_transformers(tmp_path / "new", transformers.AutoModelForQuestionAnswering)
    assert_same_results(model, found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(tmp_path / "old", tmp_path / "new")
    tensors = checkpoint.read(tmp_path / "new").tensors
    query = state["bert.encoder.layer.1.attention.self.query.weight"].float().numpy()
    assert tensors["layers.1.query.weight"].dtype == np.float32
    assert np.array_equal(tensors["layers.1.query.weight"], query)


def sharded(folder: Path, state: dict[str, torch.Tensor]) -> dict[str, str]:
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    table = {name: f"pytorch_model-{1 + i % 3:05}-of-00003.bin" for i, name in enumerate(names)}
    for shard in set(table.values()):
        torch.save({name: state[name] for name in names if table[name] == shard}, folder / shard)
    return table


def test_sharded_bin(tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    table = sharded(tmp_path / "old", model.state_dict())
    index = tmp_path / "old" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    convert(tmp_path / "old", tmp_path / "new")
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))
    for shard in ("../model.bin", str(tmp_path / "a.bin"), "a.safetensors", "..", "gone.bin", 3):
        index.write_text(json.dumps({"weight_map": {**table, "x": shard}}))
        assert_refused(tmp_path / "old", tmp_path / "bad", "shard '")
    for broken in ("[]", "{}", '{"weight_map": []}', "{"):
        index.write_text(broken)
        assert_refused(tmp_path / "old", tmp_path / "bad", "index.json")


def test_safetensors_are_rewritten_without_torch(tmp_path: Path) -> None:
    model = reference(tmp_path / "old", "bert", "mlm", vocab_size=len(CASED))
    (tmp_path / "old" / "vocab.txt").write_text("\n".join(CASED) + "\n", "utf-8")
    pickled(tmp_path / "bin")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from enrobe.convert import convert; import enrobe\n"
        "convert('old', Path('new'))\n"
        "try: convert('bin', Path('bad'))\n"
        "except enrobe.MissingExtraError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "reading a pickled checkpoint needs PyTorch, which is not installed; "
        "fix: pip install 'enrobe[train]'\n"
    )
    assert not (tmp_path / "bad").exists()
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))


def test_what_a_folder_says_of_pooling_goes_along(tmp_path: Path) -> None:
    pickled(tmp_path / "old", head=None)
    (tmp_path / "old" / "1_Pooling").mkdir()
    for name in ("modules.json", "1_Pooling/config.json", "README.md"):
        (tmp_path / "old" / name).write_text(f'{{"file": "{name}"}}')
    convert(tmp_path / "old", tmp_path / "new")
    for name in ("modules.json", "1_Pooling/config.json"):
        assert json.loads((tmp_path / "new" / name).read_text()) == {"file": name}
    assert not (tmp_path / "new" / "README.md").exists()


# --- what is refused ------------------------------------------------------------------------------


class Hostile:
    """Runs a command when it is unpickled, if anything lets it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_that_runs_code_runs_none(name: str, zipped: bool, tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    (tmp_path / "old" / "pytorch_model.bin").unlink()
    state = {**model.state_dict(), "x": Hostile(tmp_path / "ran")}
    torch.save(state, tmp_path / "old" / name, _use_new_zipfile_serialization=zipped)
    said = f"old: {name}: it names 'posix.system' to be run; only tensors are loaded; fix: "
    assert_refused(tmp_path / "old", tmp_path / "new", said)
    assert not (tmp_path / "ran").exists()


def test_only_fairseq_may_hold_a_record(tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    state = {**model.state_dict(), "args": argparse.Namespace(x=1)}
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    assert_refused(tmp_path / "old", tmp_path / "new", "'argparse.Namespace'")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_short(zipped: bool, tmp_path: Path) -> None:
    model = pickled(tmp_path / "old")
    path = tmp_path / "old" / "pytorch_model.bin"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert_refused(tmp_path / "old", tmp_path / "new", "pytorch_model.bin")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_file_is_an_error_of_ours(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bit here and there: what still loads is float32 and fits, the rest is a ModelError."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    whole = folder / "whole"
    if not whole.exists():
        pickled(folder)
        (folder / "pytorch_model.bin").rename(whole)
    raw = bytearray(whole.read_bytes())
    # The head and the tail hold the pickle and the archive's table.
    places = st.one_of(st.integers(0, 6000), st.integers(len(raw) - 12000, len(raw) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=4)):
        raw[place] = value
    (folder / "pytorch_model.bin").write_bytes(raw)
    output = folder.parent / "from-damaged"
    shutil.rmtree(output, ignore_errors=True)
    try:
        done = convert(folder, output)
    except ModelError:
        assert not output.exists()
    else:
        assert checkpoint.read(output).config == done.config


def test_tensors_that_are_none(tmp_path: Path) -> None:
    state = pickled(tmp_path / "old").state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    path = tmp_path / "old" / "pytorch_model.bin"
    wide = torch.zeros(1).expand(10**6, 10**6)
    for tensor, said in (
        (wide, f"tensor '{name}' claims 1000000000000 elements; the file holds fewer"),
        (torch.zeros(4, 4, device="meta"), "is sparse, quantized or without data"),
        (torch.eye(4).to_sparse(), "is sparse, quantized or without data"),
    ):
        torch.save({**state, name: tensor}, path)
        assert_refused(tmp_path / "old", tmp_path / "new", said)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    pickled(tmp_path / "old")
    path = tmp_path / "old" / "pytorch_model.bin"
    for value, said in (
        ([torch.zeros(2)], "holds list; allowed: a table of tensors"),
        ({"epoch": 3}, "holds no tensors by name"),
        ({"model": {"x": 1}}, "holds no tensors by name"),
        ({3: torch.zeros(2)}, "holds no tensors by name"),
        ({"x": torch.zeros(2)}, "tensors are missing: embeddings.word.weight"),
    ):
        torch.save(value, path)
        assert_refused(tmp_path / "old", tmp_path / "new", said)


def test_calls_that_are_wrong(tmp_path: Path) -> None:
    pickled(tmp_path / "old")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    taken = "exists and is not empty"
    for output in (tmp_path / "full", tmp_path / "full" / "file", tmp_path / "old"):
        assert_refused(tmp_path / "old", output, taken, CallError)
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert_refused(tmp_path / "gone", tmp_path / "new", "no such folder", CallError)
    assert_refused(
        tmp_path / "old" / "pytorch_model.bin", tmp_path / "new", "is a file; allowed", CallError
    )
    assert_refused(tmp_path / "full", tmp_path / "new", "no weights; allowed: model.safetensors")
    (tmp_path / "old" / "vocab.txt").unlink()
    assert_refused(tmp_path / "old", tmp_path / "new", "no tokenizer; allowed: tokenizer.json")
    (tmp_path / "old" / "enrobe.json").write_text("{}")
    assert_refused(tmp_path / "old", tmp_path / "new", "nothing to convert", CallError)


def test_an_empty_folder_may_be_the_output(tmp_path: Path) -> None:
    pickled(tmp_path / "old")
    (tmp_path / "new").mkdir()
    convert(tmp_path / "old", tmp_path / "new")
    assert checkpoint.read(tmp_path / "new").config.family == "bert"


# --- fairseq --------------------------------------------------------------------------------------

ENCODER = "encoder.sentence_encoder."
# transformers' names to fairseq's, in this order.
SPELLING = (
    ("roberta.embeddings.word_embeddings.", ENCODER + "embed_tokens."),
    ("roberta.embeddings.position_embeddings.", ENCODER + "embed_positions."),
    ("roberta.embeddings.LayerNorm.", ENCODER + "layernorm_embedding."),
    ("roberta.encoder.layer.", ENCODER + "layers."),
    (".attention.self.query.", ".self_attn.q_proj."),
    (".attention.self.key.", ".self_attn.k_proj."),
    (".attention.self.value.", ".self_attn.v_proj."),
    (".attention.output.dense.", ".self_attn.out_proj."),
    (".attention.output.LayerNorm.", ".self_attn_layer_norm."),
    (".intermediate.dense.", ".fc1."),
    (".output.dense.", ".fc2."),
    (".output.LayerNorm.", ".final_layer_norm."),
    ("lm_head.decoder.weight", "encoder.lm_head.weight"),
    ("lm_head.dense.", "encoder.lm_head.dense."),
    ("lm_head.layer_norm.", "encoder.lm_head.layer_norm."),
    ("classifier.", "classification_heads.sentence_classification_head."),
)


def fairseq_names(model: Any, *, older: bool = False) -> dict[str, torch.Tensor]:
    """A transformers RoBERTa's tensors as fairseq saves them, in today's spelling or 2019's."""
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if "token_type" in name or name == "lm_head.decoder.bias":
            continue
        for theirs, fairseqs in SPELLING:
            name = name.replace(theirs, fairseqs)
        state["encoder.lm_head.bias" if name == "lm_head.bias" else name] = tensor
    state[ENCODER + "embed_positions._float_tensor"] = torch.zeros(1)
    state[ENCODER + "version"] = torch.tensor([3.0])
    if not older:
        return state
    for i in range(model.config.num_hidden_layers):
        for kind in ("weight", "bias"):
            stem = f"{ENCODER}layers.{i}.self_attn."
            parts = [state.pop(f"{stem}{part}_proj.{kind}") for part in "qkv"]
            state[f"{stem}in_proj_{kind}"] = torch.cat(parts)
    return {
        re.sub("^encoder", "decoder", name.replace("layernorm_embedding", "emb_layer_norm")): tensor
        for name, tensor in state.items()
    }


ARGUMENTS: dict[str, Any] = {
    "arch": "roberta_base",
    "encoder_layers": 3,
    "encoder_embed_dim": 56,
    "encoder_ffn_embed_dim": 72,
    "encoder_attention_heads": 7,
    "max_positions": 512,
    "activation_fn": "gelu",
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "pooler_dropout": 0.4,
    "pooler_activation_fn": "tanh",
}


def write_fairseq(folder: Path, head: str = "mlm", **changes: Any) -> Any:
    """A folder as fairseq publishes them, GPT-2's files included; the transformers original."""
    symbols = write_gpt2(folder, byte_pieces(), MERGES)
    sizes = {"vocab_size": len(symbols), "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    model = reference(folder / "reference", "roberta", head, **sizes)
    with torch.no_grad():
        model.roberta.embeddings.token_type_embeddings.weight.zero_()
    shutil.rmtree(folder / "reference")
    save_fairseq(folder, fairseq_names(model), **changes)
    return model


def save_fairseq(folder: Path, state: dict[str, torch.Tensor], **changes: Any) -> None:
    arguments = argparse.Namespace(**{**ARGUMENTS, **changes})
    record = {"args": arguments, "model": state, "optimizer_history": [{"num_updates": 7}]}
    torch.save(record, folder / "model.pt")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return tmp_path / "old"


@pytest.mark.parametrize("older", [False, True])
def test_fairseq_equals_the_original(older: bool, old: Path, tmp_path: Path) -> None:
    model = write_fairseq(old)
    save_fairseq(old, fairseq_names(model, older=older))
    source = old / "model.pt" if older else old
    done = convert(source, tmp_path / "new")
    assert (list(done.heads), done.left_out, done.ignored_keys) == (["mlm"], (), ())
    assert (done.config.hidden_dropout, done.config.attention_dropout) == (0.2, 0.3)
    assert (done.config.max_tokens, done.config.layer_norm_eps) == (512, 1e-5)
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))
    words = Tokenizer.from_folder(tmp_path / "new", "roberta")
    assert_same_ids(tmp_path / "new", words)
    (row,) = words.encode(["the hen<mask>"])
    symbols = fairseq.read_dictionary(old / "dict.txt")
    gpt2 = json.loads((old / "encoder.json").read_text())
    pieces = [str(gpt2[piece]) for piece in ("t", "he", "Ġhen")]
    assert [symbols[i] for i in row.ids] == ["<s>", *pieces, "<mask>", "</s>"]  # type: ignore[union-attr]


@pytest.mark.parametrize("record", ["dict", "namespace"])
def test_fairseq_with_a_cfg(record: str, old: Path, tmp_path: Path) -> None:
    model = write_fairseq(old)
    arguments = ARGUMENTS if record == "dict" else argparse.Namespace(**ARGUMENTS)
    saved = {"args": None, "cfg": {"common": {"seed": 1}, "model": arguments}}
    torch.save({**saved, "model": fairseq_names(model)}, old / "model.pt")
    convert(old, tmp_path / "new")
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))


def test_fairseq_classification_head(old: Path, tmp_path: Path) -> None:
    model = write_fairseq(old, "classify")
    state = fairseq_names(model)
    state["encoder.lm_head.bias"] = torch.zeros(4)
    state["classification_heads.second.dense.weight"] = torch.zeros(4, 4)
    save_fairseq(old, state)
    done = convert(old, tmp_path / "new")
    assert list(done.heads) == ["classify"]
    assert done.heads["classify"].dropout == done.heads["classify"].input_dropout == 0.4
    assert done.left_out == ("encoder.lm_head.bias", "classification_heads.second.dense.weight")
    found = loaded_by_transformers(
        tmp_path / "new", transformers.AutoModelForSequenceClassification
    )
    assert_same_results(model, found)


def test_fairseq_untied_decoder(old: Path, tmp_path: Path) -> None:
    model = write_fairseq(old)
    state = fairseq_names(model)
    state["encoder.lm_head.weight"] = torch.randn(
        state["encoder.lm_head.weight"].shape, generator=torch.Generator().manual_seed(4)
    )
    save_fairseq(old, state, untie_weights_roberta=True)
    assert convert(old, tmp_path / "new").heads["mlm"].tied is False
    model.lm_head.decoder.weight = torch.nn.Parameter(state["encoder.lm_head.weight"])
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))


def test_fairseq_table_is_one_to_one(old: Path) -> None:
    model = write_fairseq(old)
    config = fairseq.translate(
        {name: tensor.numpy() for name, tensor in fairseq_names(model).items()}, ARGUMENTS
    )
    read = checkpoint.assemble(old, config.settings, config.tensors)
    for head, kind in (("lm_head", "head.mlm."), ("mnli", "head.sequence."), (None, "layers.")):
        pairs = fairseq.names(read.config, head)
        assert len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs})
        assert len(pairs) == len(dict(pairs))
        assert any(ours.startswith(kind) for ours, _ in pairs)
    spelled = {theirs: ours for ours, theirs in fairseq.names(read.config, "lm_head")}
    assert spelled.keys() == {
        name for name in fairseq_names(model) if not name.endswith(("version", "_float_tensor"))
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder_layers": 4}, "encoder_layers is 4, but the tensors have 3"),
        ({"encoder_embed_dim": 64}, "encoder_embed_dim is 64, but the tensors have 56"),
        ({"encoder_ffn_embed_dim": 64.0}, "encoder_ffn_embed_dim is 64.0, but"),
        ({"max_positions": 514}, "max_positions is 514, but the tensors have 512"),
        ({"encoder_attention_heads": None}, "lack encoder_attention_heads"),
        ({"encoder_attention_heads": 5}, "hidden_size 56 is not a multiple of num_heads 5"),
        ({"activation_fn": "relu"}, "activation_fn is 'relu', which is not implemented; allowed"),
        ({"activation_fn": "gelu_fast"}, "activation_fn is 'gelu_fast'"),
        ({"activation_fn": torch.zeros(3)}, "activation_fn is tensor([0., 0., 0.])"),
        ({"encoder_normalize_before": True}, "encoder_normalize_before is True"),
        ({"no_scale_embedding": False}, "no_scale_embedding is False"),
        ({"pooler_activation_fn": "relu"}, "pooler_activation_fn is 'relu'"),
        ({"dropout": "much"}, "dropout"),
    ],
)
def test_fairseq_arguments_are_checked(
    change: dict[str, Any], said: str, old: Path, tmp_path: Path
) -> None:
    write_fairseq(old, **change)
    assert_refused(old, tmp_path / "new", said)


def test_fairseq_tensors_are_checked(old: Path, tmp_path: Path) -> None:
    state = fairseq_names(write_fairseq(old))
    first = ENCODER + "layers.0.fc1.weight"
    for change, said in (
        ({ENCODER + "layer_norm.weight": torch.ones(56)}, "1 tensors of fairseq's encoder are not"),
        ({ENCODER + "embed_tokens.weight": torch.ones(5)}, "has shape (5,), not a matrix's"),
        ({ENCODER + "layers.2.fc2.bias": torch.ones(5)}, "output.dense.bias has shape (5,)"),
        ({ENCODER + "layers.9.fc2.bias": torch.ones(5)}, "encoder_layers is 3, but"),
        ({ENCODER + "layers.1.self_attn.in_proj_bias": torch.ones(5)}, "not three parts"),
        ({first: None}, f"'{first}' is missing; not a RoBERTa of fairseq"),
        ({ENCODER + "layers.0.fc1.bias": None}, "1 tensors are missing: layers.0.up.bias"),
    ):
        changed = {
            name: tensor for name, tensor in {**state, **change}.items() if tensor is not None
        }
        save_fairseq(old, changed)
        assert_refused(old, tmp_path / "new", said)
    torch.save({"model": state}, old / "model.pt")
    assert_refused(old, tmp_path / "new", "no args and no cfg with a model; not fairseq's")


def test_fairseq_with_omegaconf(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = fairseq_names(write_fairseq(old))
    module = types.ModuleType("omegaconf.dictconfig")
    cls = type("DictConfig", (), {"__module__": "omegaconf.dictconfig"})
    module.DictConfig = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    torch.save({"cfg": cls(), "model": state}, old / "model.pt")
    assert_refused(old, tmp_path / "new", "fix: save it again with OmegaConf.to_container(cfg)")


def test_fairseq_dictionary_is_checked(old: Path, tmp_path: Path) -> None:
    write_fairseq(old)
    path, plain = old / "dict.txt", (old / "dict.txt").read_text("utf-8")
    for text, said in (
        (plain + "madeupword0002 0\n", "dict.txt gives 271 symbols; the checkpoint has 270"),
        (plain.replace("\n", "\n12 3\n", 1) + "12 3\n", "line"),
        (plain + "oops\n", "line 266: 'oops'; allowed: a new symbol and its count"),
        (plain.replace("madeupword0000 ", "the "), "dict.txt: 'the' is no id of encoder.json"),
        (plain.partition("\n")[2], "dict.txt lacks 1 of encoder.json's pieces; fix: name a folder"),
    ):
        path.write_text(text, "utf-8")
        assert_refused(old, tmp_path / "new", said)
    path.write_bytes(b"\xff\xfe 3\n")
    assert_refused(old, tmp_path / "new", "dict.txt cannot be read")
    path.unlink()
    assert_refused(old, tmp_path / "new", "no dict.txt beside the checkpoint; fix: put it there")
    path.write_text(plain, "utf-8")
    (old / "vocab.bpe").write_text("#version: 0.2\nx y z w\n")
    assert_refused(old, tmp_path / "new", "tokenizer files are damaged")
    (old / "vocab.bpe").unlink()
    assert_refused(old, tmp_path / "new", "no vocab.bpe: a tokenizer is built from dict.txt")


def test_fairseq_with_a_tokenizer_from_elsewhere(old: Path, tmp_path: Path) -> None:
    model = write_fairseq(old)
    convert(old, tmp_path / "whole")
    (old / "vocab.bpe").unlink()
    convert(old, tmp_path / "new", tokenizer=tmp_path / "whole")
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))
    assert_same_ids(tmp_path / "new", Tokenizer.from_folder(tmp_path / "whole", "roberta"))
    lines = (old / "dict.txt").read_text("utf-8")
    (old / "dict.txt").write_text(lines.partition("\n")[2], "utf-8")
    with pytest.raises(ModelError, match="<mask> has id 269, not dict"):
        convert(old, tmp_path / "bad", tokenizer=tmp_path / "whole")
    (old / "dict.txt").unlink()
    state = fairseq_names(model)
    for name in (ENCODER + "embed_tokens.weight", "encoder.lm_head.weight", "encoder.lm_head.bias"):
        state[name] = state[name][:200]
    save_fairseq(old, state)
    with pytest.raises(ModelError, match="id 269 is not among the 200 rows"):
        convert(old, tmp_path / "bad", tokenizer=tmp_path / "whole")
    assert not (tmp_path / "bad").exists()


def test_fairseq_with_sentencepieces_is_xlm_roberta(old: Path, tmp_path: Path) -> None:
    model = write_fairseq(old)
    rows = model.config.vocab_size
    pieces = [[name, 0.0] for name in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces += [["▁the", -2.0], ["▁", -3.0], ["hen", -3.0], *([f"x{i}", -9.0] for i in range(262))]
    pieces += [["<mask>", 0.0]]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    state = {
        "added_tokens": [
            {"id": i, "content": name, "special": True, **special, "lstrip": name == "<mask>"}
            for i, (name, _) in enumerate(pieces)
            if str(name)[0] == "<"
        ],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }
    assert len(pieces) == rows
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(state), "utf-8")
    done = convert(old, tmp_path / "new", tokenizer=tmp_path / "words")
    assert done.config.family == "xlm-roberta"
    assert_same_results(model, loaded_by_transformers(tmp_path / "new"))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(raw=st.one_of(st.binary(max_size=80), st.text(max_size=40).map(str.encode)))
def test_any_dictionary_is_read_or_refused(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "dict.txt"
    path.write_bytes(raw)
    try:
        symbols = fairseq.read_dictionary(path)
    except ModelError:
        return
    assert symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(set(symbols)) == len(symbols) and "<mask>" in symbols


def test_fairseq_with_the_real_vocabulary(old: Path, tmp_path: Path) -> None:
    """From GPT-2's files and a dictionary in roberta-base's order comes its exact tokenizer."""
    real = SHARED / "tokenizers" / "roberta-base"
    if not (real / "vocab.json").is_file():
        pytest.skip("needs roberta-base's vocab.json and merges.txt beside $ENROBE_DATA")
    vocab = json.loads((real / "vocab.json").read_text("utf-8"))
    own = {"<s>", "<pad>", "</s>", "<unk>", "<mask>"}
    pieces = [piece for piece in vocab if piece not in own and not piece.startswith("madeup")]
    gpt2 = {piece: i for i, piece in enumerate(sorted(pieces))}
    old.mkdir()
    (old / "encoder.json").write_text(json.dumps(gpt2))
    shutil.copyfile(real / "merges.txt", old / "vocab.bpe")
    by_id = sorted((i, piece) for piece, i in vocab.items() if piece not in own)
    (old / "dict.txt").write_text(
        "".join(f"{gpt2.get(piece, piece)} {50265 - i}\n" for i, piece in by_id)
    )
    sizes = {"vocab_size": 50265, "type_vocab_size": 1, "num_layers": 1}
    model = reference(old / "reference", "roberta", "mlm", **sizes)
    save_fairseq(old, fairseq_names(model), encoder_layers=1)
    convert(old, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "vocab.json").read_text("utf-8")) == vocab
    words = Tokenizer.from_folder(real, "roberta")
    assert_same_ids(tmp_path / "new", words)
    (row,) = words.encode(["Hello world"])
    assert row.ids.tolist() == [0, 31414, 232, 2]  # type: ignore[union-attr]
    assert DIALECTS["roberta"].tokenizer_class == "RobertaTokenizer"
