"""The encoder: parity with transformers, names, initial values, dropout."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import enrobe
from enrobe import checkpoint
from enrobe.config import EncoderConfig, HeadConfig
from enrobe.nn.attention import Ids, plan
from enrobe.nn.encoder import Encoder, Layer
from enrobe.nn.heads import Model
from enrobe.text.ragged import Ragged
from tests.support import (
    FAMILIES,
    LABELS,
    Row,
    random_rows,
    random_types,
    reference,
    reference_outputs,
    scaled_error,
)

pytestmark = pytest.mark.usefixtures("either_way")

LENGTHS = (3, 512, 1, 17, 3, 40, 511)
SIZES = EncoderConfig(
    family="roberta",
    vocab_size=997,
    hidden_size=56,
    num_layers=3,
    num_heads=7,
    intermediate_size=72,
    max_positions=35,
    position_offset=2,
    type_vocab_size=2,
)
HEADS = {
    "mlm": HeadConfig(kind="mlm"),
    "own": HeadConfig(kind="mlm", tied=False),
    "topic": HeadConfig(kind="classify", labels=tuple("abcde")),
    "slots": HeadConfig(kind="tag", labels=tuple("abcd")),
    "span": HeadConfig(kind="answer"),
}


def inputs(rows: list[Row], types: list[Row] | None = None) -> tuple[Tensor, Ids, Tensor]:
    batch = Ragged.from_rows(rows, types)
    return torch.from_numpy(batch.ids), batch.offsets, torch.from_numpy(batch.types)


def small(**changes: object) -> EncoderConfig:
    return EncoderConfig(**{**vars(SIZES), **changes})


def rows_of(seed: int, lengths: tuple[int, ...] = (3, 30, 1, 3)) -> tuple[Tensor, Ids, Tensor]:
    print(f"seed {seed}")
    return inputs(random_rows(seed, lengths, SIZES.vocab_size), random_types(seed, lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_equals_transformers(family: str, tmp_path: Path) -> None:
    seed = FAMILIES.index(family)
    print(f"seed {seed}")
    model = reference(tmp_path / "model", family, seed=seed)
    ours = Model.from_checkpoint(checkpoint.read(tmp_path / "model")).eval()
    rows = random_rows(seed, LENGTHS, ours.config.vocab_size)
    types = random_types(seed, LENGTHS)
    theirs = reference_outputs(model, rows, types)
    with torch.inference_mode():
        hidden = ours(*inputs(rows, types), layers=range(4)).hidden
    for layer in range(4):
        wanted = np.concatenate([row[layer] for row in theirs.hidden])
        assert scaled_error(hidden[layer], wanted) <= 1e-5


def test_alone_equals_batched() -> None:
    torch.manual_seed(1)
    encoder = Encoder(small(initializer_range=0.2, max_positions=514)).eval()
    lengths = (3, 512, 1, 17, 3, 40, 17, 2)
    rows = random_rows(2, lengths, SIZES.vocab_size)
    with torch.inference_mode():
        ids, offsets, types = inputs(rows)
        batched = encoder(ids, offsets, types, (0, 1, 2, 3))
        for i, row in enumerate(rows):
            alone = encoder(*inputs([row]), (0, 1, 2, 3))
            for layer in range(4):
                ours = batched[layer][offsets[i] : offsets[i + 1]]
                assert scaled_error(alone[layer], ours) <= 5e-6


def test_a_row_does_not_read_its_neighbours() -> None:
    encoder = Encoder(small(initializer_range=0.2)).eval()
    ids, offsets, types = rows_of(3)
    changed = ids.clone()
    changed[offsets[1] :] = 5
    with torch.inference_mode():
        first, second = (encoder(x, offsets, types, (3,))[3] for x in (ids, changed))
    assert torch.equal(first[: offsets[1]], second[: offsets[1]])
    assert not torch.equal(first[offsets[1] :], second[offsets[1] :])


@pytest.mark.parametrize("offset", [0, 2, 5])
def test_positions_count_from_the_offset(offset: int) -> None:
    encoder = Encoder(small(position_offset=offset))
    ids, offsets, types = rows_of(4)
    # Weights on the sum: a norm's plain sum does not depend on what was normed.
    weights = torch.randn(len(ids), 1, generator=torch.Generator().manual_seed(9))
    spread = torch.linspace(-1, 1, encoder.config.hidden_size)
    (encoder(ids, offsets, types, (0,))[0] * weights * spread).sum().backward()
    gradient = encoder.get_parameter("embeddings.position.weight").grad
    assert gradient is not None
    used = gradient.abs().sum(1).nonzero().flatten().tolist()
    assert used == list(range(offset, offset + 30))


def test_a_row_beyond_the_position_table_is_caught() -> None:
    encoder = Encoder(SIZES)
    with pytest.raises(AssertionError):
        encoder(*rows_of(5, (4, SIZES.max_tokens + 1)), (0,))


def test_layers_above_the_asked_are_not_run() -> None:
    encoder = Encoder(SIZES)
    encoder.layers[2].register_forward_hook(lambda *_: pytest.fail("layer 3 was run"))
    assert list(encoder(*rows_of(6), (2, 0))) == [0, 2]


def test_last_layer_at_positions_equals_the_last_layer() -> None:
    torch.manual_seed(7)
    encoder = Encoder(small(initializer_range=0.2)).eval()
    batch = rows_of(7, (3, 30, 1, 3, 3, 3))
    # The rows have 1, 3, 1, 0, 1 and 2 of them.
    at = np.array([0, 4, 20, 32, 33, 38, 41, 42])
    with torch.inference_mode():
        whole = encoder(*batch, (1, 3))
        confined = encoder(*batch, (1, 3), at)
    assert torch.equal(whole[1], confined[1])
    assert scaled_error(confined[3], whole[3][at]) <= 5e-6


@pytest.mark.parametrize("types", [0, 2])
@pytest.mark.parametrize("pooler", [False, True])
def test_state_is_named_as_checkpoints_are(types: int, pooler: bool) -> None:
    config = small(type_vocab_size=types)
    wanted = checkpoint.shapes(config, HEADS)
    if not pooler:
        wanted = {name: shape for name, shape in wanted.items() if not name.startswith("pooler.")}
    state = Model(config, HEADS, pooler=pooler).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == wanted
    encoder = Encoder(config).state_dict()
    assert set(encoder) == {
        name for name in wanted if name.split(".")[0] in ("embeddings", "layers")
    }


def test_initial_values() -> None:
    torch.manual_seed(8)
    config = small(initializer_range=0.03)
    for name, value in Model(config, HEADS, pooler=True).state_dict().items():
        if name.endswith("bias"):
            assert bool((value == 0).all()), name
        elif name.endswith("norm.weight"):
            assert bool((value == 1).all()), name
        else:
            # Four standard errors of the mean, and five of the deviation.
            count = value.numel()
            assert abs(float(value.mean())) < 4 * 0.03 / count**0.5, name
            assert abs(float(value.std()) / 0.03 - 1) < 5 / (2 * count) ** 0.5, name
        if name == "embeddings.word.weight":
            assert (value == 0).all(1).nonzero().flatten().tolist() == [config.pad_id]


def test_new_weights_follow_the_seed() -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return Model(SIZES, HEADS).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.up.weight"], other["layers.0.up.weight"])


def test_dropout_is_for_training_alone() -> None:
    torch.manual_seed(9)
    encoder = Encoder(small(hidden_dropout=0.25, attention_dropout=0.0))
    batch = rows_of(9)
    first, second = (encoder(*batch, (0, 3)) for _ in range(2))
    assert not torch.equal(first[3], second[3])
    assert abs(float((first[0] == 0).float().mean()) - 0.25) < 0.03
    encoder.eval()
    first, second = (encoder(*batch, (0, 3)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[3], second[3])


def test_attention_dropout_is_for_training_alone() -> None:
    encoder = Encoder(small(hidden_dropout=0.0, attention_dropout=0.25))
    batch = rows_of(10)
    first, second = (encoder(*batch, (0, 1)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    encoder.eval()
    assert torch.equal(encoder(*batch, (1,))[1], encoder(*batch, (1,))[1])


def test_no_dropout_trains_as_it_evaluates() -> None:
    encoder = Encoder(small(hidden_dropout=0.0, attention_dropout=0.0))
    batch = rows_of(11)
    assert torch.equal(encoder(*batch, (3,))[3], encoder.eval()(*batch, (3,))[3])


def test_dropout_comes_before_the_residual_sum() -> None:
    # With nearly all dropped, only the residual and the norms are left.
    layer = Layer(small(hidden_dropout=1 - 1e-9)).train()
    hidden = torch.randn(5, SIZES.hidden_size, generator=torch.Generator().manual_seed(12))
    spans = plan(np.array([0, 2, 5]), None, hidden.device).every
    wanted = layer.norm(layer.attention_norm(hidden))
    torch.testing.assert_close(layer(hidden, spans), wanted, atol=1e-6, rtol=1e-6)


def test_layers_compile_without_a_break() -> None:
    layer = Layer(SIZES).eval()
    hidden = torch.randn(9, SIZES.hidden_size, generator=torch.Generator().manual_seed(13))
    spans = plan(np.array([0, 2, 4, 9]), np.array([1, 6]), hidden.device).last
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.allclose(compiled(hidden, spans), layer(hidden, spans), atol=1e-6)


def test_nn_needs_torch_and_numpy_alone() -> None:
    absent = ("pydantic", "cyclopts", "rich", "onnx", "onnxruntime", "tokenizers", "transformers")
    # The package's own __init__ is left out: it offers more than nn.
    code = f"""
import sys, types
sys.modules.update(dict.fromkeys({absent}))
sys.modules["enrobe"] = types.ModuleType("enrobe")
sys.modules["enrobe"].__path__ = {list(enrobe.__path__)}
import enrobe.nn.heads
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_labels_differ_from_every_other_size() -> None:
    sizes = [SIZES.hidden_size, SIZES.num_layers, SIZES.num_heads, SIZES.intermediate_size, LABELS]
    assert len(set(sizes)) == len(sizes)
