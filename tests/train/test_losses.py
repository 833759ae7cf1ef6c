"""The masked-LM loss against plain cross-entropy, and against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from enrobe import checkpoint
from enrobe.dialects import checkpoint_names
from enrobe.nn.attention import Ids
from enrobe.nn.heads import Model
from enrobe.train import losses
from enrobe.train.losses import masked_lm_loss
from tests.nn.test_encoder import HEADS, SIZES, inputs, rows_of, small
from tests.support import FAMILIES, padded, random_rows, random_types, reference, scaled_error

AT = np.array([0, 1, 5, 30, 33, 36])
TARGETS = torch.tensor([5, 996, 2, 5, 77, 500])


def model_of(head: str, seed: int = 0) -> Model:
    print(f"seed {seed}")
    torch.manual_seed(seed)
    config = small(initializer_range=0.2, hidden_dropout=0.0, attention_dropout=0.0)
    model = Model(config, {head: HEADS[head]})
    torch.nn.init.normal_(model.get_parameter(f"heads.{head}.bias"))
    return model


def materialised(
    model: Model, head: str, batch: tuple[Tensor, Ids, Tensor], at: Ids, targets: Tensor
) -> tuple[Tensor, Tensor]:
    logits = model(*batch, heads=[head], at=at).heads[head]
    right = (logits.argmax(-1) == targets).sum()
    return F.cross_entropy(logits, targets, reduction="sum"), right


def gradients(model: Model) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


# 997 entries: chunks of one position, of two and a half, of all.
@pytest.mark.parametrize("chunk", [1, 2500, 2**25])
@pytest.mark.parametrize("head", ["mlm", "own"])
def test_value_count_and_gradients_equal_cross_entropy(
    head: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    model, batch = model_of(head), rows_of(1)
    targets = TARGETS.clone()
    # Some are right, so that their count says something.
    with torch.no_grad():
        best = model(*batch, heads=[head], at=AT).heads[head].argmax(-1)
    targets[:2] = best[:2]
    wanted, count = materialised(model, head, batch, AT, targets)
    # Not the sum itself: what comes back from later must be handed on.
    (wanted / 7).backward()
    theirs = gradients(model)
    loss, right = masked_lm_loss(model, head, *batch, AT, targets)
    (loss / 7).backward()
    ours = gradients(model)
    assert scaled_error(loss.item(), wanted.item()) <= 1e-6
    assert right.item() == count.item() >= 2
    assert not right.requires_grad
    assert ours.keys() == theirs.keys() == dict(model.named_parameters()).keys()
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        # Below the head, sums over all tokens are rounded once more.
        most = 1e-6 if name.startswith("heads.") else 4e-6
        assert float((ours[name] - gradient).abs().max()) <= most * largest, name
        assert gradient.abs().max() > 0, name


def test_losses_add_up_over_parts_of_a_batch() -> None:
    model, batch = model_of("mlm"), rows_of(1)
    loss, _ = masked_lm_loss(model, "mlm", *batch, AT, TARGETS)
    (loss / 6).backward()
    whole = gradients(model)
    for part in (slice(0, 2), slice(2, 6)):
        loss, _ = masked_lm_loss(model, "mlm", *batch, AT[part], TARGETS[part])
        (loss / 6).backward()
    for name, gradient in gradients(model).items():
        assert scaled_error(gradient, whole[name]) <= 1e-6, name


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_the_padded_reference(family: str, tmp_path: Path) -> None:
    seed = 40 + FAMILIES.index(family)
    print(f"seed {seed}")
    theirs: Any = reference(tmp_path / "model", family, "mlm", seed=seed)
    ours = Model.from_checkpoint(checkpoint.read(tmp_path / "model")).eval()
    lengths = (3, 90, 1, 17, 3)
    rows, types = random_rows(seed, lengths, 97), random_types(seed, lengths)
    at = np.flatnonzero(np.random.default_rng(seed).random(sum(lengths)) < 0.2)
    batch = inputs(rows, types)
    targets = batch[0][at]
    loss, _ = masked_lm_loss(ours, "mlm", *batch, at, targets)
    (loss / len(at)).backward()

    block = padded(theirs, rows, types)
    labels = torch.full(block["input_ids"].shape, -100)
    flat = torch.full(batch[0].shape, -100)
    flat[at] = targets
    labels[block["attention_mask"].bool()] = flat
    answer = theirs(**block, labels=labels)
    answer.loss.backward()

    assert scaled_error(loss.item() / len(at), answer.loss.item()) <= 1e-5
    # A tied matrix has two names.
    everything = theirs.named_parameters(remove_duplicate=False)
    wanted = {name: parameter.grad for name, parameter in everything}
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    names = dict(checkpoint_names(ours.config, ours.head_configs["mlm"]))
    compared = 0
    for name, parameter in ours.named_parameters():
        gradient = wanted[names[name.replace("heads.mlm.", "head.mlm.")]]
        assert parameter.grad is not None, name
        assert float((parameter.grad - gradient).abs().max()) <= 1e-5 * min(1, largest), name
        compared += 1
    assert compared == len(list(theirs.parameters()))


def test_no_gradient_is_computed_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of("mlm"), rows_of(2)
    with torch.no_grad():
        loss, right = masked_lm_loss(model, "mlm", *batch, AT, TARGETS)
    assert not loss.requires_grad and loss.grad_fn is None
    wanted, count = materialised(model, "mlm", batch, AT, TARGETS)
    assert scaled_error(loss.item(), wanted.item()) <= 1e-6 and right == count
    # Of what does not train the gradient is dropped; the others' is the same.
    loss, _ = masked_lm_loss(model, "mlm", *batch, AT, TARGETS)
    loss.backward()
    whole = gradients(model)
    model.get_parameter("heads.mlm.bias").requires_grad_(False)
    model.get_parameter("embeddings.word.weight").requires_grad_(False)
    loss, _ = masked_lm_loss(model, "mlm", *batch, AT, TARGETS)
    loss.backward()
    part = gradients(model)
    assert part.keys() == whole.keys() - {"heads.mlm.bias", "embeddings.word.weight"}
    assert all(torch.equal(part[name], whole[name]) for name in part)


@pytest.mark.parametrize("head", ["mlm", "own"])
def test_bfloat16_stays_near_float32(head: str) -> None:
    model, batch = model_of(head, seed=5), rows_of(5)
    loss, _ = masked_lm_loss(model, head, *batch, AT, TARGETS)
    loss.backward()
    wanted = gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, _ = masked_lm_loss(model, head, *batch, AT, TARGETS)
    half.backward()
    assert half.dtype == torch.float32
    assert abs(half.item() / loss.item() - 1) < 0.02
    found = gradients(model)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        if name.endswith("key.bias"):
            # Nothing depends on it; what is there is rounding.
            continue
        assert float((gradient - wanted[name]).norm() / wanted[name].norm()) < 0.1, name


class Largest(TorchDispatchMode):
    """The most bytes that any tensor of floats that is made has."""

    found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            # What our kernels keep of a layer is bytes.
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.found = max(self.found, tensor.nbytes)
        return out


def test_the_logits_never_stand_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mlm")
    batch = rows_of(3, (33,) * 6)
    at = np.arange(198)
    weight = model.get_parameter("embeddings.word.weight").nbytes
    chunk = 10 * SIZES.vocab_size
    monkeypatch.setattr(losses, "_CHUNK", chunk)
    with Largest() as largest:
        materialised(model, "mlm", batch, at, batch[0])[0].backward()
    # The probe sees them where they do stand.
    assert largest.found == 4 * len(at) * SIZES.vocab_size > 3 * weight
    with Largest() as largest:
        masked_lm_loss(model, "mlm", *batch, at, batch[0])[0].backward()
    assert largest.found == max(weight, 4 * chunk)


def test_nothing_to_predict_is_a_loss_of_nothing() -> None:
    model = model_of("mlm")
    none = np.array([], np.int64)
    loss, right = masked_lm_loss(model, "mlm", *rows_of(4), none, torch.tensor(none))
    loss.backward()
    assert loss.item() == right.item() == 0
    assert not gradients(model)
