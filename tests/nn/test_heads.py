"""Heads and the model: parity with transformers in values and gradients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from enrobe import checkpoint
from enrobe.config import HeadConfig
from enrobe.dialects import checkpoint_names
from enrobe.nn.heads import Model
from tests.nn.test_encoder import HEADS, SIZES, inputs, rows_of, small
from tests.support import (
    FAMILIES,
    FIRST_ID,
    Array,
    log_softmax,
    padded,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)
from tests.support import HEADS as KINDS

LENGTHS = (3, 512, 1, 17, 3)


def flat(logits: list[Array]) -> Array:
    """Answers a row, or rows of answers end to end."""
    return np.stack(logits) if logits[0].ndim == 1 else np.concatenate(logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_head_equals_transformers(family: str, kind: str, tmp_path: Path) -> None:
    seed = 10 * FAMILIES.index(family) + KINDS.index(kind)
    print(f"seed {seed}")
    model = reference(tmp_path / "model", family, kind, seed=seed)
    ours = Model.from_checkpoint(checkpoint.read(tmp_path / "model")).eval()
    rows = random_rows(seed, LENGTHS, ours.config.vocab_size)
    types = random_types(seed, LENGTHS)
    theirs = flat(reference_outputs(model, rows, types).logits)
    everywhere = np.arange(sum(LENGTHS))
    with torch.inference_mode():
        answers = ours(*inputs(rows, types), heads=[kind], at=everywhere)
    logits = answers.heads[kind].numpy()
    assert not answers.hidden
    assert scaled_error(logits, theirs) <= 1e-5
    if kind == "mlm":
        assert scaled_error(log_softmax(logits), log_softmax(theirs)) <= 1e-5


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert"])
def test_untied_decoder_equals_transformers(family: str, tmp_path: Path) -> None:
    model = reference(tmp_path / "model", family, "mlm", seed=3, tie_word_embeddings=False)
    read = checkpoint.read(tmp_path / "model")
    assert not read.heads["mlm"].tied
    ours = Model.from_checkpoint(read).eval()
    rows = random_rows(3, LENGTHS, ours.config.vocab_size)
    theirs = flat(reference_outputs(model, rows).logits)
    at = np.arange(sum(LENGTHS))
    with torch.inference_mode():
        logits = ours(*inputs(rows), heads=["mlm"], at=at).heads["mlm"]
    assert scaled_error(logits, theirs) <= 1e-5


def masked_loss(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    return F.cross_entropy(logits_MV, targets_M, reduction="sum") / len(targets_M)


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_gradients_equal_the_padded_reference(family: str, tmp_path: Path) -> None:
    seed = 21
    print(f"seed {seed}")
    model: Any = reference(tmp_path / "model", family, "mlm", seed=seed)
    ours = Model.from_checkpoint(checkpoint.read(tmp_path / "model")).eval()
    lengths = (3, 512, 1, 17, 3)
    rows, types = random_rows(seed, lengths, 97), random_types(seed, lengths)
    generator = np.random.default_rng(seed)
    at = np.flatnonzero(generator.random(sum(lengths)) < 0.15)
    targets = torch.from_numpy(generator.integers(FIRST_ID, 97, len(at)))

    masked_loss(ours(*inputs(rows, types), heads=["mlm"], at=at).heads["mlm"], targets).backward()
    block = padded(model, rows, types)
    theirs = model(**block).logits[block["attention_mask"].bool()][at]
    masked_loss(theirs, targets).backward()

    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    compared = 0
    names = dict(checkpoint_names(ours.config, ours.head_configs["mlm"]))
    for name, parameter in ours.named_parameters():
        gradient = wanted[names[name.replace("heads.mlm.", "head.mlm.")]]
        assert parameter.grad is not None, name
        assert scaled_error(parameter.grad, gradient) <= 1e-5, name
        # Gradients are small, so on their own scale too.
        assert float((parameter.grad - gradient).abs().max()) <= 1e-5 * largest, name
        compared += 1
    assert compared == len(wanted)


def test_masked_lm_at_positions_equals_decoding_everywhere() -> None:
    torch.manual_seed(1)
    model = Model(small(initializer_range=0.2), HEADS).eval()
    batch = rows_of(1)
    at = np.array([1, 4, 5, 30, 33])
    with torch.inference_mode():
        everywhere = model(*batch, heads=["mlm"], at=np.arange(len(batch[0])), layers=[3])
        confined = model(*batch, heads=["mlm"], at=at)
    assert confined.heads["mlm"].shape == (len(at), SIZES.vocab_size)
    assert scaled_error(confined.heads["mlm"], everywhere.heads["mlm"][at]) <= 5e-6


def test_several_heads_in_one_pass_equal_each_alone() -> None:
    torch.manual_seed(2)
    model = Model(small(initializer_range=0.2), HEADS).eval()
    batch = rows_of(2)
    at = np.array([3, 9, 36])
    with torch.inference_mode():
        alone = {name: model(*batch, heads=[name], at=at).heads[name] for name in HEADS}
        for names in (list(HEADS), ["mlm", "topic"], ["topic", "own"], ["slots", "mlm"]):
            together = model(*batch, heads=names, at=at)
            assert list(together.heads) == names and not together.hidden
            for name in names:
                assert scaled_error(together.heads[name], alone[name]) <= 5e-6


def test_last_layer_runs_at_the_read_positions_alone() -> None:
    model = Model(SIZES, HEADS).eval()
    batch = rows_of(3)
    sizes = []
    model.layers[2].register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    at = np.array([3, 9, 36])
    with torch.inference_mode():
        model(*batch, heads=["topic"])
        model(*batch, heads=["mlm"], at=at)
        model(*batch, heads=["mlm", "topic"], at=at)  # one mask is a first token
        model(*batch, heads=["topic", "slots"])
        model(*batch, heads=["topic"], layers=[3])
    assert sizes == [4, 3, 6, 37, 37]


def test_heads_that_are_not_asked_for_are_not_run() -> None:
    model = Model(SIZES, HEADS)
    for name in set(HEADS) - {"topic"}:
        model.heads[name].register_forward_hook(lambda *_: pytest.fail("a head was run"))
    answers = model(*rows_of(4), heads=["topic"], layers=[1])
    assert list(answers.heads) == ["topic"] and list(answers.hidden) == [1]


def test_masked_lm_without_positions_is_caught() -> None:
    with pytest.raises(AssertionError):
        Model(SIZES, HEADS)(*rows_of(5), heads=["mlm"])


@pytest.mark.parametrize("name", ["type", "train", "keys", "training", "heads", "a b", "мама"])
def test_any_name_will_do_for_a_head(name: str) -> None:
    model = Model(SIZES, {name: HEADS["topic"]})
    other = Model(SIZES, {name: HEADS["topic"]}).train()
    other.load_state_dict(model.state_dict())
    assert not other.eval().training
    batch = rows_of(6)
    first, second = (each(*batch, heads=[name]).heads[name] for each in (model.eval(), other))
    assert torch.equal(first, second)


def test_dropouts_of_a_sequence_head_stand_where_published() -> None:
    nearly_all = 1 - 1e-9
    batch = rows_of(7)
    config = small(hidden_dropout=0.0, attention_dropout=0.0, initializer_range=0.2)

    def logits(**dropouts: float) -> Tensor:
        torch.manual_seed(7)
        head = HeadConfig(kind="classify", labels=("a", "b"), **{"dropout": 0.0, **dropouts})
        model = Model(config, {"head": head})
        torch.nn.init.normal_(model.get_parameter("heads.head.dense.bias"))
        torch.nn.init.constant_(model.get_parameter("heads.head.out.bias"), 0.5)
        answer: Tensor = model(*batch, heads=["head"]).heads["head"]
        return answer

    plain, no_input, no_inner = (
        logits(),
        logits(input_dropout=nearly_all),
        logits(dropout=nearly_all),
    )
    assert not torch.allclose(plain[0], plain[1])
    # Without input only the dense layer's bias speaks; without the inner vector the last bias.
    assert torch.equal(no_input[0], no_input[1]) and not torch.allclose(
        no_input[0], torch.full((2,), 0.5)
    )
    assert torch.equal(no_inner, torch.full((4, 2), 0.5))


@pytest.mark.parametrize("name", ["slots", "span"])
def test_token_heads_drop_out_in_training(name: str) -> None:
    model = Model(small(hidden_dropout=0.0, attention_dropout=0.0), HEADS)
    batch = rows_of(8)
    first, second = (model(*batch, heads=[name]).heads[name] for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(*batch, heads=[name]).heads[name] for _ in range(2))
    assert torch.equal(first, second)


def test_pooler_is_kept_on_request(tmp_path: Path) -> None:
    reference(tmp_path / "model", "bert", seed=9)
    read = checkpoint.read(tmp_path / "model")
    assert "pooler.weight" not in Model.from_checkpoint(read).state_dict()
    kept = Model.from_checkpoint(read, pooler=True).state_dict()
    assert np.array_equal(kept["pooler.weight"].numpy(), read.tensors["pooler.weight"])
    reference(tmp_path / "other", "distilbert", seed=9)
    with pytest.raises(KeyError, match="pooler"):
        Model.from_checkpoint(checkpoint.read(tmp_path / "other"), pooler=True)


def test_a_model_from_a_checkpoint_can_be_trained(tmp_path: Path) -> None:
    reference(tmp_path / "model", "roberta", "classify", seed=10)
    read = checkpoint.read(tmp_path / "model")
    model = Model.from_checkpoint(read)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = read.tensors["layers.0.up.weight"].copy()
    ids, offsets, types = inputs(random_rows(10, (4, 6), 97))
    model(ids, offsets, types, heads=["classify"]).heads["classify"].square().sum().backward()
    optimiser.step()
    after = model.get_parameter("layers.0.up.weight").detach().numpy()
    assert not np.array_equal(after, before)
    assert np.array_equal(read.tensors["layers.0.up.weight"], before)
